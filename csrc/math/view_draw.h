// What is drawn for one weak or strong view: a pure function of (seed, step, row, view), on every device the
// same integers. The torch reference is draw_views in interlude_fast/reference/augment.py.
#pragma once

#include "philox.h"

namespace interlude {

// RandAugment's operations, in the order of the reference's OPS.
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

// A policy for images of one side. Levels index the value and affine tables that the host prepares. The
// square's side, or its upper bound where it is random, is in 1/65536 pixels.
struct AugmentPolicy {
  int side, flip, pad, ops, always, levels, square, random_square;
  uint8_t fill[3];
};

struct ViewDraw {
  int flip, top, left;
  int8_t op[kMostOps], mirrored[kMostOps];
  int16_t level[kMostOps];
  int x0, y0, x1, y1;  // the filled square, bounds included; empty where x1 < x0
};

IF_HD int below(uint32_t word, int count) { return int((uint64_t{word} * uint32_t(count)) >> 32); }

// Lower bound of the square around a centre drawn from [0, side) in 2^-32 pixels; square in 2^-16.
IF_HD int square_start(uint32_t word, int side, int square) {
  const int64_t start = int64_t(uint64_t{word} * uint32_t(side)) - (int64_t{square} << 15);
  return start < 0 ? 0 : int(start >> 32);
}

IF_HD int square_end(int start, int side, int square) {
  const int end = start + (square >> 16);  // ImageDraw cuts real bounds to integers
  return end < side ? end : side;
}

// What the draw of one index of (seed, step, row, view) decides: 0 flip and crop, 1..n operations, n + 1 the square.
// No index reads what another one writes, so that a GPU's threads take one each.
IF_HD void draw_part(const AugmentPolicy& p, uint64_t seed, uint64_t step, uint32_t row, int view, int index,
                     ViewDraw& d) {
  const bool strong = view == 1;
  const Philox4 words = draw(seed, step, row, Stream::kAugment, view, index);
  if (index == 0) {
    d.flip = p.flip && (words.x >> 31);
    d.top = below(words.y, 2 * p.pad + 1);
    d.left = below(words.z, 2 * p.pad + 1);
  } else if (index <= p.ops) {
    const int i = index - 1;
    d.op[i] = int8_t(strong && (p.always || words.z >> 31) ? below(words.x, kAugmentOps) : int(kIdentity));
    d.level[i] = int16_t(below(words.y, p.levels));
    d.mirrored[i] = int8_t((words.z >> 30) & 1);
  } else {
    const int square = p.random_square ? below(words.z, p.square) : p.square;
    const int x0 = square_start(words.x, p.side, square), y0 = square_start(words.y, p.side, square);
    const bool filled = strong && p.square > 0;
    d.x0 = x0, d.x1 = filled ? square_end(x0, p.side, square) : x0 - 1;
    d.y0 = y0, d.y1 = filled ? square_end(y0, p.side, square) : y0 - 1;
  }
}

IF_HD int draw_parts(const AugmentPolicy& p) { return p.ops + 2; }

IF_HD ViewDraw draw_view(const AugmentPolicy& p, uint64_t seed, uint64_t step, uint32_t row, int view) {
  ViewDraw d;
  for (int index = 0; index < draw_parts(p); ++index) draw_part(p, seed, step, row, view, index, d);
  return d;
}

IF_HD bool in_square(const ViewDraw& d, int x, int y) { return x >= d.x0 && x <= d.x1 && y >= d.y0 && y <= d.y1; }

}  // namespace interlude
