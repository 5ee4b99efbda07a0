// One view's image in a block's hands: where its pixels are, and RandAugment's operations on them, all threads of the
// block at work on one image. Pixels become what math/augment.h says.
#pragma once

#include "../augment_problem.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace interlude {

constexpr int kWord = 16;  // bytes of the widest access

// Blocks work on one image at a time, a word or a pixel a thread; every function below ends with a barrier.
template <int C>
struct Image {
  int side;
  Divisor by_side;
  uint8_t* pixels;
  uint8_t* spare;
  int* histogram;    // [C, 256]
  uint8_t* entries;  // [C, 256]

  __device__ int count() const { return side * side; }
};

// Bytes of each of an image's two buffers: whole words.
__host__ __device__ inline int64_t buffer_bytes(int side, int channels) {
  return (int64_t{side} * side * channels + kWord - 1) / kWord * kWord;
}

// f(channel, value) becomes each value, four at a time; the last word may reach beyond them, inside the buffer.
template <int C, typename F>
__device__ void map_values(const Image<C>& image, F f) {
  using P = Packet<uint8_t, 4>;
#pragma unroll 1
  for (int i = threadIdx.x; i < (image.count() * C + 3) / 4; i += blockDim.x) {
    P word = reinterpret_cast<P*>(image.pixels)[i];
#pragma unroll
    for (int k = 0, c = int(4u * i % C); k < 4; ++k, c = c + 1 < C ? c + 1 : 0) word.lane[k] = f(c, word.lane[k]);
    reinterpret_cast<P*>(image.pixels)[i] = word;
  }
  __syncthreads();
}

template <int C, typename F>
__device__ void for_each_pixel(const Image<C>& image, F f) {
#pragma unroll 1
  for (int i = threadIdx.x; i < image.count(); i += blockDim.x) {
    const int y = image.by_side.quotient(i);
    f(i, i - y * image.side, y);
  }
  __syncthreads();
}

template <int C>
__device__ int grey(const uint8_t* pixel) {
  return C == 1 ? pixel[0] : luma(pixel[0], pixel[1], pixel[2]);
}

template <int C>
__device__ void affine(Image<C>& image, const int64_t* matrix) {
  int64_t m[6];
  for (int k = 0; k < 6; ++k) m[k] = matrix[k];
  for_each_pixel(image, [&](int i, int x, int y) {
    const int source = affine_source(m, x, y, image.side);
    uint8_t pixel[C];
    for (int c = 0; c < C; ++c) pixel[c] = image.pixels[max(source, 0) * C + c];
    for (int c = 0; c < C; ++c) image.spare[i * C + c] = source < 0 ? 0 : pixel[c];
  });
  uint8_t* done = image.spare;
  image.spare = image.pixels, image.pixels = done;
}

template <int C>
__device__ void contrast(const Image<C>& image, float factor, unsigned* shared) {
  unsigned sum = 0;  // 255 * 4096^2, the most, fits
  for (int i = threadIdx.x; i < image.count(); i += blockDim.x) sum += grey<C>(image.pixels + i * C);
  const int mean = mean_grey(block_sum(sum, shared), image.count());
  map_values(image, [&](int, int value) { return blend(mean, value, factor); });
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
#pragma unroll 1  // eight copies of a division in double cost registers
    for (int v = lane * 8; v < lane * 8 + 8; before += h[v++])
      image.entries[c * 256 + v] = equalize ? equalize_entry(v, before, step) : autocontrast_entry(v, low, high);
  }
  __syncthreads();
}

template <int C>
__device__ void stretch(const Image<C>& image, bool equalize) {
  for (int i = threadIdx.x; i < C * 256; i += blockDim.x) image.histogram[i] = 0;
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < image.count(); i += blockDim.x)
    for (int c = 0; c < C; ++c) atomicAdd(image.histogram + c * 256 + image.pixels[i * C + c], 1);
  __syncthreads();
  stretch_entries(image, equalize);
  map_values(image, [&](int c, int value) { return image.entries[c * 256 + value]; });
}

template <int C>
__device__ void color(const Image<C>& image, float factor) {
#pragma unroll 1
  for (int i = threadIdx.x; i < image.count(); i += blockDim.x) {
    uint8_t* pixel = image.pixels + i * C;
    const int l = grey<C>(pixel);
    for (int c = 0; c < C; ++c) pixel[c] = blend(l, pixel[c], factor);
  }
  __syncthreads();
}

template <int C>
__device__ void apply(Image<C>& image, int op, float factor, const int64_t* matrix, unsigned* shared) {
  const int whole = int(factor);
  switch (op) {
    case kAutoContrast:
    case kEqualize:
      return stretch(image, op == kEqualize);
    case kBrightness:
      return map_values(image, [&](int, int value) { return blend(0, value, factor); });
    case kColor:
      return color(image, factor);
    case kContrast:
      return contrast(image, factor, shared);
    case kSharpness:
      return sharpness(image, factor);
    case kPosterize:
      return map_values(image, [&](int, int value) { return posterize(value, whole); });
    case kSolarize:
      return map_values(image, [&](int, int value) { return solarize(value, whole); });
    case kIdentity:
      return;
    default:
      return affine(image, matrix);
  }
}

template <int C>
__device__ void fill_square(const Image<C>& image, const ViewDraw& d, const uint8_t* fill) {
  if (d.x1 < d.x0) return;
  const int right = min(d.x1, image.side - 1), bottom = min(d.y1, image.side - 1);
  for (int y = d.y0 + int(threadIdx.x) / kWarp; y <= bottom; y += int(blockDim.x) / kWarp)
#pragma unroll 1
    for (int x = d.x0 + int(threadIdx.x) % kWarp; x <= right; x += kWarp)
      for (int c = 0; c < C; ++c) image.pixels[(y * image.side + x) * C + c] = fill[c];
  __syncthreads();
}

}  // namespace interlude
