// The InterLUDE losses (section 4 of the algorithm), one element or one row at a time, and the
// description of a batch of logits that the CPU loops and the CUDA kernel share.
//
// Legend and row numbering: ssl_loss_rows.h.
#pragma once

#include "ssl_loss_rows.h"

namespace interlude {

// Per-group sums whose totals over the B groups give every reported number.
enum GroupSum { kWeightedCe, kWeight, kPseudoCe, kMasked, kSquaredDelta, kMatched, kGroupSums };
// The reported numbers.
enum Part { kLabeled, kUnlabeled, kDelta, kMaskRate, kParts };

// Storage type T, arithmetic type A (float for 16-bit T). Passed by value to the kernel.
template <typename T, typename A>
struct SslLoss {
  Roles<const T*> logits;
  Roles<A*> grad;              // in A, so that a loss scale comes before any rounding; labeled null: delta alone
  const int64_t* labels;       // [B]; null: delta term alone
  const bool* match;           // [B, mu] or null; given matches (delta term alone)
  const A* class_weights;      // [K] or null
  const A* thresholds;         // [K] or null, then tau
  const A* pseudo_label_bias;  // [K] or null, added to unlabeled weak logits / temperature
  const A* ramps;              // [2] or null, factors on lambda_u and lambda_dc
  int64_t batch;
  int mu, classes;
  A tau, temperature, lambda_u, lambda_dc;
  bool per_class;
  // Work space, written before it is read.
  A* row_max;    // [B, 2(1+mu)]
  A* row_sum;    // [B, 2(1+mu)]  sum of exp(logit - max)
  A* delta;      // [B, K]        delta_u - delta_l
  A* share;      // [B, mu]       weight of an unlabeled row inside delta_u
  A* group_sum;  // [kGroupSums, B]
  int* target;   // [B, mu]       pseudo label, or -1 below its threshold
  A* loss;       // [1] out, the total
  A* parts;      // [kParts] out

  IF_HD int rows() const { return 2 * (1 + mu); }
  IF_HD bool delta_alone() const { return labels == nullptr; }
  IF_HD A weight_u() const { return ramps ? lambda_u * ramps[0] : lambda_u; }
  IF_HD A weight_dc() const { return ramps ? lambda_dc * ramps[1] : lambda_dc; }
};

// a comes before b when it is larger, or equal with the smaller class (torch's argmax).
template <typename A>
IF_HD bool ranks_before(A a, int class_a, A b, int class_b) {
  return a > b || (a == b && class_a < class_b);
}

template <typename A>
IF_HD A softmax_element(A logit, A max, A sum) {
  return std::exp(logit - max) / sum;
}

template <typename A>
IF_HD A cross_entropy(A target_logit, A max, A sum) {
  return max - target_logit + std::log(sum);
}

// The score whose softmax is q: sharpened, then shifted by distribution alignment.
template <typename T, typename A>
IF_HD A pseudo_label_score(const SslLoss<T, A>& p, A logit, int k) {
  const A score = logit / p.temperature;
  return p.pseudo_label_bias ? score + p.pseudo_label_bias[k] : score;
}

template <typename T, typename A>
IF_HD bool over_threshold(const SslLoss<T, A>& p, A confidence, int k) {
  return confidence >= (p.thresholds ? p.thresholds[k] : p.tau);
}

// Totals over the groups -> the reported numbers. match_rate is 1 in the mean form.
template <typename A>
IF_HD A match_rate(bool per_class, A matched, int64_t batch) {
  return per_class ? matched / A(batch) : A(1);
}

template <typename T, typename A>
IF_HD void write_parts(const SslLoss<T, A>& p, const A* total) {
  const A rows = A(p.batch) * A(p.mu);
  const A rate = match_rate(p.per_class, total[kMatched], p.batch);
  p.parts[kLabeled] = p.delta_alone() ? A(0) : total[kWeightedCe] / total[kWeight];
  p.parts[kUnlabeled] = total[kPseudoCe] / rows;
  p.parts[kDelta] = total[kSquaredDelta] / (A(p.batch) * A(p.classes)) * rate;
  p.parts[kMaskRate] = total[kMasked] / rows;
  *p.loss = p.parts[kLabeled] + p.weight_u() * p.parts[kUnlabeled] + p.weight_dc() * p.parts[kDelta];
}

// Everything about one row's gradient that is the same for all classes.
template <typename A>
struct RowGrad {
  A ce_scale;     // times (softmax - onehot(target))
  int target;     // class of the cross-entropy, -1 for none
  A delta_scale;  // times softmax * (delta - <softmax, delta>)
};

template <typename T, typename A>
IF_HD RowGrad<A> row_grad(const SslLoss<T, A>& p, int64_t group, int row_in_group, const A* total) {
  RowGrad<A> g{A(0), -1, A(0)};
  const bool strong = row_in_group > p.mu;
  const int r = strong ? row_in_group - p.mu - 1 : row_in_group;
  if (r == 0) {
    if (!strong && !p.delta_alone()) {
      const int label = int(p.labels[group]);
      g.target = label;
      g.ce_scale = (p.class_weights ? p.class_weights[label] : A(1)) / total[kWeight];
    }
    return g;
  }
  const int64_t j = group * p.mu + (r - 1);
  const A rate = match_rate(p.per_class, total[kMatched], p.batch);
  const A scale = A(2) * p.weight_dc() * rate / (A(p.batch) * A(p.classes)) * p.share[j];
  g.delta_scale = strong ? -scale : scale;
  if (strong && !p.delta_alone() && p.target[j] >= 0) {
    g.target = p.target[j];
    g.ce_scale = p.weight_u() / (A(p.batch) * A(p.mu));
  }
  return g;
}

// The delta term's part of the gradient; `dot` = <softmax, delta> of the row.
template <typename A>
IF_HD A delta_gradient(const RowGrad<A>& g, A prob, A delta, A dot) {
  return g.delta_scale * prob * (delta - dot);
}

// d total / d logit_k for a row with softmax `prob`.
template <typename A>
IF_HD A grad_element(const RowGrad<A>& g, int k, A prob, A delta, A dot) {
  const A ce = g.target < 0 ? A(0) : g.ce_scale * (prob - (k == g.target ? A(1) : A(0)));
  return ce + delta_gradient(g, prob, delta, dot);
}

}  // namespace interlude
