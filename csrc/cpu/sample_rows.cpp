// The rows of one step on the CPU: labeled items [B] and unlabeled items [B, mu] as functions of
// (seed, step). The CUDA file makes the same integers from the same header.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "../math/shuffle.h"

namespace interlude {
namespace {

std::tuple<at::Tensor, at::Tensor> sample_rows(const at::Tensor& step, int64_t seed, int64_t labeled, int64_t unlabeled,
                                               int64_t batch, int64_t mu) {
  check_sample_rows(step, labeled, unlabeled, batch, mu);
  const auto options = step.options();
  at::Tensor labeled_items = at::empty({batch}, options);
  at::Tensor unlabeled_items = at::empty({batch, mu}, options);
  int64_t* labeled_out = labeled_items.mutable_data_ptr<int64_t>();
  int64_t* unlabeled_out = unlabeled_items.mutable_data_ptr<int64_t>();
  const uint64_t k = static_cast<uint64_t>(step.const_data_ptr<int64_t>()[0]);
  at::parallel_for(0, batch, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      labeled_out[i] = labeled_item(seed, k * batch + i, labeled);
      for (int64_t j = 0; j < mu; ++j) unlabeled_out[i * mu + j] = unlabeled_item(seed, k, i, j, unlabeled);
    }
  });
  return {labeled_items, unlabeled_items};
}

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CPU, m) { m.impl("sample_rows", &sample_rows); }

}  // namespace interlude
