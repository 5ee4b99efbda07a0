// Philox4x32-10 against the vectors of its authors' Random123 library, and the layout of draw().
#include "check.h"
#include "math/philox.h"

using namespace interlude;

void check_words(Philox4 got, Philox4 expected) {
  CHECK_EQ(got.x, expected.x);
  CHECK_EQ(got.y, expected.y);
  CHECK_EQ(got.z, expected.z);
  CHECK_EQ(got.w, expected.w);
}

void known_answers() {
  constexpr uint32_t ones = 0xffffffffu;
  check_words(philox4x32({0, 0, 0, 0}, 0, 0), {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  check_words(philox4x32({ones, ones, ones, ones}, ones, ones), {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  check_words(philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, 0xa4093822u, 0x299f31d0u),
              {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

// Every argument has bits of its own in counter and key. Last line: from interlude_fast/reference/sampling.py.
void layout_of_a_draw() {
  check_words(draw(0x1111222233334444u, 0x5555666677778888u, 0x9999aaaau, Stream::kAugment, 0xbb, 0xccdd),
              philox4x32({0x02bbccddu, 0x9999aaaau, 0x77778888u, 0x55556666u}, 0x33334444u, 0x11112222u));
  check_words(draw(uint64_t(-2), (uint64_t{1} << 33) + 5, 9, Stream::kAugment, 3, 4),
              {0x77816620u, 0x7159ecd0u, 0x2a68710fu, 0x4b40a8e1u});
}

int main() {
  known_answers();
  layout_of_a_draw();
  return check::result();
}
