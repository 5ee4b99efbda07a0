// The InterLUDE losses: where each role's rows lie, the reported numbers against sums written out here, and
// the gradient of every logit against finite differences in double.
#include <algorithm>
#include <limits>
#include <vector>

#include "check.h"
#include "math/ssl_loss.h"

using namespace interlude;

constexpr int kBatch = 3, kMu = 2, kClasses = 4, kRows = 2 * (1 + kMu);
constexpr int kElements = kBatch * kRows * kClasses;

using Row = std::vector<double>;

// Owns what SslLoss points to; logits are a fixed, uneven pattern.
struct Head {
  Row logits = Row(kElements), delta = Row(kBatch * kClasses), share = Row(kBatch * kMu), parts = Row(kParts),
      loss = Row(1);
  Row class_weights{1, 0.5, 2, 1}, thresholds{0.76, 0.5, 0.6, 0.7}, bias{0.1, -0.2, 0.3, 0}, ramps{0.5, 0.25};
  std::vector<int64_t> labels{2, 0, 1};
  std::vector<int> target = std::vector<int>(kBatch * kMu);
  SslLoss<double, double> p{};

  Head(bool interdigitated, bool per_class) {
    for (int i = 0; i < kElements; ++i) logits[i] = 2 * std::sin(1.7 * i * i + 0.3);
    p.logits = interdigitated ? interdigitated_rows<const double*>(logits.data(), kMu, kClasses)
                              : separate_rows<const double*>(logits.data(), kBatch, kMu, kClasses);
    p.batch = kBatch, p.mu = kMu, p.classes = kClasses, p.per_class = per_class;
    p.labels = labels.data(), p.class_weights = class_weights.data(), p.thresholds = thresholds.data();
    p.pseudo_label_bias = bias.data(), p.temperature = 0.8, p.lambda_u = 1.4, p.lambda_dc = 5.2;
    p.ramps = ramps.data();  // the weights are 0.7 and 1.3
    p.delta = delta.data(), p.share = share.data(), p.target = target.data(), p.parts = parts.data(),
    p.loss = loss.data();
  }
  Head(const Head&) = delete;

  const double* row(int group, int r) const { return p.logits.row(group, r, kMu, kClasses); }
};

double row_max(const double* x) { return *std::max_element(x, x + kClasses); }

double row_sum(const double* x) {
  double sum = 0;
  for (int k = 0; k < kClasses; ++k) sum += std::exp(x[k] - row_max(x));
  return sum;
}

double probability(const double* x, int k) { return softmax_element(x[k], row_max(x), row_sum(x)); }

double row_ce(const double* x, int k) { return cross_entropy(x[k], row_max(x), row_sum(x)); }

// Pseudo labels and the rows that enter delta_u; the gradient does not flow through them.
void label_rows(Head& h) {
  for (int i = 0; i < kBatch; ++i) {
    int matches = 0;
    for (int j = 0; j < kMu; ++j) {
      Row score(kClasses);
      for (int k = 0; k < kClasses; ++k) score[k] = pseudo_label_score(h.p, h.row(i, 1 + j)[k], k);
      int best = 0;
      for (int k = 1; k < kClasses; ++k)
        if (ranks_before(score[k], k, score[best], best)) best = k;
      h.target[i * kMu + j] = over_threshold(h.p, probability(score.data(), best), best) ? best : -1;
      h.share[i * kMu + j] = !h.p.per_class || best == h.labels[i];
      matches += h.share[i * kMu + j] > 0;
    }
    for (int j = 0; j < kMu && matches; ++j) h.share[i * kMu + j] /= matches;
  }
}

// Sums over the batch, by definition. `labeled_change` stands for the stopped gradient of delta_l.
void forward(Head& h, const Row& labeled_change, double* total) {
  std::fill(total, total + kGroupSums, 0.0);
  for (int i = 0; i < kBatch; ++i) {
    const double weight = h.class_weights[h.labels[i]];
    total[kWeight] += weight;
    total[kWeightedCe] += weight * row_ce(h.row(i, 0), int(h.labels[i]));
    bool matched = false;
    for (int j = 0; j < kMu; ++j) {
      const int target = h.target[i * kMu + j];
      matched |= h.share[i * kMu + j] > 0;
      if (target < 0) continue;
      total[kMasked] += 1;
      total[kPseudoCe] += row_ce(h.row(i, 2 + kMu + j), target);
    }
    total[kMatched] += matched;
    for (int k = 0; k < kClasses; ++k) {
      double& delta = h.delta[i * kClasses + k];
      delta = -labeled_change[i * kClasses + k];
      for (int j = 0; j < kMu; ++j)
        delta += h.share[i * kMu + j] * (probability(h.row(i, 1 + j), k) - probability(h.row(i, 2 + kMu + j), k));
      total[kSquaredDelta] += delta * delta;
    }
  }
  write_parts(h.p, total);
}

