// SGD, momentum and the moving average on the GPU: a launch for up to kTensors parameters, whose addresses travel
// as the kernel's arguments, so that nothing is allocated or copied and a CUDA graph keeps them. A block owns
// kPerBlock elements of one tensor; 16-byte accesses where all of a tensor's addresses are aligned.
#include <torch/library.h>

#include "../sgd_ema_problem.h"
#include "launch.cuh"

namespace interlude {
namespace {

constexpr int kThreads = 256, kTensors = 88, kGroups = 16;
constexpr int64_t kPerBlock = 2048, kMostElements = int64_t{1} << 30;

template <typename T>
struct SgdEmaTable {
  T* weight[kTensors];
  const T* gradient[kTensors];
  T* velocity[kTensors];
  T* shadow[kTensors];
  double scale[kGroups], weight_decay[kGroups];
  SgdEmaOptions options;
  uint32_t count[kTensors], first_block[kTensors];
  uint8_t group[kTensors];
  int tensors, groups;
  uint32_t blocks;

  bool takes(const SgdEmaSpan<T>& span, int64_t more_blocks) const {
    return tensors < kTensors && (groups < kGroups || group_of(span) < groups) &&
           int64_t{blocks} + more_blocks < (int64_t{1} << 31);
  }

  int group_of(const SgdEmaSpan<T>& span) const {
    int g = 0;
    while (g < groups && (scale[g] != span.scale || weight_decay[g] != span.weight_decay)) ++g;
    return g;
  }

  // `size` elements of the span from `begin` on.
  void add(const SgdEmaSpan<T>& span, int64_t begin, int64_t size, int64_t more_blocks) {
    const int g = group_of(span), i = tensors++;
    if (g == groups) scale[g] = span.scale, weight_decay[g] = span.weight_decay, ++groups;
    weight[i] = span.weight + begin, shadow[i] = span.shadow + begin;
    gradient[i] = span.gradient ? span.gradient + begin : nullptr;
    velocity[i] = span.velocity ? span.velocity + begin : nullptr;
    count[i] = uint32_t(size), first_block[i] = blocks, group[i] = uint8_t(g);
    blocks += uint32_t(more_blocks);
  }
};
static_assert(sizeof(SgdEmaTable<double>) <= 4096, "all of a kernel's arguments together");

template <typename T>
struct Pointers {
  T* weight;
  const T* gradient;
  T* velocity;
  T* shadow;
};

template <typename T, int kLanes>
__device__ __forceinline__ void update_packet(const SgdEma<T>& s, const Pointers<T>& p, int at) {
  using P = Packet<T, kLanes>;
  P weight = reinterpret_cast<const P*>(p.weight)[at], shadow = reinterpret_cast<const P*>(p.shadow)[at];
  P gradient{}, velocity{};
  if (p.gradient) gradient = reinterpret_cast<const P*>(p.gradient)[at];
  if (p.velocity) velocity = reinterpret_cast<const P*>(p.velocity)[at];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    if (!p.gradient) {
      average(s, weight.lane[i], shadow.lane[i]);
      continue;
    }
    T direction = decayed_gradient(s, gradient.lane[i], weight.lane[i]);
    if (p.velocity) direction = momentum_direction(s, direction, velocity.lane[i]);
    descend(s, direction, weight.lane[i], shadow.lane[i]);
  }
  reinterpret_cast<P*>(p.weight)[at] = weight;
  reinterpret_cast<P*>(p.shadow)[at] = shadow;
  if (p.velocity) reinterpret_cast<P*>(p.velocity)[at] = velocity;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) sgd_ema_kernel(const __grid_constant__ SgdEmaTable<T> table) {
  if (table.options.skipped()) return;
  // The last tensor that begins at this block or before it.
  int k = 0;
  for (int after = table.tensors; after - k > 1;) {
    const int middle = (k + after) / 2;
    if (table.first_block[middle] <= blockIdx.x)
      k = middle;
    else
      after = middle;
  }
  const int g = table.group[k];
  const SgdEma<T> s = table.options.template of_tensor<T>(table.scale[g], table.weight_decay[g]);
  const int64_t begin = int64_t{blockIdx.x - table.first_block[k]} * kPerBlock;
  const int count = int(min(kPerBlock, int64_t{table.count[k]} - begin));
  const Pointers<T> p{table.weight[k] + begin, table.gradient[k] ? table.gradient[k] + begin : nullptr,
                      table.velocity[k] ? table.velocity[k] + begin : nullptr, table.shadow[k] + begin};
  constexpr int kLanes = 16 / sizeof(T);
  const auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  const bool wide = (address(p.weight) | address(p.gradient) | address(p.velocity) | address(p.shadow)) % 16 == 0;
  const int packets = wide ? count / kLanes : 0;
  // Copies of the body would not load earlier, for the stores may alias, and cost registers.
#pragma unroll 1
  for (int i = int(threadIdx.x); i < packets; i += kThreads) update_packet<T, kLanes>(s, p, i);
#pragma unroll 1
  for (int i = packets * kLanes + int(threadIdx.x); i < count; i += kThreads) update_packet<T, 1>(s, p, i);
}

template <typename T>
void update(const SgdEmaTable<T>& table, const LaunchScope& scope) {
  if (table.blocks > 0) launch(sgd_ema_kernel<T>, {.blocks = table.blocks, .threads = kThreads}, scope, table);
}

struct Cuda {
  using Scope = LaunchScope;

  template <typename T>
  static void run(const std::vector<SgdEmaSpan<T>>& spans, const SgdEmaOptions& options, const Scope& scope) {
    SgdEmaTable<T> table{};
    table.options = options;
    for (const SgdEmaSpan<T>& span : spans)
      for (int64_t begin = 0; begin < span.count; begin += kMostElements) {
        const int64_t size = std::min(kMostElements, span.count - begin);
        const int64_t blocks = (size + kPerBlock - 1) / kPerBlock;
        if (!table.takes(span, blocks)) {
          update(table, scope);
          table.tensors = table.groups = 0, table.blocks = 0;
        }
        table.add(span, begin, size, blocks);
      }
    update(table, scope);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CUDA, m) { m.impl("sgd_ema_", &sgd_ema_<Cuda>); }

}  // namespace interlude
