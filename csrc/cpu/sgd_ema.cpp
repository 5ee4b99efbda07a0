// SGD, momentum and the moving average on the CPU: one pass over each parameter and what belongs to it.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "../sgd_ema_problem.h"

namespace interlude {
namespace {

constexpr int64_t kElementsPerTask = 32768;

template <typename T>
void update_elements(const SgdEma<T>& s, T* __restrict__ weight, const T* __restrict__ gradient,
                     T* __restrict__ velocity, T* __restrict__ shadow, int64_t count) {
  if (!gradient) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) average(s, weight[i], shadow[i]);
  } else if (!velocity) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) descend(s, decayed_gradient(s, gradient[i], weight[i]), weight[i], shadow[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i)
      descend(s, momentum_direction(s, decayed_gradient(s, gradient[i], weight[i]), velocity[i]), weight[i], shadow[i]);
  }
}

struct Cpu {
  struct Scope {
    explicit Scope(const at::Tensor&) {}
  };

  // Tasks are cut from the elements of all spans in a row: many are far smaller than a task.
  template <typename T>
  static void run(const std::vector<SgdEmaSpan<T>>& spans, const SgdEmaOptions& options, const Scope&) {
    if (options.skipped()) return;
    std::vector<int64_t> end_of(spans.size());
    int64_t total = 0;
    for (size_t i = 0; i < spans.size(); ++i) end_of[i] = total += spans[i].count;
    at::parallel_for(0, total, kElementsPerTask, [&](int64_t begin, int64_t end) {
      size_t i = std::upper_bound(end_of.begin(), end_of.end(), begin) - end_of.begin();
      for (; begin < end; begin = end_of[i++]) {
        const SgdEmaSpan<T>& span = spans[i];
        const int64_t at = begin - (end_of[i] - span.count);
        update_elements(options.of_tensor<T>(span.scale, span.weight_decay), span.weight + at,
                        span.gradient ? span.gradient + at : nullptr, span.velocity ? span.velocity + at : nullptr,
                        span.shadow + at, std::min(end, end_of[i]) - begin);
      }
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CPU, m) { m.impl("sgd_ema_", &sgd_ema_<Cpu>); }

}  // namespace interlude
