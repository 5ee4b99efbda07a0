// The Winograd convolution for one vector width: no torch, no threads. Included by conv3x3_<unit>.cpp, which opens
// the target, the namespace and `Vec` (kSize floats) first. Layouts, P = 2 kSize channels:
//   U  [K/P, 36, C, P]     weights at the points        V, D [36, C/P, T, P]  tiles of inputs, of gradients
//   M  [36, T, P]          products of a block of tiles  dU   [36, C, Kp]
// T tiles stand one after another over images, rows and columns.

constexpr int kPanel = 2 * Vec::kSize;
constexpr int kRows = 6;  // tiles of one micro-kernel: 12 accumulators

// First pixel of a tile's six by six window, which begins one row and one column outside of the tile.
struct Place {
  int64_t image, y, x;
};

IF_INLINE Place place_of(const Conv3x3& c, int64_t tile) {
  const int64_t row = tile / c.tiles_x(), image = row / c.tiles_y();
  return {image, kTileOut * (row - image * c.tiles_y()), kTileOut * (tile - row * c.tiles_x())};
}

// Where the pixels of a window of one image lie; outside of the image `outside` takes their place.
template <int side>
inline void find_pixels(const Conv3x3& c, const float* image, int64_t y, int64_t x, int64_t channels,
                        const float* outside, const float** pixels) {
  const float* corner = image + (y * c.width + x) * channels;
  const bool whole = y >= 0 && x >= 0 && y + side <= c.height && x + side <= c.width;
  for (int64_t i = 0; i < side; ++i, corner += c.width * channels, pixels += side) {
    const bool row = y + i >= 0 && y + i < c.height;
    for (int64_t j = 0; j < side; ++j) {
      const bool inside = whole || (row && x + j >= 0 && x + j < c.width);
      pixels[j] = inside ? corner + j * channels : outside;
    }
  }
}

// The transforms of a tile for one vector of channels, columns and then rows. Never inlined, outer loops never
// unrolled: otherwise the compiler keeps, and spills, an address for each of the 36 points.
// B' d B -> 36 vectors `stride` apart.
__attribute__((noinline)) void transform_input(const float* const* pixels, int64_t channel, float* v, int64_t stride) {
  Vec half[6][6];
#pragma GCC unroll 1
  for (int j = 0; j < 6; ++j) {
    Vec d[6], t[6];
    for (int i = 0; i < 6; ++i) d[i] = Vec::load(pixels[i * 6 + j] + channel);
    winograd_input(d, t);
    for (int i = 0; i < 6; ++i) half[i][j] = t[i];
  }
#pragma GCC unroll 1
  for (int i = 0; i < 6; ++i, v += 6 * stride) {
    Vec t[6];
    winograd_input(half[i], t);
    for (int j = 0; j < 6; ++j) t[j].store(v + j * stride);
  }
}

// A g A' likewise, from a tile of gradients.
__attribute__((noinline)) void transform_gradient(const float* const* pixels, int64_t channel, float* v,
                                                  int64_t stride) {
  Vec half[6][4];
#pragma GCC unroll 1
  for (int j = 0; j < 4; ++j) {
    Vec y[4], t[6];
    for (int i = 0; i < 4; ++i) y[i] = Vec::load(pixels[i * 4 + j] + channel);
    winograd_output_adjoint(y, t);
    for (int i = 0; i < 6; ++i) half[i][j] = t[i];
  }
#pragma GCC unroll 1
  for (int i = 0; i < 6; ++i, v += 6 * stride) {
    Vec t[6];
    winograd_output_adjoint(half[i], t);
    for (int j = 0; j < 6; ++j) t[j].store(v + j * stride);
  }
}

// A' m A plus bias -> `height` x `width` pixels of a tile, rows `row` floats apart.
__attribute__((noinline)) void transform_output(const float* m, int64_t stride, Vec bias, int64_t height, int64_t width,
                                                float* y, int64_t row, int64_t pixel) {
  Vec half[4][6];
#pragma GCC unroll 1
  for (int j = 0; j < 6; ++j, m += stride) {
    Vec d[6], t[4];
    for (int i = 0; i < 6; ++i) d[i] = Vec::load(m + i * 6 * stride);
    winograd_output(d, t);
    for (int i = 0; i < 4; ++i) half[i][j] = t[i];
  }
#pragma GCC unroll 1
  for (int i = 0; i < height; ++i, y += row) {
    Vec t[4];
    winograd_output(half[i], t);
    if (width == 4) {
      for (int j = 0; j < 4; ++j) (t[j] + bias).store(y + j * pixel);
    } else {
      for (int j = 0; j < width; ++j) (t[j] + bias).store(y + j * pixel);
    }
  }
}

