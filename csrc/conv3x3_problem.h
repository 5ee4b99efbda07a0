// A 3x3 convolution, stride 1, padding 1, on channels-last images, and the kernels that a vector unit brings.
#pragma once

#include <cstdint>

namespace interlude {

constexpr int64_t kTileOut = 4;  // side of a tile of outputs

// x [images, height, width, inputs] -> y [images, height, width, outputs]; both channel counts multiples of 8.
struct Conv3x3 {
  int64_t images, height, width, inputs, outputs;

  int64_t tiles_y() const { return (height + kTileOut - 1) / kTileOut; }
  int64_t tiles_x() const { return (width + kTileOut - 1) / kTileOut; }
  int64_t tiles() const { return images * tiles_y() * tiles_x(); }
};

// Taps at data[k * output + c * input + i * row + j * column]. Strides may be negative: flipped taps.
struct Conv3x3Weights {
  const float* data;
  int64_t output, input, row, column;
};

inline int64_t panels(int64_t channels, int64_t panel) { return (channels + panel - 1) / panel; }

struct Conv3x3Kernels {
  int64_t panel;
  void (*transform_weights)(const Conv3x3&, const Conv3x3Weights&, int64_t panel, int64_t input, float* u);
  void (*convolve_tiles)(const Conv3x3&, const float* x, const float* u, const float* bias, float* y, int64_t first,
                         int64_t count, int64_t block, float* scratch);
  void (*add_weight_gradient)(const Conv3x3&, const float* x, const float* grad, int64_t first, int64_t count,
                              int64_t block, int64_t first_output, int64_t slice, float* scratch, float* du);
  void (*collect_weights)(const Conv3x3&, const float* du, int64_t parts, int64_t stride, int64_t input,
                          int64_t first_output, int64_t slice, float* grad);
};

// Null where the processor or the compiler has no such unit.
const Conv3x3Kernels* conv3x3_avx2();

}  // namespace interlude
