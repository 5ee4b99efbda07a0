// Training-mode batch norm and leaky ReLU in one op, on channels-last images. Forward: statistics, then one pass
// that writes. Backward: two sums, then one pass that writes; what went into the activation is computed anew.
//   x [N, C, H, W], weight [C], bias [C] -> y like x, mean [C], variance [C] (biased)
// Pixels are summed by chunks of fixed size and chunks in order, whatever the number of threads.
#include "../math/batch_norm.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../checks.h"

namespace interlude {
namespace {

constexpr int64_t kChunk = 16384;  // elements whose second reading finds them in cache
constexpr int kLanes = 16;         // channels summed in registers

struct Chunks {
  int64_t pixels, channels, size, count;  // size: pixels of a chunk

  explicit Chunks(const at::Tensor& x)
      : pixels(x.size(0) * x.size(2) * x.size(3)),
        channels(x.size(1)),
        size(std::max<int64_t>(1, kChunk / std::max<int64_t>(1, channels))),
        count((pixels + size - 1) / size) {}

  // body(chunk, first element, its pixels)
  template <typename Body>
  void run(const Body& body) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i, i * size * channels, std::min(size, pixels - i * size));
    });
  }
};

// sums[c] = sum over pixels of value(offset, c), `lanes` channels from c on.
template <int lanes, typename T, typename Value>
inline void sum_lanes(int64_t pixels, int64_t channels, int64_t c, T* sums, const Value& value) {
  T sum[lanes] = {};
  for (int64_t p = 0; p < pixels; ++p)
#pragma omp simd
    for (int j = 0; j < lanes; ++j) sum[j] += value(p * channels + c + j, c + j);
  for (int j = 0; j < lanes; ++j) sums[c + j] = sum[j];
}

template <typename T, typename Value>
inline void sum_pixels(int64_t pixels, int64_t channels, T* sums, const Value& value) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) sum_lanes<kLanes>(pixels, channels, c, sums, value);
  for (; c < channels; ++c) sum_lanes<1>(pixels, channels, c, sums, value);
}

template <typename T>
void statistics(const Chunks& chunks, const T* x, T* part, T* mean, T* variance) {
  const int64_t channels = chunks.channels;
  chunks.run([&](int64_t i, int64_t first, int64_t pixels) {
    const T* from = x + first;
    T *means = part + 2 * i * channels, *squares = means + channels;
    sum_pixels(pixels, channels, means, [=](int64_t k, int64_t) { return from[k]; });
    for (int64_t c = 0; c < channels; ++c) means[c] /= T(pixels);
    sum_pixels(pixels, channels, squares, [=](int64_t k, int64_t c) {
      const T difference = from[k] - means[c];
      return difference * difference;
    });
  });
  for (int64_t c = 0; c < channels; ++c) {
    Moments all;
    for (int64_t i = 0; i < chunks.count; ++i) {
      const int64_t pixels = std::min(chunks.size, chunks.pixels - i * chunks.size);
      all.join(double(pixels), part[2 * i * channels + c], part[(2 * i + 1) * channels + c]);
    }
    mean[c] = T(all.mean);
    variance[c] = T(all.squares / all.count);
  }
}

// scale and shift of the normalization as one: y = scale x + shift.
template <typename T>
void fold(int64_t channels, const T* mean, const T* variance, double eps, const T* weight, const T* bias, T* scale,
          T* shift) {
  for (int64_t c = 0; c < channels; ++c) {
    scale[c] = T(weight[c] / std::sqrt(variance[c] + eps));
    shift[c] = bias[c] - mean[c] * scale[c];
  }
}

template <typename T>
void normalize(const Chunks& chunks, const T* x, const T* scale, const T* shift, T slope, T* y) {
  const int64_t channels = chunks.channels;
  chunks.run([&](int64_t, int64_t first, int64_t pixels) {
    for (int64_t k = first; k < first + pixels * channels; k += channels)
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) y[k + c] = leaky(x[k + c] * scale[c] + shift[c], slope);
  });
}

// part: by chunk, sums over its pixels of the gradient in front of the activation, and of that times (x - mean).
template <typename T>
void sum_gradients(const Chunks& chunks, const T* x, const T* grad, const T* mean, const T* scale, const T* shift,
                   T slope, T* part) {
  const int64_t channels = chunks.channels;
  chunks.run([&](int64_t i, int64_t first, int64_t pixels) {
    T *sums = part + 2 * i * channels, *products = sums + channels;
    std::fill(sums, sums + 2 * channels, T(0));
    for (int64_t k = first; k < first + pixels * channels; k += channels)
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const T g = leaky_gradient(x[k + c] * scale[c] + shift[c], grad[k + c], slope);
        sums[c] += g;
        products[c] += g * (x[k + c] - mean[c]);
      }
  });
}

