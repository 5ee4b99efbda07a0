// Philox4x32-10 (Salmon et al., SC 2011) and the one convention by which the project draws numbers:
// a draw is a pure function of (seed, step, row, stream, view, index). No state is carried, so the
// numbers are the same for any device, thread count, rank or resume point.
// interlude_fast/reference/sampling.py holds the same function in torch.
#pragma once

#include "hd.h"

namespace interlude {

struct Philox4 {
  uint32_t x, y, z, w;
};

// What a draw is for. Part of the counter, so that no two uses share numbers.
enum class Stream : uint32_t { kLabeledOrder = 0, kUnlabeledDraw = 1, kAugment = 2, kSplit = 3, kKept = 4 };

IF_HD Philox4 philox_round(Philox4 c, uint32_t key0, uint32_t key1) {
  const uint64_t even = uint64_t{0xD2511F53u} * c.x;
  const uint64_t odd = uint64_t{0xCD9E8D57u} * c.z;
  return {uint32_t(odd >> 32) ^ c.y ^ key0, uint32_t(odd), uint32_t(even >> 32) ^ c.w ^ key1, uint32_t(even)};
}

IF_HD Philox4 philox4x32(Philox4 counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    counter = philox_round(counter, key0, key1);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Counter layout: word 0 = stream (8 bits) | view (8 bits) | index (16 bits), word 1 = row,
// words 2 and 3 = step. The key is the seed.
IF_HD Philox4 draw(uint64_t seed, uint64_t step, uint32_t row, Stream stream, uint32_t view, uint32_t index) {
  const uint32_t use = (static_cast<uint32_t>(stream) << 24) | (view << 16) | index;
  return philox4x32({use, row, uint32_t(step), uint32_t(step >> 32)}, uint32_t(seed), uint32_t(seed >> 32));
}

}  // namespace interlude
