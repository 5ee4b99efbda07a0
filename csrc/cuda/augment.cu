// Weak and strong views on the GPU, one launch for all views of all rows: a block takes a row, gathers its
// flipped crop into shared memory, augments it there and writes it once, normalized, in the training dtype.
// No view exists in device memory before it is finished, but for images too large for shared memory (over
// 123 px in three channels): their blocks take two buffers each in a scratch tensor.
//   store [S, H, W, C] uint8, items, rows, views [R], step [1] -> [R, C, H, W] channels-last, table's dtype.
#include <torch/library.h>

#include "augment_image.cuh"

namespace interlude {
namespace {

constexpr int kThreads = 256;

// A block's tables. Aligned, and its only static shared memory, so that the dynamic part begins aligned too.
template <int C, typename T>
struct alignas(kWord) Tables {
  T normalized[C * 256];
  int histogram[C * 256];
  uint8_t entries[C * 256];
  unsigned sums[kThreads / kWarp];
  ViewDraw draw;
};

// For the image's buffers: with the tables no more than the 99 KB that every GPU since sm_80 gives a block.
constexpr int kSharedBytes = 89 * 1024;
static_assert(kSharedBytes + sizeof(Tables<3, double>) <= 99 * 1024);

template <int kLanes, int C, typename T>
__device__ void write_normalized(const Image<C>& image, const T* normalized, T* out) {
  using Values = Packet<uint8_t, kLanes>;
#pragma unroll 1
  for (int i = threadIdx.x; i < image.count() * C / kLanes; i += blockDim.x) {
    const Values values = reinterpret_cast<const Values*>(image.pixels)[i];
    Packet<T, kLanes> written;
#pragma unroll
    for (int k = 0, c = int(unsigned(kLanes) * i % C); k < kLanes; ++k, c = c + 1 < C ? c + 1 : 0)
      written.lane[k] = normalized[c * 256 + values.lane[k]];
    reinterpret_cast<Packet<T, kLanes>*>(out)[i] = written;
  }
  __syncthreads();
}

// The image as it is stored, in words where its address allows it.
__device__ inline void copy_bytes(const uint8_t* from, uint8_t* to, int64_t bytes) {
  using P = Packet<uint8_t, kWord>;
  if ((reinterpret_cast<uintptr_t>(from) | uintptr_t(bytes)) % kWord == 0)
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < bytes / kWord; i += kThreads)
      reinterpret_cast<P*>(to)[i] = reinterpret_cast<const P*>(from)[i];
  else
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < bytes; i += kThreads) to[i] = from[i];
}

// Row r. Where the buffers are shared memory, the stored image is first copied there whole, while the last warp draws.
template <bool kInShared, int C, typename T>
__device__ __forceinline__ void make_view(const AugmentProblem<T>& p, int64_t r, uint8_t* buffers,
                                          Tables<C, T>& tables) {
  const int side = p.policy.side, part = int(threadIdx.x) - (kThreads - kWarp);
  const int64_t size = int64_t{side} * side * C;
  Image<C> image{side, p.by_side, buffers, buffers + buffer_bytes(side, C), tables.histogram, tables.entries};
  const ViewDraw& d = tables.draw;
  CUDA_KERNEL_ASSERT(p.items[r] >= 0 && p.items[r] < p.stored);
  const uint8_t* stored = p.store + p.items[r] * size;
  if (part >= 0 && part < draw_parts(p.policy))
    draw_part(p.policy, p.seed, uint64_t(*p.step), uint32_t(p.rows[r]), int(p.views[r]), part, tables.draw);
  if (kInShared) copy_bytes(stored, image.spare, size);
  __syncthreads();
  const uint8_t* source = kInShared ? image.spare : stored;
  for_each_pixel(image, [&](int i, int x, int y) {
    const int from =
        crop_source(y, d.top, p.policy.pad, side, false) * side + crop_source(x, d.left, p.policy.pad, side, d.flip);
    uint8_t pixel[C];
    for (int c = 0; c < C; ++c) pixel[c] = source[from * C + c];
    for (int c = 0; c < C; ++c) image.pixels[i * C + c] = pixel[c];
  });
#pragma unroll 1
  for (int i = 0; i < p.policy.ops; ++i) apply(image, d.op[i], p.value(d, i), p.matrix(d, i), tables.sums);
  fill_square(image, d, p.policy.fill);
  constexpr int kLanes = kWord / sizeof(T);
  T* out = p.out + r * size;
  if (size % kLanes == 0)
    write_normalized<kLanes>(image, tables.normalized, out);
  else
    write_normalized<1>(image, tables.normalized, out);
}

template <int C, typename T>
__global__ void __launch_bounds__(kThreads, 8) augment_kernel(const AugmentProblem<T> p, uint8_t* scratch) {
  IF_DYNAMIC_SHARED(dynamic);
  __shared__ Tables<C, T> tables;
  for (int i = threadIdx.x; i < C * 256; i += kThreads) tables.normalized[i] = p.table[i];
  for (int64_t r = blockIdx.x; r < p.count; r += gridDim.x)
    if (scratch)
      make_view<false>(p, r, scratch + 2 * buffer_bytes(p.policy.side, C) * blockIdx.x, tables);
    else
      make_view<true>(p, r, dynamic, tables);
}

struct Cuda {
  using Scope = LaunchScope;
  template <int C, typename T>
  static void run(const AugmentProblem<T>& p, const Scope& scope) {
    const int64_t bytes = 2 * buffer_bytes(p.policy.side, C);
    const int most =
        std::min(kSharedBytes, device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - int(sizeof(Tables<C, T>)));
    const bool shared = bytes <= most;
    const auto kernel = augment_kernel<C, T>;
    // Always the same: it is the kernel's, and another thread may be about to launch it.
    if (shared) C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    const int64_t resident = 8 * int64_t{device_attribute(cudaDevAttrMultiProcessorCount)};
    const int64_t blocks = shared ? p.count : std::min(p.count, resident);
    at::Tensor scratch;
    if (!shared) scratch = at::empty({blocks * bytes}, at::TensorOptions().dtype(at::kByte).device(scope.device));
    launch(kernel, {.blocks = blocks, .threads = kThreads, .dynamic_bytes = shared ? size_t(bytes) : 0}, scope, p,
           shared ? nullptr : scratch.mutable_data_ptr<uint8_t>());
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CUDA, m) { m.impl("augment_views", &augment_views<Cuda>); }

}  // namespace interlude
