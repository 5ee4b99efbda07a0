// The division by a product against the language's: every divisor that an image's side may be with every pixel of
// it, and the ends of the range.
#include "check.h"
#include "math/divide.h"

using namespace interlude;

constexpr int kMostSide = 4096, kMost = 2147483647;

void same(int64_t dividend, int divisor, const Divisor& by) {
  CHECK_EQ(by.quotient(int(dividend)), int(dividend) / divisor);
}

int main() {
  for (int divisor = 1; divisor <= kMostSide; ++divisor) {
    const Divisor by = make_divisor(divisor);
    for (int i = 0; i < 2 * divisor; ++i) same(i, divisor, by);
    // A quotient can only be off where it changes.
    for (int64_t k = 1; k <= kMost / divisor; k = k < divisor ? k + 1 : 2 * k + 1)
      same(k * divisor - 1, divisor, by), same(k * divisor, divisor, by);
    for (int i = 0; i < 2 * divisor; ++i) same(int64_t{kMost} - i, divisor, by);
  }
  for (int divisor : {1, 2, 3, 31, 32, 33, 96, 224})
    for (int i = 0; i < divisor * divisor; ++i) same(i, divisor, make_divisor(divisor));
  for (int divisor = kMost - 1000; divisor < kMost; ++divisor)
    for (int i : {0, 1, divisor - 1, divisor, kMost - 1, kMost}) same(i, divisor, make_divisor(divisor));
  return check::result();
}
