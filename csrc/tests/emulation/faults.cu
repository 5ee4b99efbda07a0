// Kernels with one fault each, which the emulation has to find: reversal of x in shared memory, a block a row.
#include <ATen/ops/empty_like.h>
#include <cooperative_groups.h>
#include <torch/library.h>

#include "../../cuda/launch.cuh"

namespace interlude {
namespace {

constexpr int kThreads = 64;
enum Fault : int { kNone, kNoBarrier, kBarrierNotForAll, kHalfWarp, kBehindShared, kTooManyThreads, kGridBarrier };

__global__ void reverse_kernel(const float* x, float* y, int fault) {
  __shared__ float row[kThreads];
  IF_DYNAMIC_SHARED(bytes);
  const int i = int(threadIdx.x);
  row[i] = x[blockIdx.x * kThreads + i];
  bytes[i + (fault == kBehindShared ? 1 : 0)] = 0;
  if (fault == kGridBarrier) cooperative_groups::this_grid().sync();
  if (fault == kBarrierNotForAll && i == 5) return;
  if (fault != kNoBarrier) __syncthreads();
  if (fault == kHalfWarp && i % 32 < 16) __shfl_xor_sync(0xffffffffu, i, 1);
  y[blockIdx.x * kThreads + i] = row[kThreads - 1 - i];
}

at::Tensor reverse_rows(const at::Tensor& x, int64_t fault) {
  const LaunchScope scope(x);
  at::Tensor y = at::empty_like(x);
  const int threads = fault == kTooManyThreads ? 2048 : kThreads;
  launch(reverse_kernel, {.blocks = x.size(0), .threads = threads, .dynamic_bytes = kThreads}, scope,
         x.const_data_ptr<float>(), y.mutable_data_ptr<float>(), int(fault));
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(interlude_fast_emulated, m) {
  m.def("reverse_rows(Tensor x, int fault) -> Tensor", &reverse_rows);
}

}  // namespace interlude
