// Moments of joined parts, and leaky ReLU with its gradient.
#include "check.h"
#include "math/batch_norm.h"

using namespace interlude;

int main() {
  const double values[] = {1e6 + 1, 1e6 - 2, 1e6 + 5, 1e6, 1e6 + 7, 1e6 - 3, 1e6 + 4};
  for (int cut = 0; cut <= 7; ++cut) {
    Moments parts[2], joined;
    for (int i = 0; i < 7; ++i) parts[i >= cut].join(1, values[i], 0);
    for (const Moments& part : parts)
      if (part.count > 0) joined.join(part.count, part.mean, part.squares);
    CHECK_EQ(joined.count, 7.0);
    CHECK_NEAR(joined.mean, 1e6 + 12.0 / 7, 1e-9);
    CHECK_NEAR(joined.squares, 104 - 144.0 / 7, 1e-8);
  }
  CHECK_EQ(leaky(3.0f, 0.25f), 3.0f);
  CHECK_EQ(leaky(-4.0f, 0.25f), -1.0f);
  CHECK_EQ(leaky_gradient(0.0f, 8.0f, 0.25f), 2.0f);
  CHECK_EQ(leaky_gradient(1.0f, 8.0f, 0.25f), 8.0f);
  CHECK(std::isnan(leaky(NAN, 0.1f)));
  return check::result();
}