void gradient_and_parts(bool interdigitated, bool per_class) {
  Head h(interdigitated, per_class);
  Row labeled_change(kBatch * kClasses), total(kGroupSums), perturbed(kGroupSums);
  for (int i = 0; i < kBatch; ++i)
    for (int k = 0; k < kClasses; ++k)
      labeled_change[i * kClasses + k] = probability(h.row(i, 0), k) - probability(h.row(i, 1 + kMu), k);
  label_rows(h);
  forward(h, labeled_change, total.data());
  const Row delta = h.delta, parts = h.parts;

  CHECK_EQ(total[kMasked], 2.0);  // some rows below their threshold, some rows without a match
  CHECK_EQ(total[kMatched], per_class ? (interdigitated ? 2.0 : 1.0) : 3.0);
  CHECK_NEAR(parts[kLabeled], total[kWeightedCe] / 3.5, 1e-15);
  CHECK_NEAR(parts[kUnlabeled], total[kPseudoCe] / 6, 1e-15);
  CHECK_NEAR(parts[kDelta], total[kSquaredDelta] / 12 * (per_class ? total[kMatched] / 3 : 1), 1e-15);
  CHECK_NEAR(parts[kMaskRate], total[kMasked] / 6, 1e-15);
  CHECK_NEAR(h.loss[0], parts[kLabeled] + 0.7 * parts[kUnlabeled] + 1.3 * parts[kDelta], 1e-15);

  constexpr double step = 1e-6;
  for (int i = 0; i < kBatch; ++i)
    for (int r = 0; r < kRows; ++r) {
      const RowGrad<double> g = row_grad(h.p, i, r, total.data());
      double dot = 0, sum = 0;
      for (int k = 0; k < kClasses; ++k) dot += probability(h.row(i, r), k) * delta[i * kClasses + k];
      for (int k = 0; k < kClasses; ++k) {
        const double got = grad_element(g, k, probability(h.row(i, r), k), delta[i * kClasses + k], dot);
        double& logit = h.logits[h.row(i, r) + k - h.logits.data()];
        const double value = logit;
        logit = value + step, forward(h, labeled_change, perturbed.data());
        const double above = h.loss[0];
        logit = value - step, forward(h, labeled_change, perturbed.data());
        CHECK_NEAR(got, (above - h.loss[0]) / (2 * step), 1e-9);
        logit = value;
        sum += got;
      }
      CHECK_NEAR(sum, 0.0, 1e-15);
    }
}

// Both row orders as lists of row numbers, in the order of Roles::row.
void row_orders() {
  const Head together(true, false), apart(false, false);
  const int separate[kBatch][kRows] = {{0, 6, 7, 3, 12, 13}, {1, 8, 9, 4, 14, 15}, {2, 10, 11, 5, 16, 17}};
  for (int i = 0; i < kBatch; ++i)
    for (int r = 0; r < kRows; ++r) {
      CHECK_EQ((together.row(i, r) - together.logits.data()) / kClasses, i * kRows + r);
      CHECK_EQ((apart.row(i, r) - apart.logits.data()) / kClasses, separate[i][r]);
    }
}

void argmax_and_extremes() {
  CHECK(ranks_before(2.0, 5, 1.0, 0) && ranks_before(1.0, 0, 1.0, 1) && !ranks_before(1.0, 1, 1.0, 0));
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  CHECK_EQ(softmax_element(minus_infinity, 0.0, 1.5), 0.0);
  CHECK(std::isinf(cross_entropy(minus_infinity, 0.0, 1.5)));
  CHECK_EQ(cross_entropy(700.0, 700.0, 1.0), 0.0);
  Head alone(true, true);  // the delta term without labels
  alone.p.labels = nullptr, alone.p.class_weights = nullptr, alone.p.ramps = nullptr;
  const double total[kGroupSums] = {0, 0, 0, 0, 6, 1};
  write_parts(alone.p, total);
  CHECK_EQ(alone.parts[kLabeled], 0.0);
  CHECK_EQ(alone.loss[0], 5.2 * alone.parts[kDelta] + 1.4 * alone.parts[kUnlabeled]);
  CHECK_NEAR(alone.parts[kDelta], 6.0 / 12 / 3, 1e-15);
  CHECK_EQ(row_grad(alone.p, 0, 0, total).target, -1);
}

int main() {
  row_orders();
  argmax_and_extremes();
  for (bool interdigitated : {true, false})
    for (bool per_class : {true, false}) gradient_and_parts(interdigitated, per_class);
  return check::result();
}
