// Weak and strong views on the GPU, one launch for all views of all rows: a block takes a row, gathers its
// flipped crop into shared memory, augments it there and writes it once, normalized, in the training dtype.
// No view exists in device memory before it is finished, but for images too large for shared memory (over
// 123 px in three channels): their blocks take two buffers each in a scratch tensor.
//   store [S, H, W, C] uint8, items, rows, views [R], step [1] -> [R, C, H, W] channels-last, table's dtype.
#include <torch/library.h>

#include "../augment_problem.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace interlude {
namespace {

constexpr int kThreads = 256;
constexpr int kSharedBytes = 90 * 1024;  // with the tables below 99 KB, the least that sm_80 and later give a block

// Blocks work on one image at a time; every function below ends with a barrier.
template <int C>
struct Image {
  int side;
  uint8_t* pixels;
  uint8_t* spare;
  int* histogram;    // [C, 256]
  uint8_t* entries;  // [C, 256]

  __device__ int count() const { return side * side; }
};

template <int C, typename F>
__device__ void for_each_value(const Image<C>& image, F f) {
  for (int i = threadIdx.x; i < image.count() * C; i += blockDim.x) f(i);
  __syncthreads();
}

template <int C, typename F>
__device__ void for_each_pixel(const Image<C>& image, F f) {
  for (int i = threadIdx.x; i < image.count(); i += blockDim.x) f(i, i % image.side, i / image.side);
  __syncthreads();
}

template <int C>
__device__ int grey(const uint8_t* pixel) {
  return C == 1 ? pixel[0] : luma(pixel[0], pixel[1], pixel[2]);
}

template <int C>
__device__ void affine(Image<C>& image, const int64_t* m) {
  for_each_pixel(image, [&](int i, int x, int y) {
    const int source = affine_source(m, x, y, image.side);
    for (int c = 0; c < C; ++c) image.spare[i * C + c] = source < 0 ? 0 : image.pixels[source * C + c];
  });
  uint8_t* done = image.spare;
  image.spare = image.pixels, image.pixels = done;
}

template <int C>
__device__ void contrast(const Image<C>& image, float factor) {
  __shared__ unsigned shared[kThreads / kWarp];
  unsigned sum = 0;  // 255 * 4096^2, the most, fits
  for (int i = threadIdx.x; i < image.count(); i += blockDim.x) sum += grey<C>(image.pixels + i * C);
  const int mean = mean_grey(block_sum(sum, shared), image.count());
  for_each_value(image, [&](int i) { image.pixels[i] = blend(mean, image.pixels[i], factor); });
}

template <int C>
__device__ void sharpness(Image<C>& image, float factor) {
  const int stride = image.side * C;
  for_each_pixel(image, [&](int i, int x, int y) {
    const bool border = x == 0 || y == 0 || x == image.side - 1 || y == image.side - 1;
    for (int c = 0; c < C; ++c) {
      const uint8_t* at = image.pixels + i * C + c;
      if (border) {
        image.spare[i * C + c] = *at;
        continue;
      }
      int total = 4 * at[0];
      for (int dy = -stride; dy <= stride; dy += stride) total += at[dy - C] + at[dy] + at[dy + C];
      image.spare[i * C + c] = blend(smooth(total), at[0], factor);
    }
  });
  uint8_t* done = image.spare;
  image.spare = image.pixels, image.pixels = done;
}

// A channel's table of 256 entries from its histogram, a warp a channel, eight values a lane.
template <int C>
__device__ void stretch_entries(const Image<C>& image, bool equalize) {
  const int c = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (c < C) {
    const int* h = image.histogram + c * 256;
    int low = 255, high = 0, mine = 0;
    for (int v = lane * 8; v < lane * 8 + 8; ++v) {
      if (h[v]) low = v < low ? v : low, high = v;
      mine += h[v];
    }
    int before = mine;  // inclusive prefix sum over the lanes, then exclusive
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, before, offset);
      if (lane >= offset) before += other;
    }
    before -= mine;
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const int other_low = __shfl_xor_sync(0xffffffffu, low, offset);
      const int other_high = __shfl_xor_sync(0xffffffffu, high, offset);
      low = other_low < low ? other_low : low, high = other_high > high ? other_high : high;
    }
    const int step = (image.count() - h[high]) / 255;
    for (int v = lane * 8; v < lane * 8 + 8; before += h[v++])
      image.entries[c * 256 + v] = equalize ? equalize_entry(v, before, step) : autocontrast_entry(v, low, high);
  }
  __syncthreads();
}

