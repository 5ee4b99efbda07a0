// Weak and strong views on the CPU: for every row of the batch its image is cropped, augmented and
// normalized while it lies in cache, and written once. Nothing is stored between the stages.
//   store [S, H, W, C] uint8, items, rows, views [R], step [1] -> [R, C, H, W] channels-last, table's dtype.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <vector>

#include "../augment_problem.h"
#include "vectorized.h"

namespace interlude {
namespace {

// One image, uint8 [side, side, C], and the buffer that out-of-place operations write; one more byte than
// the image has can be read and written in both. Operations on single values are collected in `map`, which
// whatever needs the values themselves applies: they cost 256 entries and no pass over the pixels.
template <int C>
struct Image {
  int side;
  uint8_t* pixels;
  uint8_t* spare;
  bool mapped = false;
  uint8_t map[C * 256];  // as [C, 256]

  int mapped_value(int c, int v) const { return mapped ? map[c * 256 + v] : v; }
  int count() const { return side * side; }
  int stride() const { return side * C; }
  void swap() { std::swap(pixels, spare); }
};

// to[i] = table[channel][from[i]], from words: loads of single bytes would be the most of the work.
template <int C, typename T>
void look_up(const uint8_t* from, int64_t pixels, const T* table, T* to) {
  constexpr int kBlock = 12;  // whole pixels and whole words
  int64_t i = 0;
  for (; std::endian::native == std::endian::little && i + kBlock <= pixels * C; i += kBlock) {
    uint32_t words[kBlock / 4];
    T found[kBlock];
    std::memcpy(words, from + i, kBlock);
    for (int k = 0; k < kBlock; ++k) found[k] = table[k % C * 256 + (words[k / 4] >> k % 4 * 8 & 255)];
    std::memcpy(to + i, found, sizeof found);
  }
  for (; i < pixels * C; ++i) to[i] = table[i % C * 256 + from[i]];
}

template <int C>
void apply_map(Image<C>& image) {
  if (image.mapped) look_up<C>(image.pixels, image.count(), image.map, image.pixels);
  image.mapped = false;
}

// Value v of channel c becomes entry(c, v).
template <int C, typename F>
void map_values(Image<C>& image, F entry) {
  for (int c = 0; c < C; ++c)
    for (int v = 0; v < 256; ++v) image.map[c * 256 + v] = entry(c, image.mapped_value(c, v));
  image.mapped = true;
}

// A pixel as one word: the byte behind it belongs to the next pixel, which is written later, or to nobody.
template <int C>
void copy_pixel(const uint8_t* from, uint8_t* to) {
  std::memcpy(to, from, C == 3 ? 4 : C);
}

template <int C>
void flip_and_crop(const uint8_t* source, const ViewDraw& d, int pad, Image<C>& image, int* column) {
  const int side = image.side, shift = d.left - pad;
  uint8_t* const line = image.spare;  // copied there: reading behind the store's last byte is not allowed
  for (int x = 0; x < side; ++x) column[x] = C * crop_source(x, d.left, pad, side, d.flip);
  // Columns begin..end-1 lie side by side in the source too.
  const int begin = d.flip ? side : std::max(0, -shift), end = d.flip ? side : std::min(side, side - shift);
  for (int y = 0; y < side; ++y) {
    const uint8_t* from = source + int64_t{crop_source(y, d.top, pad, side, false)} * image.stride();
    uint8_t* to = image.pixels + y * image.stride();
    std::memcpy(line, from, image.stride());
    for (int x = 0; x < begin; ++x) copy_pixel<C>(line + column[x], to + x * C);
    if (begin < end) std::memcpy(to + begin * C, line + column[begin], (end - begin) * C);
    for (int x = end; x < side; ++x) copy_pixel<C>(line + column[x], to + x * C);
  }
}

// Inside the source a row is walked without multiplications or bounds; what it reads outside are its ends.
template <int C>
void affine(Image<C>& image, const int64_t* m) {
  apply_map(image);
  const int side = image.side;
  const uint8_t* const pixels = image.pixels;
  for (int y = 0; y < side; ++y) {
    uint8_t* to = image.spare + y * image.stride();
    int begin = 0, end = side;
    while (begin < end && affine_source(m, begin, y, side) < 0) ++begin;
    while (begin < end && affine_source(m, end - 1, y, side) < 0) --end;
    std::memset(to, 0, begin * C);
    if (begin < end && m[0] == 1 << 16 && m[3] == 0) {
      std::memcpy(to + begin * C, pixels + affine_source(m, begin, y, side) * C, (end - begin) * C);
    } else {
      int64_t sx = m[0] * begin + m[1] * y + m[2], sy = m[3] * begin + m[4] * y + m[5];
      for (int x = begin; x < end; ++x, sx += m[0], sy += m[3])
        copy_pixel<C>(pixels + ((sy >> 16) * side + (sx >> 16)) * C, to + x * C);
    }
    std::memset(to + end * C, 0, (side - end) * C);
  }
  image.swap();
}

IF_VECTORIZED void color_values(uint8_t* pixels, int64_t count, float factor) {
  for (int64_t i = 0; i < count; ++i) {
    const int l = luma(pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2]);
    for (int c = 0; c < 3; ++c) pixels[3 * i + c] = blend(l, pixels[3 * i + c], factor);
  }
}

template <int C>
void color(Image<C>& image, float factor) {
  if (C == 1) return;
  apply_map(image);
  color_values(image.pixels, image.count(), factor);
}

IF_VECTORIZED int64_t sum_luma(const uint8_t* pixels, int64_t count) {
  unsigned sum = 0;  // 255 * 4096^2, the most, fits
  for (int64_t i = 0; i < count; ++i) sum += luma(pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2]);
  return sum;
}

