// The rows of one step on the GPU, from a step number that lies on the device: a captured graph that
// increments it draws a new batch at each replay, and nothing is read back.
//   step [1] int64 -> labeled items [B], unlabeled items [B, mu], int64.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "../math/shuffle.h"
#include "launch.cuh"

namespace interlude {
namespace {

constexpr int kThreads = 128;

// Thread t makes column t % (1 + mu) of row t / (1 + mu); column 0 is the labeled item.
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const int64_t* __restrict__ step, uint64_t seed, uint32_t labeled, uint32_t unlabeled, int64_t batch,
                  int64_t mu, int64_t* __restrict__ labeled_out, int64_t* __restrict__ unlabeled_out) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = t / (1 + mu), column = t % (1 + mu);
  if (row >= batch) return;
  const uint64_t k = static_cast<uint64_t>(*step);
  if (column == 0)
    labeled_out[row] = labeled_item(seed, k * batch + row, labeled);
  else
    unlabeled_out[row * mu + column - 1] = unlabeled_item(seed, k, uint32_t(row), uint32_t(column - 1), unlabeled);
}

std::tuple<at::Tensor, at::Tensor> sample_rows(const at::Tensor& step, int64_t seed, int64_t labeled, int64_t unlabeled,
                                               int64_t batch, int64_t mu) {
  check_sample_rows(step, labeled, unlabeled, batch, mu);
  const LaunchScope scope(step);
  at::Tensor labeled_items = at::empty({batch}, step.options());
  at::Tensor unlabeled_items = at::empty({batch, mu}, step.options());
  const int64_t blocks = (batch * (1 + mu) + kThreads - 1) / kThreads;
  launch(sample_kernel, {.blocks = blocks, .threads = kThreads}, scope, step.const_data_ptr<int64_t>(),
         static_cast<uint64_t>(seed), static_cast<uint32_t>(labeled), static_cast<uint32_t>(unlabeled), batch, mu,
         labeled_items.mutable_data_ptr<int64_t>(), unlabeled_items.mutable_data_ptr<int64_t>());
  return {labeled_items, unlabeled_items};
}

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CUDA, m) { m.impl("sample_rows", &sample_rows); }

}  // namespace interlude
