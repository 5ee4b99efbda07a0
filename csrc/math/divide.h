// Division by a number that is known before a loop and not when compiling: a product and a shift where the
// GPU has no instruction for a quotient (Granlund and Montgomery, PLDI 1994).
#pragma once

#include "hd.h"

namespace interlude {

// Exact for 0 <= dividend < 2^31 and 1 <= divisor < 2^31.
struct Divisor {
  uint32_t multiplier;  // ceil(2^(31 + shift) / divisor), less than 2^32
  int shift;            // least with divisor <= 2^shift

  IF_HD int quotient(int dividend) const {
    return int(uint32_t((uint64_t{2 * uint32_t(dividend)} * multiplier) >> 32) >> shift);
  }
};

IF_HD Divisor make_divisor(int divisor) {
  int shift = 0;
  while ((int64_t{1} << shift) < divisor) ++shift;
  return {uint32_t(((uint64_t{1} << (31 + shift)) + uint32_t(divisor) - 1) / uint32_t(divisor)), shift};
}

}  // namespace interlude
