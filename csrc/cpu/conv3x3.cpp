// 3x3 convolution, stride 1, padding 1, of channels-last float32 images by Winograd's F(4x4, 3x3) (math/winograd.h).
//   conv3x3         x [N, C, H, W], weight [K, C, 3, 3], bias [K]? -> y [N, K, H, W]
//   conv3x3_weight  x, gradient of y -> gradient of weight
// The gradient of x is conv3x3 with flipped, transposed weights. Every sum has one order, whatever the number of
// threads. What the kernels do not take (other dtypes, processors, channels) goes to the library.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../checks.h"
#include "../conv3x3_problem.h"

namespace interlude {
namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

// Null: the library's turn.
const Conv3x3Kernels* kernels_for(const at::Tensor& x, int64_t outputs) {
  const bool fits = x.scalar_type() == at::kFloat && x.size(1) % 8 == 0 && outputs % 8 == 0;
  return fits && x.numel() > 0 && outputs > 0 ? conv3x3_avx2() : nullptr;
}

Conv3x3 describe(const at::Tensor& x, int64_t outputs) { return {x.size(0), x.size(2), x.size(3), x.size(1), outputs}; }

// [K/P, 36, C, P], made anew in every call: a hundredth of the work where pixels are many.
at::Tensor transformed_weights(const Conv3x3& c, const Conv3x3Kernels& k, const at::Tensor& weight) {
  const Conv3x3Weights w{weight.const_data_ptr<float>(), weight.stride(0), weight.stride(1), weight.stride(2),
                         weight.stride(3)};
  at::Tensor u = at::empty({panels(c.outputs, k.panel), 36, c.inputs, k.panel}, weight.options());
  float* out = u.mutable_data_ptr<float>();
  at::parallel_for(0, u.size(0) * c.inputs, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) k.transform_weights(c, w, i / c.inputs, i % c.inputs, out);
  });
  return u;
}

at::Tensor conv3x3(const at::Tensor& x_in, const at::Tensor& weight, const std::optional<at::Tensor>& bias_in) {
  check_conv3x3(x_in, weight, bias_in);
  const Conv3x3Kernels* k = kernels_for(x_in, weight.size(0));
  if (!k) return at::conv2d(x_in, weight, bias_in, 1, 1).contiguous(kChannelsLast);
  const at::Tensor x = x_in.contiguous(kChannelsLast);
  const Conv3x3 c = describe(x, weight.size(0));
  const at::Tensor u = transformed_weights(c, *k, weight), bias = bias_in ? bias_in->contiguous() : at::Tensor();
  at::Tensor y = at::empty({c.images, c.outputs, c.height, c.width}, x.options(), kChannelsLast);
  const float *from = x.const_data_ptr<float>(), *points = u.const_data_ptr<float>();
  const float* add = bias_in ? bias.const_data_ptr<float>() : nullptr;
  float* to = y.mutable_data_ptr<float>();
  // Tiles at once: their inputs at the points should stay in L2, while the weights, where they do not, are read
  // once for many tiles.
  const int64_t tiles = c.tiles(), block = c.inputs < 128 ? 24 : 48;
  at::parallel_for(0, panels(tiles, block), 1, [&](int64_t begin, int64_t end) {
    at::Tensor scratch = at::empty({c.inputs + 36 * (block * (c.inputs + k->panel) + 32)}, x.options());
    float* work = scratch.mutable_data_ptr<float>();
    for (int64_t first = begin * block; first < std::min(tiles, end * block); first += block)
      k->convolve_tiles(c, from, points, add, to, first, std::min(block, tiles - first), block, work);
  });
  return y;
}

at::Tensor library_weight_gradient(const at::Tensor& x, const at::Tensor& grad) {
  const at::Tensor weight = at::empty({grad.size(1), x.size(1), 3, 3}, x.options());
  const at::Tensor w = std::get<1>(at::convolution_backward(grad, x, weight, std::nullopt, {1, 1}, {1, 1}, {1, 1},
                                                            false, {0, 0}, 1, {false, true, false}));
  return w.contiguous();
}

at::Tensor conv3x3_weight(const at::Tensor& x_in, const at::Tensor& grad_in) {
  check_conv3x3_weight(x_in, grad_in);
  const Conv3x3Kernels* k = kernels_for(x_in, grad_in.size(1));
  if (!k) return library_weight_gradient(x_in, grad_in);
  const at::Tensor x = x_in.contiguous(kChannelsLast), grad = grad_in.contiguous(kChannelsLast);
  const Conv3x3 c = describe(x, grad.size(1));
  // A task is a slice of outputs for a part of the tiles. Parts depend on shapes alone, so that the order of the
  // sum does too: at least 512 tiles, and all parts' dU together at most 32 MiB.
  const int64_t slice = std::min<int64_t>(64, panels(c.outputs, k->panel) * k->panel);
  const int64_t slices = panels(c.outputs, slice), slice_size = 36 * c.inputs * slice, size = slices * slice_size;
  const int64_t tiles = c.tiles(), most = std::min<int64_t>(32, (int64_t{8} << 20) / size);
  const int64_t parts = std::clamp<int64_t>(most, 1, panels(tiles, 512)), share = panels(tiles, parts), block = 96;
  const int64_t rows = panels(c.inputs, k->panel) * k->panel + slice;
  at::Tensor du = at::empty({parts, slices, slice_size}, x.options());
  at::Tensor w = at::empty({c.outputs, c.inputs, 3, 3}, x.options());
  const float *from = x.const_data_ptr<float>(), *gradient = grad.const_data_ptr<float>();
  float *sums = du.mutable_data_ptr<float>(), *to = w.mutable_data_ptr<float>();
  at::parallel_for(0, parts * slices, 1, [&](int64_t begin, int64_t end) {
    at::Tensor scratch = at::empty({rows + 36 * (block * rows + 32)}, x.options());
    float* work = scratch.mutable_data_ptr<float>();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / slices * share, count = std::min(share, tiles - first);
      float* sum = sums + i * slice_size;
      std::fill(sum, sum + slice_size, 0.0f);
      k->add_weight_gradient(c, from, gradient, first, count, block, i % slices * slice, slice, work, sum);
    }
  });
  at::parallel_for(0, slices * c.inputs, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / c.inputs;
      k->collect_weights(c, sums + s * slice_size, parts, size, i % c.inputs, s * slice, slice, to);
    }
  });
  return w;
}

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CPU, m) {
  m.impl("conv3x3", &conv3x3);
  m.impl("conv3x3_weight", &conv3x3_weight);
}

}  // namespace interlude
