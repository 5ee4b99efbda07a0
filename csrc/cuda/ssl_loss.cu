// The InterLUDE loss head and its delta-consistency term on the GPU, loss and gradient in one launch.
// Fused: softmaxes, pseudo labels, masks, three losses, mask rate and the gradient of the total; the
// logits are read where they lie, and neither softmaxes nor one-hot targets are stored. One block walks
// the 2(1+mu) rows of a labeled image, a warp a row. The class-dependent form and weighted classes scale
// every gradient by a number of the whole batch, so the kernel meets once in the middle (grid barrier;
// a cooperative launch, which stream capture accepts). Sums run in a fixed order: same input, same bits.
//   logits [2B(1+mu), K], labels [B] -> loss, parts [4], grad [2B(1+mu), K].
#include <cooperative_groups.h>
#include <torch/library.h>

#include "../ssl_loss_problem.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace interlude {
namespace {

constexpr int kMostThreads = 512;

// Loops over classes or images of a group are taken once or a few times by a lane: four copies of their bodies, the
// compiler's choice, are code to fetch, so `unroll 1` but where first loads may overlap.

// Max, argmax and sum of exp of one row, by one warp.
template <typename T, typename A>
__device__ int row_stats(const SslLoss<T, A>& p, const T* logits, A* max, A* sum) {
  const int lane = threadIdx.x % kWarp;
  int best = lane < p.classes ? lane : 0;
  A top = A(logits[best]), total = 0;
  for (int k = lane + kWarp; k < p.classes; k += kWarp) {
    const A value = A(logits[k]);
    if (ranks_before(value, k, top, best)) top = value, best = k;
  }
  warp_argmax(top, best);
#pragma unroll 1
  for (int k = lane; k < p.classes; k += kWarp) total += std::exp(A(logits[k]) - top);
  *max = top;
  *sum = warp_sum(total);
  return best;
}

// The same over pseudo-label scores, where q is not the plain softmax: label and confidence.
template <typename T, typename A>
__device__ int shifted_pseudo_label(const SslLoss<T, A>& p, const T* logits, A* confidence) {
  const int lane = threadIdx.x % kWarp;
  int best = lane < p.classes ? lane : 0;
  A top = pseudo_label_score(p, A(logits[best]), best), total = 0;
#pragma unroll 1
  for (int k = lane + kWarp; k < p.classes; k += kWarp) {
    const A score = pseudo_label_score(p, A(logits[k]), k);
    if (ranks_before(score, k, top, best)) top = score, best = k;
  }
  warp_argmax(top, best);
#pragma unroll 1
  for (int k = lane; k < p.classes; k += kWarp) total += std::exp(pseudo_label_score(p, A(logits[k]), k) - top);
  *confidence = A(1) / warp_sum(total);
  return best;
}

// Statistics of the group's rows; for unlabeled weak rows also target and match. A warp a row.
template <typename T, typename A>
__device__ void label_rows(const SslLoss<T, A>& p, int64_t i) {
  const bool plain = p.temperature == A(1) && !p.pseudo_label_bias;
  for (int r = threadIdx.x / kWarp; r < p.rows(); r += blockDim.x / kWarp) {
    const T* logits = p.logits.row(i, r, p.mu, p.classes);
    A max, sum;
    int label = row_stats(p, logits, &max, &sum);
    A confidence = A(1) / sum;
    const bool unlabeled_weak = r >= 1 && r <= p.mu;
    if (unlabeled_weak && !plain && !p.delta_alone()) label = shifted_pseudo_label(p, logits, &confidence);
    if (threadIdx.x % kWarp != 0) continue;
    p.row_max[i * p.rows() + r] = max;
    p.row_sum[i * p.rows() + r] = sum;
    if (!unlabeled_weak) continue;
    const int64_t pair = i * p.mu + r - 1;
    if (p.delta_alone()) {
      p.share[pair] = !p.match || p.match[pair] ? A(1) : A(0);
    } else {
      p.target[pair] = over_threshold(p, confidence, label) ? label : -1;
      p.share[pair] = !p.per_class || label == p.labels[i] ? A(1) : A(0);
    }
  }
}

// Cross-entropies of the group and the normalization of its matches, by the first warp.
template <typename T, typename A>
__device__ void group_terms(const SslLoss<T, A>& p, int64_t i) {
  const int lane = threadIdx.x % kWarp;
  A pseudo_ce = 0, masked = 0, matches = 0;
  for (int j = lane; j < p.mu; j += kWarp) {
    matches += p.share[i * p.mu + j];
    const int target = p.delta_alone() ? -1 : p.target[i * p.mu + j], r = 2 + p.mu + j;
    if (target < 0) continue;
    masked += A(1);
    pseudo_ce += cross_entropy(A(p.logits.row(i, r, p.mu, p.classes)[target]), p.row_max[i * p.rows() + r],
                               p.row_sum[i * p.rows() + r]);
  }
  pseudo_ce = warp_sum(pseudo_ce), masked = warp_sum(masked), matches = warp_sum(matches);
#pragma unroll 1
  for (int j = lane; j < p.mu; j += kWarp)
    if (matches > A(0)) p.share[i * p.mu + j] /= matches;
  if (lane != 0) return;
  A weight = 0, ce = 0;
  if (!p.delta_alone()) {
    const int64_t label = p.labels[i];
    CUDA_KERNEL_ASSERT(label >= 0 && label < p.classes);
    weight = p.class_weights ? p.class_weights[label] : A(1);
    ce = weight *
         cross_entropy(A(p.logits.row(i, 0, p.mu, p.classes)[label]), p.row_max[i * p.rows()], p.row_sum[i * p.rows()]);
  }
  p.group_sum[kWeightedCe * p.batch + i] = ce;
  p.group_sum[kWeight * p.batch + i] = weight;
  p.group_sum[kPseudoCe * p.batch + i] = pseudo_ce;
  p.group_sum[kMasked * p.batch + i] = masked;
  p.group_sum[kMatched * p.batch + i] = matches > A(0) ? A(1) : A(0);
}

template <typename T, typename A>
__device__ A probability(const SslLoss<T, A>& p, int64_t i, int r, int k) {
  return softmax_element(A(p.logits.row(i, r, p.mu, p.classes)[k]), p.row_max[i * p.rows() + r],
                         p.row_sum[i * p.rows() + r]);
}

// delta_u - delta_l of the group, a thread a class, and the sum of its squares.
template <typename T, typename A>
__device__ void group_delta(const SslLoss<T, A>& p, int64_t i, A* shared) {
  A squared = 0;
  for (int k = threadIdx.x; k < p.classes; k += blockDim.x) {
    A delta = probability(p, i, 1 + p.mu, k) - probability(p, i, 0, k);
    for (int j = 0; j < p.mu; ++j) {
      const A share = p.share[i * p.mu + j];
      delta += share * (probability(p, i, 1 + j, k) - probability(p, i, 2 + p.mu + j, k));
    }
    p.delta[i * p.classes + k] = delta;
    squared += delta * delta;
  }
  squared = block_sum(squared, shared);
  if (threadIdx.x == 0) p.group_sum[kSquaredDelta * p.batch + i] = squared;
}

template <typename T, typename A>
__device__ void group_gradient(const SslLoss<T, A>& p, int64_t i, const A* total) {
  const int lane = threadIdx.x % kWarp;
  const A* delta = p.delta + i * p.classes;
  for (int r = threadIdx.x / kWarp; r < p.rows(); r += blockDim.x / kWarp) {
    if (p.delta_alone() && r % (1 + p.mu) == 0) continue;
    const RowGrad<A> g = row_grad(p, i, r, total);
    A* out = p.grad.row(i, r, p.mu, p.classes);
    A dot = 0;
    if (g.delta_scale != A(0))
#pragma unroll 1
      for (int k = lane; k < p.classes; k += kWarp) dot += probability(p, i, r, k) * delta[k];
    dot = warp_sum(dot);
#pragma unroll 1
    for (int k = lane; k < p.classes; k += kWarp) out[k] = grad_element(g, k, probability(p, i, r, k), delta[k], dot);
  }
}

template <typename T, typename A>
__global__ void __launch_bounds__(kMostThreads) ssl_loss_kernel(const SslLoss<T, A> p) {
  __shared__ A shared[kMostThreads / kWarp];
  __shared__ A total[kGroupSums];
  for (int64_t i = blockIdx.x; i < p.batch; i += gridDim.x) {
    label_rows(p, i);
    __syncthreads();
    if (threadIdx.x < kWarp) group_terms(p, i);
    __syncthreads();
    group_delta(p, i, shared);
  }
  cooperative_groups::this_grid().sync();
  for (int what = threadIdx.x / kWarp; what < kGroupSums; what += blockDim.x / kWarp) {
    A sum = 0;
    for (int64_t i = threadIdx.x % kWarp; i < p.batch; i += kWarp) sum += p.group_sum[what * p.batch + i];
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) total[what] = sum;
  }
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) write_parts(p, total);
  for (int64_t i = blockIdx.x; i < p.batch; i += gridDim.x) group_gradient(p, i, total);
}

template <typename T, typename A>
void launch_loss(const SslLoss<T, A>& p, const LaunchScope& scope) {
  const int threads = std::min(kMostThreads, std::max(p.rows(), (p.classes + kWarp - 1) / kWarp) * kWarp);
  int per_multiprocessor = 0;
  C10_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, ssl_loss_kernel<T, A>, threads, 0));
  const int64_t resident = int64_t{per_multiprocessor} * device_attribute(cudaDevAttrMultiProcessorCount);
  launch(ssl_loss_kernel<T, A>, {.blocks = std::min(p.batch, resident), .threads = threads, .cooperative = true}, scope,
         p);
}

struct Cuda {
  using Scope = LaunchScope;
  template <typename T, typename A>
  static void run(const SslLoss<T, A>& p, const Scope& scope) {
    launch_loss(p, scope);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CUDA, m) {
  m.impl("interlude_loss", &interlude_loss<Cuda>);
  m.impl("delta_consistency_loss", &delta_consistency_loss<Cuda>);
}

}  // namespace interlude
