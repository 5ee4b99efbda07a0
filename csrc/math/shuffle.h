// Keyed permutations of {0, ..., n-1} that are evaluated one position at a time: a Feistel network
// over the smallest power of two (at least 2^6) that holds n, with values outside walked back into range.
// A shuffled epoch costs no memory, and position i of epoch e is known without the ones before it.
#pragma once

#include "philox.h"

namespace interlude {

constexpr int kFeistelRounds = 8;
// Fewer bits mix badly: permutations of 5 or 8 items would be visibly uneven.
constexpr uint32_t kFewestBits = 6;

struct Permutation {
  uint32_t size;
  uint32_t low_bits, high_bits;
  uint32_t keys[kFeistelRounds];
};

// Mixes all 32 bits (the finalizer of MurmurHash3).
IF_HD uint32_t mix32(uint32_t h) {
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  return h ^ (h >> 16);
}

// size: 1 <= size <= 2^31. Distinct (seed, epoch, row, stream) give independent permutations.
IF_HD Permutation make_permutation(uint32_t size, uint64_t seed, uint64_t epoch, uint32_t row, Stream stream) {
  uint32_t bits = kFewestBits;
  while ((uint64_t{1} << bits) < size) ++bits;
  const Philox4 a = draw(seed, epoch, row, stream, 0, 0);
  const Philox4 b = draw(seed, epoch, row, stream, 0, 1);
  return {size, bits - bits / 2, bits / 2, {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

IF_HD uint32_t feistel(const Permutation& p, uint32_t value) {
  const uint32_t low_mask = (1u << p.low_bits) - 1u, high_mask = (1u << p.high_bits) - 1u;
  uint32_t low = value & low_mask, high = value >> p.low_bits;
  for (int round = 0; round < kFeistelRounds; round += 2) {
    high ^= mix32(low + p.keys[round]) & high_mask;
    low ^= mix32(high + p.keys[round + 1]) & low_mask;
  }
  return (high << p.low_bits) | low;
}

// The image of `position` (0 <= position < size). Walking ends because feistel() is a bijection.
IF_HD uint32_t permute(const Permutation& p, uint32_t position) {
  uint32_t value = feistel(p, position);
  while (value >= p.size) value = feistel(p, value);
  return value;
}

// Section 7 of the algorithm: labeled rows walk through one permutation after another of the
// labeled set; `slot` counts rows over the whole run (step * batch + row).
IF_HD uint32_t labeled_item(uint64_t seed, uint64_t slot, uint32_t labeled_count) {
  const uint64_t epoch = slot / labeled_count;
  const Permutation p = make_permutation(labeled_count, seed, epoch, 0, Stream::kLabeledOrder);
  return permute(p, uint32_t(slot % labeled_count));
}

// The j-th of mu distinct unlabeled items that stand beside labeled row `row` in `step`.
IF_HD uint32_t unlabeled_item(uint64_t seed, uint64_t step, uint32_t row, uint32_t j, uint32_t unlabeled_count) {
  return permute(make_permutation(unlabeled_count, seed, step, row, Stream::kUnlabeledDraw), j);
}

}  // namespace interlude
