// The InterLUDE loss head and its delta-consistency term on the CPU, loss and gradient together.
// Fused: softmaxes, pseudo labels, masks, three losses and their gradients; the logits are read in the
// order they lie in, and nothing of size [B, mu, K] is stored but the softmaxes, where their gradients will be.
//   logits [2B(1+mu), K], labels [B] -> loss, parts [4], grad [2B(1+mu), K].
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../math/exp.h"
#include "../ssl_loss_problem.h"
#include "vectorized.h"

namespace interlude {
namespace {

constexpr int64_t kGroupsPerTask = 8;

// Softmaxes of `rows` rows, which lie one after another in `value` and are used up, into out[row]; maxima and sums
// are kept for the cross-entropy. The exponentials are one loop over all rows: a loop for each would leave much of
// it unvectorized where classes are few.
template <typename A>
IF_INLINE void softmax_of_rows(A* value, int64_t rows, int64_t classes, A* const* out, A* row_max, A* row_sum) {
  for (int64_t r = 0; r < rows; ++r) {
    A* row = value + r * classes;
    A max = row[0];
#pragma omp simd reduction(max : max)
    for (int64_t k = 1; k < classes; ++k) max = row[k] > max ? row[k] : max;
#pragma omp simd
    for (int64_t k = 0; k < classes; ++k) row[k] -= max;
    row_max[r] = max;
  }
#pragma omp simd
  for (int64_t i = 0; i < rows * classes; ++i) value[i] = exp_nonpositive(value[i]);
  for (int64_t r = 0; r < rows; ++r) {
    const A* row = value + r * classes;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < classes; ++k) sum += row[k];
    const A scale = A(1) / sum;
    A* prob = out[r];
#pragma omp simd
    for (int64_t k = 0; k < classes; ++k) prob[k] = row[k] * scale;
    row_sum[r] = sum;
  }
}

IF_VECTORIZED void softmax_rows(float* value, int64_t rows, int64_t classes, float* const* out, float* row_max,
                                float* row_sum) {
  softmax_of_rows(value, rows, classes, out, row_max, row_sum);
}

void softmax_rows(double* value, int64_t rows, int64_t classes, double* const* out, double* row_max, double* row_sum) {
  softmax_of_rows(value, rows, classes, out, row_max, row_sum);
}

// delta_u - delta_l of a group, whose softmaxes are prob[row], and its squared norm.
template <typename A>
IF_INLINE A delta_of_rows(const A* const* prob, const A* share, int64_t mu, int64_t classes, A* __restrict delta) {
  const A *labeled_weak = prob[0], *labeled_strong = prob[1 + mu];
#pragma omp simd
  for (int64_t k = 0; k < classes; ++k) delta[k] = labeled_strong[k] - labeled_weak[k];
  for (int64_t j = 0; j < mu; ++j) {
    const A s = share[j], *weak = prob[1 + j], *strong = prob[2 + mu + j];
#pragma omp simd
    for (int64_t k = 0; k < classes; ++k) delta[k] += s * (weak[k] - strong[k]);
  }
  A squared = 0;
#pragma omp simd reduction(+ : squared)
  for (int64_t k = 0; k < classes; ++k) squared += delta[k] * delta[k];
  return squared;
}

IF_VECTORIZED float delta_of_group(const float* const* prob, const float* share, int64_t mu, int64_t classes,
                                   float* delta) {
  return delta_of_rows(prob, share, mu, classes, delta);
}

double delta_of_group(const double* const* prob, const double* share, int64_t mu, int64_t classes, double* delta) {
  return delta_of_rows(prob, share, mu, classes, delta);
}

// A row's softmax becomes its gradient.
template <typename A>
IF_INLINE void gradient_of_row(const RowGrad<A> g, A* __restrict row, const A* __restrict delta, int64_t classes) {
  A dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t k = 0; k < classes; ++k) dot += row[k] * delta[k];
  if (g.target < 0) {
#pragma omp simd
    for (int64_t k = 0; k < classes; ++k) row[k] = delta_gradient(g, row[k], delta[k], dot);
    return;
  }
  // Class 1 beside target 0 stands for every class beside the target: no comparison in the loop.
  const RowGrad<A> elsewhere{g.ce_scale, 0, g.delta_scale};
  const A at_target = grad_element(g, g.target, row[g.target], delta[g.target], dot);
#pragma omp simd
  for (int64_t k = 0; k < classes; ++k) row[k] = grad_element(elsewhere, 1, row[k], delta[k], dot);
  row[g.target] = at_target;
}

IF_VECTORIZED void gradient_row(const RowGrad<float>& g, float* row, const float* delta, int64_t classes) {
  gradient_of_row(g, row, delta, classes);
}

void gradient_row(const RowGrad<double>& g, double* row, const double* delta, int64_t classes) {
  gradient_of_row(g, row, delta, classes);
}

// Pseudo label and its confidence where q is not the plain softmax.
template <typename T, typename A>
int shifted_pseudo_label(const SslLoss<T, A>& p, const T* logits, A* confidence) {
  int best = 0;
  A max = pseudo_label_score(p, A(logits[0]), 0), sum = 0;
  for (int k = 1; k < p.classes; ++k) {
    const A score = pseudo_label_score(p, A(logits[k]), k);
    if (ranks_before(score, k, max, best)) max = score, best = k;
  }
  for (int k = 0; k < p.classes; ++k) sum += std::exp(pseudo_label_score(p, A(logits[k]), k) - max);
  *confidence = A(1) / sum;
  return best;
}