template <int C>
__device__ void stretch(const Image<C>& image, bool equalize) {
  for (int i = threadIdx.x; i < C * 256; i += blockDim.x) image.histogram[i] = 0;
  __syncthreads();
  for_each_value(image, [&](int i) { atomicAdd(image.histogram + (i % C) * 256 + image.pixels[i], 1); });
  stretch_entries(image, equalize);
  for_each_value(image, [&](int i) { image.pixels[i] = image.entries[(i % C) * 256 + image.pixels[i]]; });
}

template <int C>
__device__ void color(const Image<C>& image, float factor) {
  for_each_pixel(image, [&](int i, int, int) {
    uint8_t* pixel = image.pixels + i * C;
    const int l = grey<C>(pixel);
    for (int c = 0; c < C; ++c) pixel[c] = blend(l, pixel[c], factor);
  });
}

template <int C>
__device__ void apply(Image<C>& image, int op, float value, const int64_t* matrix) {
  uint8_t* pixels = image.pixels;
  const int whole = int(value);
  switch (op) {
    case kAutoContrast:
    case kEqualize:
      return stretch(image, op == kEqualize);
    case kBrightness:
      return for_each_value(image, [&](int i) { pixels[i] = blend(0, pixels[i], value); });
    case kColor:
      return color(image, value);
    case kContrast:
      return contrast(image, value);
    case kSharpness:
      return sharpness(image, value);
    case kPosterize:
      return for_each_value(image, [&](int i) { pixels[i] = posterize(pixels[i], whole); });
    case kSolarize:
      return for_each_value(image, [&](int i) { pixels[i] = solarize(pixels[i], whole); });
    case kIdentity:
      return;
    default:
      return affine(image, matrix);
  }
}

template <int C, typename T>
__global__ void __launch_bounds__(kThreads) augment_kernel(const AugmentProblem<T> p, uint8_t* scratch) {
  IF_DYNAMIC_SHARED(dynamic);
  __shared__ ViewDraw d;
  __shared__ int histogram[C * 256];
  __shared__ uint8_t entries[C * 256];
  const int side = p.policy.side;
  const int64_t size = int64_t{side} * side * C;
  uint8_t* buffers = scratch ? scratch + 2 * size * blockIdx.x : dynamic;
  for (int64_t r = blockIdx.x; r < p.count; r += gridDim.x) {
    if (threadIdx.x == 0) d = draw_view(p.policy, p.seed, uint64_t(*p.step), uint32_t(p.rows[r]), int(p.views[r]));
    __syncthreads();
    Image<C> image{side, buffers, buffers + size, histogram, entries};
    CUDA_KERNEL_ASSERT(p.items[r] >= 0 && p.items[r] < p.stored);
    const uint8_t* source = p.store + p.items[r] * size;
    for_each_pixel(image, [&](int i, int x, int y) {
      const int from =
          crop_source(y, d.top, p.policy.pad, side, false) * side + crop_source(x, d.left, p.policy.pad, side, d.flip);
      for (int c = 0; c < C; ++c) image.pixels[i * C + c] = source[from * C + c];
    });
    for (int i = 0; i < p.policy.ops; ++i) apply(image, d.op[i], p.value(d, i), p.matrix(d, i));
    T* out = p.out + r * size;
    for_each_pixel(image, [&](int i, int x, int y) {
      const bool filled = in_square(d, x, y);
      for (int c = 0; c < C; ++c)
        out[i * C + c] = p.table[c * 256 + (filled ? p.policy.fill[c] : image.pixels[i * C + c])];
    });
  }
}

struct Cuda {
  using Scope = LaunchScope;
  template <int C, typename T>
  static void run(const AugmentProblem<T>& p, const Scope& scope) {
    const int64_t bytes = 2 * int64_t{p.policy.side} * p.policy.side * C;
    const bool shared = bytes <= std::min(kSharedBytes, device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
    const auto kernel = augment_kernel<C, T>;
    if (shared) C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
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
