// Embedding fusion on the GPU: one read and one write per element. A thread owns one 16-byte column
// and walks kRowsPerThread rows with the neighbour kept in registers, so each element is loaded
// 1 + 1/kRowsPerThread times, the extra load a hit in L2. The backward pass is this kernel with the
// shift reversed; rolled copies of x are never stored.
//   x [N, ...] contiguous or channels-last -> y, same shape and strides.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../checks.h"
#include "../math/fusion.h"
#include "launch.cuh"

namespace interlude {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kRowsPerThread = 8;

template <typename T, int kLanes>
__device__ __forceinline__ Packet<T, kLanes> fuse_packets(const Packet<T, kLanes>& own,
                                                          const Packet<T, kLanes>& neighbour,
                                                          at::opmath_type<T> alpha) {
  using A = at::opmath_type<T>;
  Packet<T, kLanes> out;
#pragma unroll
  for (int i = 0; i < kLanes; ++i)
    out.lane[i] =
        static_cast<T>(fuse_element<A>(static_cast<A>(own.lane[i]), static_cast<A>(neighbour.lane[i]), alpha));
  return out;
}

// rows x columns of packets. Block b covers columns (b % column_blocks) of row tile b / column_blocks.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    fuse_kernel(const Packet<T, kLanes>* __restrict__ x, Packet<T, kLanes>* __restrict__ y, int64_t rows,
                int64_t columns, int64_t column_blocks, at::opmath_type<T> alpha, int64_t shift) {
  const unsigned across = static_cast<unsigned>(column_blocks);  // no more than blocks of the launch
  const int64_t column = int64_t{blockIdx.x % across} * kThreads + threadIdx.x;
  if (column >= columns) return;
  const int64_t begin = int64_t{blockIdx.x / across} * kRowsPerThread;
  const int64_t count = rows - begin < kRowsPerThread ? rows - begin : kRowsPerThread;
  // Walk against the shift, so that the row in hand is the next one's neighbour.
  const int64_t first = shift > 0 ? begin + count - 1 : begin, stride = -shift * columns;
  Packet<T, kLanes> neighbour = x[shifted_row(first, rows, shift) * columns + column];
  const Packet<T, kLanes>* in = x + first * columns + column;
  Packet<T, kLanes>* out = y + first * columns + column;
  if (count == kRowsPerThread) {
    Packet<T, kLanes> own[kRowsPerThread];  // several are on their way before the first is used
#pragma unroll
    for (int step = 0; step < kRowsPerThread; ++step) own[step] = in[step * stride];
#pragma unroll
    for (int step = 0; step < kRowsPerThread; ++step)
      out[step * stride] = fuse_packets(own[step], step > 0 ? own[step - 1] : neighbour, alpha);
    return;
  }
#pragma unroll 1
  for (int64_t step = 0; step < count; ++step) {
    const Packet<T, kLanes> own = in[step * stride];
    out[step * stride] = fuse_packets(own, neighbour, alpha);
    neighbour = own;
  }
}

template <typename T, int kLanes>
void fuse(const T* x, T* y, int64_t rows, int64_t row_size, double alpha, int64_t shift, const LaunchScope& scope) {
  const int64_t columns = row_size / kLanes;
  const int64_t column_blocks = (columns + kThreads - 1) / kThreads;
  const int64_t blocks = column_blocks * ((rows + kRowsPerThread - 1) / kRowsPerThread);
  TORCH_CHECK_VALUE(blocks < (int64_t{1} << 31), "x is too large for one launch: ", rows, " rows of ", row_size);
  launch(fuse_kernel<T, kLanes>, {.blocks = blocks, .threads = kThreads}, scope,
         reinterpret_cast<const Packet<T, kLanes>*>(x), reinterpret_cast<Packet<T, kLanes>*>(y), rows, columns,
         column_blocks, static_cast<at::opmath_type<T>>(alpha), shift);
}

at::Tensor circular_shift_fusion(const at::Tensor& x_in, double alpha, int64_t shift) {
  check_fusion(x_in, alpha, shift);
  const LaunchScope scope(x_in);
  const auto format = dense_rows_format(x_in);
  const at::Tensor x = x_in.contiguous(format);
  at::Tensor y = at::empty_like(x, x.options().memory_format(format));
  if (x.numel() == 0) return y;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "circular_shift_fusion", [&] {
    constexpr int kLanes = 16 / sizeof(scalar_t);
    const scalar_t* in = x.const_data_ptr<scalar_t>();
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    const int64_t rows = x.size(0), row_size = x.numel() / x.size(0);
    const bool wide = row_size % kLanes == 0 && reinterpret_cast<uintptr_t>(in) % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(out) % 16 == 0;
    if (wide)
      fuse<scalar_t, kLanes>(in, out, rows, row_size, alpha, shift, scope);
    else
      fuse<scalar_t, 1>(in, out, rows, row_size, alpha, shift, scope);
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CUDA, m) { m.impl("circular_shift_fusion", &circular_shift_fusion); }

}  // namespace interlude
