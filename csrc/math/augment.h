// Weak and strong views: what is drawn for one view, and what one pixel or one table entry becomes.
// Integers and fixed point as Pillow computes them, so that every device gives the same bytes (built
// without multiply-add contraction). The torch reference is interlude_fast/data/augment.py.
#pragma once

#include "philox.h"

namespace interlude {

// RandAugment's operations, in the order of data/augment.py's OPS.
enum AugmentOp : int {
  kAutoContrast,
  kBrightness,
  kColor,
  kContrast,
  kEqualize,
  kIdentity,
  kPosterize,
  kRotate,
  kSharpness,
  kShearX,
  kShearY,
  kSolarize,
  kTranslateX,
  kTranslateY,
  kAugmentOps
};
constexpr int kMostOps = 16;
constexpr int kGrey = 127;

// A policy for images of one side. Levels index the value and affine tables that the host prepares.
struct AugmentPolicy {
  int side, flip, pad, ops, levels, square;
};

struct ViewDraw {
  int flip, top, left;
  int8_t op[kMostOps], mirrored[kMostOps];
  int16_t level[kMostOps];
  int x0, y0, x1, y1;  // the grey square, bounds included; empty where x1 < x0
};

IF_HD int below(uint32_t word, int count) { return int((uint64_t{word} * uint32_t(count)) >> 32); }

// Lower bound of the square around a centre drawn from [0, side) in units of 2^-32 pixels.
IF_HD int square_start(uint32_t word, int side, int square) {
  const int64_t start = int64_t(uint64_t{word} * uint32_t(side)) - (int64_t{square} << 31);
  return start < 0 ? 0 : int(start >> 32);
}

// Philox draws of (seed, step, row, view): index 0 flip and crop, 1..n operations, n + 1 square.
IF_HD ViewDraw draw_view(const AugmentPolicy& p, uint64_t seed, uint64_t step, uint32_t row, int view) {
  ViewDraw d;
  const bool strong = view == 1;
  const Philox4 crop = draw(seed, step, row, Stream::kAugment, view, 0);
  d.flip = p.flip && (crop.x >> 31);
  d.top = below(crop.y, 2 * p.pad + 1);
  d.left = below(crop.z, 2 * p.pad + 1);
  for (int i = 0; i < p.ops; ++i) {
    const Philox4 words = draw(seed, step, row, Stream::kAugment, view, i + 1);
    d.op[i] = int8_t(strong && (words.z >> 31) ? below(words.x, kAugmentOps) : int(kIdentity));
    d.level[i] = int16_t(below(words.y, p.levels));
    d.mirrored[i] = int8_t((words.z >> 30) & 1);
  }
  const Philox4 centre = draw(seed, step, row, Stream::kAugment, view, p.ops + 1);
  d.x0 = square_start(centre.x, p.side, p.square);
  d.y0 = square_start(centre.y, p.side, p.square);
  d.x1 = strong ? (d.x0 + p.square < p.side ? d.x0 + p.square : p.side) : d.x0 - 1;
  d.y1 = strong ? (d.y0 + p.square < p.side ? d.y0 + p.square : p.side) : d.y0 - 1;
  return d;
}

IF_HD int reflect(int i, int size) {
  i = i < 0 ? -i : i;
  return i >= size ? 2 * (size - 1) - i : i;
}

// Where the flipped, padded and cropped image's column (or, without flip, row) comes from.
IF_HD int crop_source(int i, int offset, int pad, int size, bool flip) {
  const int source = reflect(i + offset - pad, size);
  return flip ? size - 1 - source : source;
}

IF_HD bool in_square(const ViewDraw& d, int x, int y) { return x >= d.x0 && x <= d.x1 && y >= d.y0 && y <= d.y1; }

// Pixel that an affine map reads for output (x, y), or -1 outside; m: 16.16 coefficients a..f.
IF_HD int affine_source(const int64_t* m, int x, int y, int side) {
  const int64_t sx = (m[0] * x + m[1] * y + m[2]) >> 16, sy = (m[3] * x + m[4] * y + m[5]) >> 16;
  return sx < 0 || sx >= side || sy < 0 || sy >= side ? -1 : int(sy) * side + int(sx);
}

// Image.blend for factors in [0, 1].
IF_HD uint8_t blend(int degenerate, int value, float factor) {
  return uint8_t(int(float(degenerate) + factor * float(value - degenerate)));
}

IF_HD int luma(int r, int g, int b) { return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; }

// Pillow's SMOOTH kernel over 13, rounded: `total` is the sum of the 3x3 values and 4 times the middle.
IF_HD int smooth(int total) { return (2 * total + 13) / 26; }

IF_HD int mean_grey(int64_t sum, int64_t count) { return int(double(sum) / double(count) + 0.5); }

IF_HD uint8_t posterize(int value, int bits) { return uint8_t(value & (256 - (1 << (8 - bits)))); }

IF_HD uint8_t solarize(int value, int threshold) { return uint8_t(value < threshold ? value : 255 - value); }

// Entry `value` of a channel's table, from its lowest and highest values.
IF_HD uint8_t autocontrast_entry(int value, int low, int high) {
  if (high <= low) return uint8_t(value);
  const double scale = 255.0 / double(high - low);
  const double stretched = double(value) * scale + -double(low) * scale;
  return uint8_t(stretched <= 0 ? 0 : (stretched >= 255 ? 255 : int(stretched)));
}

// The same for equalization: `before` pixels are darker, `step` = (pixels - those of the highest value) / 255.
IF_HD uint8_t equalize_entry(int value, int before, int step) {
  if (step == 0) return uint8_t(value);
  const int entry = (step / 2 + before) / step;
  return uint8_t(entry > 255 ? 255 : entry);
}

}  // namespace interlude