template <int C>
void contrast(Image<C>& image, float factor) {
  apply_map(image);
  const int count = image.count();
  const int64_t sum =
      C == 3 ? sum_luma(image.pixels, count) : std::accumulate(image.pixels, image.pixels + count, int64_t{0});
  const int mean = mean_grey(sum, count);
  map_values(image, [=](int, int v) { return blend(mean, v, factor); });
}

IF_VECTORIZED void sharpen(const uint8_t* __restrict from, int64_t count, int64_t pixel, int64_t row, float factor,
                           uint8_t* __restrict to) {
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t *middle = from + i, *above = middle - row, *below = middle + row;
    to[i] = uint8_t(smooth(above[-pixel] + above[0] + above[pixel] + middle[-pixel] + 5 * middle[0] + middle[pixel] +
                           below[-pixel] + below[0] + below[pixel]));
  }
  for (int64_t i = 0; i < count; ++i) to[i] = blend(to[i], from[i], factor);
}

template <int C>
void sharpness(Image<C>& image, float factor) {
  apply_map(image);
  const int64_t row = image.stride(), last = row * (image.side - 1);
  // All rows but the first and the last at once, then what belongs to the border again.
  if (image.side > 2) sharpen(image.pixels + row + C, last - row - 2 * C, C, row, factor, image.spare + row + C);
  for (int64_t i = row; i <= last; i += row) std::memcpy(image.spare + i - C, image.pixels + i - C, 2 * C);
  std::memcpy(image.spare, image.pixels, row);
  std::memcpy(image.spare + last, image.pixels + last, row);
  image.swap();
}