// rows x P sums over `depth`: a[row * row_stride + k * depth_stride] times the k-th of `depth` vectors of P in b.
template <int rows>
struct Product {
  Vec sum[rows][2];

  IF_INLINE void clear() {
    for (int r = 0; r < rows; ++r) sum[r][0] = sum[r][1] = Vec::all(0);
  }
  IF_INLINE void run(const float* a, int64_t row_stride, int64_t depth_stride, const float* b, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k, a += depth_stride, b += kPanel) {
      const Vec b0 = Vec::load(b), b1 = Vec::load(b + Vec::kSize);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const Vec x = Vec::all(a[r * row_stride]);
        sum[r][0] = multiply_add(x, b0, sum[r][0]);
        sum[r][1] = multiply_add(x, b1, sum[r][1]);
      }
    }
  }
};

// Weights of one panel and one input channel -> U.
inline void transform_weights(const Conv3x3& c, const Conv3x3Weights& w, int64_t panel, int64_t input, float* u) {
  for (int part = 0; part < 2; ++part) {
    const int64_t first = panel * kPanel + part * Vec::kSize;
    Vec half[6][3];
    for (int j = 0; j < 3; ++j) {
      Vec g[3], t[6];
      for (int i = 0; i < 3; ++i) {
        float taps[Vec::kSize] = {};
        for (int64_t k = 0; k < Vec::kSize && first + k < c.outputs; ++k)
          taps[k] = w.data[(first + k) * w.output + input * w.input + i * w.row + j * w.column];
        g[i] = Vec::load(taps);
      }
      winograd_filter(g, t);
      for (int i = 0; i < 6; ++i) half[i][j] = t[i];
    }
    for (int i = 0; i < 6; ++i) {
      Vec t[6];
      winograd_filter(half[i], t);
      for (int j = 0; j < 6; ++j)
        t[j].store(u + ((panel * 36 + i * 6 + j) * c.inputs + input) * kPanel + part * Vec::kSize);
    }
  }
}

// `count` tiles from `first` on, count <= block, block a multiple of kRows. scratch: forward_scratch(c, block).
inline void convolve_tiles(const Conv3x3& c, const float* x, const float* u, const float* bias, float* y, int64_t first,
                           int64_t count, int64_t block, float* scratch) {
  const int64_t stride_v = block * c.inputs + 16, stride_m = block * kPanel + 16;
  float *zeros = scratch, *v = zeros + c.inputs, *m = v + 36 * stride_v;
  for (int64_t i = 0; i < c.inputs; ++i) zeros[i] = 0;
  for (int64_t t = 0; t < count; ++t) {
    const Place at = place_of(c, first + t);
    const float* pixels[36];
    find_pixels<6>(c, x + at.image * c.height * c.width * c.inputs, at.y - 1, at.x - 1, c.inputs, zeros, pixels);
    for (int64_t i = 0; i < c.inputs; i += Vec::kSize) transform_input(pixels, i, v + t * c.inputs + i, stride_v);
  }
  for (int64_t panel = 0; panel * kPanel < c.outputs; ++panel) {
    for (int64_t p = 0; p < 36; ++p)
      for (int64_t t = 0; t < count; t += kRows) {
        Product<kRows> product;
        product.clear();
        product.run(v + p * stride_v + t * c.inputs, c.inputs, 1, u + (panel * 36 + p) * c.inputs * kPanel, c.inputs);
        float* out = m + p * stride_m + t * kPanel;
        for (int r = 0; r < kRows; ++r, out += kPanel) {
          product.sum[r][0].store(out);
          product.sum[r][1].store(out + Vec::kSize);
        }
      }
    for (int64_t t = 0; t < count; ++t) {
      const Place at = place_of(c, first + t);
      const int64_t height = c.height - at.y < 4 ? c.height - at.y : 4, width = c.width - at.x < 4 ? c.width - at.x : 4;
      float* corner = y + ((at.image * c.height + at.y) * c.width + at.x) * c.outputs;
      for (int64_t i = 0; i < kPanel && panel * kPanel + i < c.outputs; i += Vec::kSize) {
        const int64_t k = panel * kPanel + i;
        transform_output(m + t * kPanel + i, stride_m, bias ? Vec::load(bias + k) : Vec::all(0), height, width,
                         corner + k, c.width * c.outputs, c.outputs);
      }
    }
  }
}

template <int rows>
IF_INLINE void accumulate_rows(const float* v, const float* d, int64_t count, float* du, int64_t stride) {
  Product<rows> product;
  product.clear();
  product.run(v, 1, kPanel, d, count);
  for (int r = 0; r < rows; ++r, du += stride) {
    (Vec::load(du) + product.sum[r][0]).store(du);
    (Vec::load(du + Vec::kSize) + product.sum[r][1]).store(du + Vec::kSize);
  }
}

