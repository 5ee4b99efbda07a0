// exp_nonpositive against the C library over its whole range, and at the ends.
#include <limits>

#include "check.h"
#include "math/exp.h"

using namespace interlude;

int main() {
  double worst = 0;
  for (double x = -87.2; x <= 0; x += 1e-4) {
    const float rounded = float(x);
    const double truth = std::exp(double(rounded));
    worst = std::max(worst, std::abs(exp_nonpositive(rounded) - truth) / truth);
  }
  CHECK(worst < 3e-7);
  CHECK_EQ(exp_nonpositive(0.0f), 1.0f);
  CHECK_EQ(exp_nonpositive(-0.0f), 1.0f);
  CHECK_EQ(exp_nonpositive(-88.0f), 0.0f);
  CHECK_EQ(exp_nonpositive(-std::numeric_limits<float>::infinity()), 0.0f);
  const float nan = exp_nonpositive(std::numeric_limits<float>::quiet_NaN());
  CHECK(nan != nan);
  CHECK_EQ(exp_nonpositive(-1.5), std::exp(-1.5));
  return check::result();
}