template <int C>
void stretch(Image<C>& image, bool equalize) {
  // Counted by turns in two histograms: neighbours are often equal, and an entry just written is read late.
  int counted[2][C][256] = {}, histogram[C][256] = {};
  for (int i = 0; i < image.count(); ++i)
    for (int c = 0; c < C; ++c) ++counted[i & 1][c][image.pixels[i * C + c]];
  for (int c = 0; c < C; ++c)
    for (int v = 0; v < 256; ++v) histogram[c][image.mapped_value(c, v)] += counted[0][c][v] + counted[1][c][v];
  uint8_t table[C][256];
  for (int c = 0; c < C; ++c) {
    const int* h = histogram[c];
    int low = 0, high = 255, before = 0;
    while (!h[low]) ++low;
    while (!h[high]) --high;
    const int step = (image.count() - h[high]) / 255;
    for (int v = 0; v < 256; before += h[v++])
      table[c][v] = equalize ? equalize_entry(v, before, step) : autocontrast_entry(v, low, high);
  }
  map_values(image, [&](int c, int v) { return table[c][v]; });
}

template <int C>
void apply(Image<C>& image, int op, float value, const int64_t* matrix) {
  const int whole = int(value);
  switch (op) {
    case kAutoContrast:
      return stretch(image, false);
    case kEqualize:
      return stretch(image, true);
    case kBrightness:
      return map_values(image, [=](int, int v) { return blend(0, v, value); });
    case kColor:
      return color(image, value);
    case kContrast:
      return contrast(image, value);
    case kSharpness:
      return sharpness(image, value);
    case kPosterize:
      return map_values(image, [=](int, int v) { return posterize(v, whole); });
    case kSolarize:
      return map_values(image, [=](int, int v) { return solarize(v, whole); });
    case kIdentity:
      return;
    default:
      return affine(image, matrix);
  }
}

// What the image's map still has to do is done to the table.
template <int C, typename T>
void write_view(const Image<C>& image, const ViewDraw& d, const uint8_t* fill, const T* table, T* out) {
  T mapped[C * 256];
  for (int c = 0; c < C && image.mapped; ++c)
    for (int v = 0; v < 256; ++v) mapped[c * 256 + v] = table[c * 256 + image.map[c * 256 + v]];
  const T* values = image.mapped ? mapped : table;
  const auto pixels = [&](int begin, int end) {
    look_up<C>(image.pixels + begin * C, end - begin, values, out + begin * C);
  };
  // The square cuts its rows in three; a view without one is all before it.
  int done = 0;
  for (int y = d.y0; y <= d.y1 && y < image.side; ++y) {
    const int begin = y * image.side + d.x0, end = y * image.side + std::min(d.x1 + 1, image.side);
    pixels(done, begin);
    for (int i = begin; i < end; ++i)
      for (int c = 0; c < C; ++c) out[i * C + c] = table[c * 256 + fill[c]];
    done = end;
  }
  pixels(done, image.count());
}

struct Cpu {
  struct Scope {
    explicit Scope(const at::Tensor&) {}
  };
  template <int C, typename T>
  static void run(const AugmentProblem<T>& p, const Scope&) {
    const int64_t size = int64_t{p.policy.side} * p.policy.side * C;
    at::parallel_for(0, p.count, 8, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> buffers(2 * (size + 1));
      std::vector<int> column(p.policy.side);
      for (int64_t r = begin; r < end; ++r) {
        TORCH_CHECK_INDEX(p.items[r] >= 0 && p.items[r] < p.stored, "items[", r, "] = ", p.items[r], " is outside [0, ",
                          p.stored, ")");
        const ViewDraw d = draw_view(p.policy, p.seed, uint64_t(*p.step), uint32_t(p.rows[r]), int(p.views[r]));
        Image<C> image{p.policy.side, buffers.data(), buffers.data() + size + 1};
        flip_and_crop(p.store + p.items[r] * size, d, p.policy.pad, image, column.data());
        for (int i = 0; i < p.policy.ops; ++i) apply(image, d.op[i], p.value(d, i), p.matrix(d, i));
        write_view(image, d, p.policy.fill, p.table, p.out + r * size);
      }
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CPU, m) { m.impl("augment_views", &augment_views<Cpu>); }

}  // namespace interlude