// dU [36, inputs, slice] += V' D at every point, of V [36, inputs / P, T, P] and D [36, outputs / P, T, P], the
// points `stride` apart.
inline void accumulate_products(const float* v, int64_t stride_v, int64_t inputs, const float* d, int64_t stride_d,
                                int64_t outputs, int64_t slice, int64_t count, int64_t block, float* du) {
  for (int64_t point = 0; point < 36; ++point, v += stride_v, d += stride_d, du += inputs * slice)
    for (int64_t i = 0; i < inputs; i += kPanel)
      for (int64_t k = 0; k < outputs; k += kPanel) {
        const float *a = v + i * block, *b = d + k * block;
        float* out = du + i * slice + k;
        int64_t rows = inputs - i < kPanel ? inputs - i : kPanel;  // 6 + 6 + 4, or 4 + 4
        for (; rows >= 10; rows -= 6, a += 6, out += 6 * slice) accumulate_rows<6>(a, b, count, out, slice);
        for (; rows > 0; rows -= 4, a += 4, out += 4 * slice) accumulate_rows<4>(a, b, count, out, slice);
      }
}

// Adds `count` tiles' share of the weights' gradient, for the outputs of one slice, to dU [36, C, slice].
inline void add_weight_gradient(const Conv3x3& c, const float* x, const float* grad, int64_t first, int64_t count,
                                int64_t block, int64_t first_output, int64_t slice, float* scratch, float* du) {
  const int64_t most = c.inputs > slice ? c.inputs : slice;
  const int64_t stride_v = panels(c.inputs, kPanel) * kPanel * block + 16, stride_d = slice * block + 16;
  float *zeros = scratch, *v = zeros + most, *d = v + 36 * stride_v;
  for (int64_t i = 0; i < most; ++i) zeros[i] = 0;
  const int64_t outputs = c.outputs - first_output < slice ? c.outputs - first_output : slice;
  for (int64_t begin = first; begin < first + count; begin += block) {
    const int64_t here = first + count - begin < block ? first + count - begin : block;
    for (int64_t t = 0; t < here; ++t) {
      const Place at = place_of(c, begin + t);
      const int64_t image = at.image * c.height * c.width;
      const float *in[36], *out[16];
      find_pixels<6>(c, x + image * c.inputs, at.y - 1, at.x - 1, c.inputs, zeros, in);
      find_pixels<4>(c, grad + image * c.outputs + first_output, at.y, at.x, c.outputs, zeros, out);
      for (int64_t i = 0; i < c.inputs; i += Vec::kSize)
        transform_input(in, i, v + (i / kPanel * block + t) * kPanel + i % kPanel, stride_v);
      for (int64_t i = 0; i < outputs; i += Vec::kSize)
        transform_gradient(out, i, d + (i / kPanel * block + t) * kPanel + i % kPanel, stride_d);
    }
    accumulate_products(v, stride_v, c.inputs, d, stride_d, outputs, slice, here, block, du);
  }
}

// G' dU G of one input channel and the outputs of one slice -> grad [K, C, 3, 3]. dU: `parts` of them, `stride` apart,
// are summed first to last.
inline void collect_weights(const Conv3x3& c, const float* du, int64_t parts, int64_t stride, int64_t input,
                            int64_t first_output, int64_t slice, float* grad) {
  for (int64_t k = 0; k < slice && first_output + k < c.outputs; k += Vec::kSize) {
    Vec half[3][6];
#pragma GCC unroll 1
    for (int j = 0; j < 6; ++j) {
      Vec u[6], t[3];
      for (int i = 0; i < 6; ++i) {
        const float* from = du + ((i * 6 + j) * c.inputs + input) * slice + k;
        u[i] = Vec::load(from);
        for (int64_t p = 1; p < parts; ++p) u[i] = u[i] + Vec::load(from + p * stride);
      }
      winograd_filter_adjoint(u, t);
      for (int i = 0; i < 3; ++i) half[i][j] = t[i];
    }
#pragma GCC unroll 1
    for (int i = 0; i < 3; ++i) {
      Vec t[3];
      winograd_filter_adjoint(half[i], t);
      for (int j = 0; j < 3; ++j) {
        float taps[Vec::kSize];
        t[j].store(taps);
        for (int64_t n = 0; n < Vec::kSize; ++n)
          grad[((first_output + k + n) * c.inputs + input) * 9 + i * 3 + j] = taps[n];
      }
    }
  }
}