// The class whose logit is the row's maximum; of a row of NaN, one of them.
template <typename T, typename A>
int first_equal(const T* logits, int classes, A max) {
  int k = 0;
  while (k < classes - 1 && A(logits[k]) != max) ++k;
  return k;
}

// Pseudo labels of one group: target (-1 below the threshold) and the rows that enter delta_u.
template <typename T, typename A>
int label_group(const SslLoss<T, A>& p, int64_t i) {
  const bool plain = p.temperature == A(1) && !p.pseudo_label_bias;
  int matches = 0;
  for (int j = 0; j < p.mu; ++j) {
    const int64_t pair = i * p.mu + j;
    bool match = p.match ? p.match[pair] : true;
    if (!p.delta_alone()) {
      const T* logits = p.logits.row(i, 1 + j, p.mu, p.classes);
      const int64_t row = i * p.rows() + 1 + j;
      A confidence = A(1) / p.row_sum[row];
      const int label =
          plain ? first_equal(logits, p.classes, p.row_max[row]) : shifted_pseudo_label(p, logits, &confidence);
      p.target[pair] = over_threshold(p, confidence, label) ? label : -1;
      match = !p.per_class || label == p.labels[i];
    }
    p.share[pair] = match ? A(1) : A(0);
    matches += match;
  }
  for (int j = 0; j < p.mu; ++j)
    if (matches) p.share[i * p.mu + j] /= A(matches);
  return matches;
}

// The delta term alone gives its labeled rows none.
template <typename T, typename A>
bool has_gradient(const SslLoss<T, A>& p, int r) {
  return !p.delta_alone() || r % (1 + p.mu) != 0;
}

// Softmaxes, pseudo labels, delta and the group's sums. `work` is the group's size; softmaxes are left where their
// gradients will be, at prob[row].
template <typename T, typename A>
void forward_group(const SslLoss<T, A>& p, int64_t i, A* work, A** prob) {
  const int rows = p.rows();
  const int64_t classes = p.classes;
  A* row_max = p.row_max + i * rows;
  A* row_sum = p.row_sum + i * rows;
  for (int r = 0; r < rows; ++r) {
    std::copy_n(p.logits.row(i, r, p.mu, classes), classes, work + r * classes);
    prob[r] = has_gradient(p, r) ? p.grad.row(i, r, p.mu, classes) : work + r * classes;
  }
  softmax_rows(work, rows, classes, prob, row_max, row_sum);
  const int matches = label_group(p, i);
  auto sum = [&](GroupSum what) -> A& { return p.group_sum[what * p.batch + i]; };
  for (int what = 0; what < kGroupSums; ++what) sum(GroupSum(what)) = A(0);
  sum(kMatched) = matches > 0;
  if (!p.delta_alone()) {
    const int64_t label = p.labels[i];
    const A weight = p.class_weights ? p.class_weights[label] : A(1);
    sum(kWeight) = weight;
    sum(kWeightedCe) = weight * cross_entropy(A(p.logits.row(i, 0, p.mu, classes)[label]), row_max[0], row_sum[0]);
    for (int j = 0; j < p.mu; ++j) {
      const int target = p.target[i * p.mu + j], r = 2 + p.mu + j;
      if (target < 0) continue;
      sum(kMasked) += A(1);
      sum(kPseudoCe) += cross_entropy(A(p.logits.row(i, r, p.mu, classes)[target]), row_max[r], row_sum[r]);
    }
  }
  sum(kSquaredDelta) = delta_of_group(prob, p.share + i * p.mu, p.mu, classes, p.delta + i * classes);
}

template <typename T, typename A>
void backward_group(const SslLoss<T, A>& p, int64_t i, const A* total) {
  for (int r = 0; r < p.rows(); ++r)
    if (has_gradient(p, r))
      gradient_row(row_grad(p, i, r, total), p.grad.row(i, r, p.mu, p.classes), p.delta + i * p.classes, p.classes);
}

template <typename T, typename A>
void walk_groups(const SslLoss<T, A>& p) {
  at::parallel_for(0, p.batch, kGroupsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<A*> prob(p.rows());
    std::vector<A> work(int64_t{p.rows()} * p.classes);
    for (int64_t i = begin; i < end; ++i) forward_group(p, i, work.data(), prob.data());
  });
  A total[kGroupSums];
  for (int what = 0; what < kGroupSums; ++what) {
    total[what] = A(0);
    for (int64_t i = 0; i < p.batch; ++i) total[what] += p.group_sum[what * p.batch + i];
  }
  write_parts(p, total);
  at::parallel_for(0, p.batch, kGroupsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) backward_group(p, i, total);
  });
}

// Labels are looked at before any is used as an index; on a GPU the kernel asserts instead.
struct Cpu {
  struct Scope {
    explicit Scope(const at::Tensor&) {}
  };
  template <typename T, typename A>
  static void run(const SslLoss<T, A>& p, const Scope&) {
    for (int64_t i = 0; !p.delta_alone() && i < p.batch; ++i)
      TORCH_CHECK_INDEX(p.labels[i] >= 0 && p.labels[i] < p.classes, "labels[", i, "] = ", p.labels[i],
                        " is outside [0, ", p.classes, ")");
    walk_groups(p);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CPU, m) {
  m.impl("interlude_loss", &interlude_loss<Cpu>);
  m.impl("delta_consistency_loss", &delta_consistency_loss<Cpu>);
}

}  // namespace interlude