// The gradient of x: scale g + slant x + offset, the last two from the two sums.
template <typename T>
void input_gradient(const Chunks& chunks, const T* x, const T* grad, const T* scale, const T* shift, const T* slant,
                    const T* offset, T slope, T* to) {
  const int64_t channels = chunks.channels;
  chunks.run([&](int64_t, int64_t first, int64_t pixels) {
    for (int64_t k = first; k < first + pixels * channels; k += channels)
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const T value = x[k + c], g = leaky_gradient(value * scale[c] + shift[c], grad[k + c], slope);
        to[k + c] = scale[c] * g + (slant[c] * value + offset[c]);
      }
  });
}

using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Three forward(const at::Tensor& x_in, const at::Tensor& weight_in, const at::Tensor& bias_in, double eps,
              double slope) {
  check_batch_norm(x_in, weight_in, bias_in);
  const at::Tensor x = x_in.contiguous(at::MemoryFormat::ChannelsLast), weight = weight_in.contiguous();
  const at::Tensor bias = bias_in.contiguous();
  const Chunks chunks(x);
  at::Tensor y = at::empty_like(x), mean = at::empty_like(weight), variance = at::empty_like(weight);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm_leaky_relu", [&] {
    using T = scalar_t;
    at::Tensor part = at::empty({chunks.count + 1, 2, chunks.channels}, x.options());
    T* work = part.mutable_data_ptr<T>();
    T *scale = work + 2 * chunks.count * chunks.channels, *shift = scale + chunks.channels;
    T *means = mean.mutable_data_ptr<T>(), *variances = variance.mutable_data_ptr<T>();
    statistics(chunks, x.const_data_ptr<T>(), work, means, variances);
    fold(chunks.channels, means, variances, eps, weight.const_data_ptr<T>(), bias.const_data_ptr<T>(), scale, shift);
    normalize(chunks, x.const_data_ptr<T>(), scale, shift, T(slope), y.mutable_data_ptr<T>());
  });
  return {y, mean, variance};
}

Three backward(const at::Tensor& grad_in, const at::Tensor& x_in, const at::Tensor& weight_in,
               const at::Tensor& bias_in, const at::Tensor& mean_in, const at::Tensor& variance_in, double eps,
               double slope) {
  check_batch_norm_backward(grad_in, x_in, weight_in, bias_in, mean_in, variance_in);
  const at::Tensor x = x_in.contiguous(at::MemoryFormat::ChannelsLast), weight = weight_in.contiguous();
  const at::Tensor grad = grad_in.contiguous(at::MemoryFormat::ChannelsLast), bias = bias_in.contiguous();
  const at::Tensor mean = mean_in.contiguous(), variance = variance_in.contiguous();
  const Chunks chunks(x);
  at::Tensor grad_x = at::empty_like(x), grad_weight = at::empty_like(weight), grad_bias = at::empty_like(weight);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm_leaky_relu_backward", [&] {
    using T = scalar_t;
    const int64_t channels = chunks.channels;
    at::Tensor part = at::empty({chunks.count + 2, 2, channels}, x.options());
    T *work = part.mutable_data_ptr<T>(), *scale = work + 2 * chunks.count * channels, *shift = scale + channels;
    T *slant = shift + channels, *offset = slant + channels;
    const T *from = x.const_data_ptr<T>(), *gradient = grad.const_data_ptr<T>(), *means = mean.const_data_ptr<T>();
    const T* variances = variance.const_data_ptr<T>();
    fold(channels, means, variances, eps, weight.const_data_ptr<T>(), bias.const_data_ptr<T>(), scale, shift);
    sum_gradients(chunks, from, gradient, means, scale, shift, T(slope), work);
    T *of_weight = grad_weight.mutable_data_ptr<T>(), *of_bias = grad_bias.mutable_data_ptr<T>();
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, product = 0;
      for (int64_t i = 0; i < chunks.count; ++i) {
        sum += work[2 * i * channels + c];
        product += work[(2 * i + 1) * channels + c];
      }
      const double n = double(chunks.pixels), s = scale[c], inverse = 1 / std::sqrt(variances[c] + eps);
      of_weight[c] = T(product * inverse);
      of_bias[c] = T(sum);
      slant[c] = T(-s * inverse * inverse * product / n);
      offset[c] = T(-s * sum / n - slant[c] * means[c]);
    }
    input_gradient(chunks, from, gradient, scale, shift, slant, offset, T(slope), grad_x.mutable_data_ptr<T>());
  });
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CPU, m) {
  m.impl("batch_norm_leaky_relu", &forward);
  m.impl("batch_norm_leaky_relu_backward", &backward);
}

}  // namespace interlude
