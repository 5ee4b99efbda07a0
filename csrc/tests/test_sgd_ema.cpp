// One element of SGD with momentum, the moving average and the shrink; numbers that lie on the device.
#include "check.h"
#include "math/sgd_ema.h"

using namespace interlude;

namespace {

SgdEmaOptions options(const double* lr) {
  return {0.5, 0.75, 0.0, {lr, true}, {nullptr, false}, {nullptr, false}, false};
}

// By hand, in binary fractions: weight 4, gradient 1, velocity 2, shadow 8, lr 0.25 * 2, weight decay 0.5.
template <typename A>
void one_step(bool nesterov, double weight_after, double shadow_after) {
  const double lr = 0.25;
  SgdEmaOptions o = options(&lr);
  o.nesterov = nesterov;
  const SgdEma<A> s = o.of_tensor<A>(2, 0.5);
  A weight = 4, velocity = 2, shadow = 8;
  descend(s, momentum_direction(s, decayed_gradient(s, A(1), weight), velocity), weight, shadow);
  CHECK_EQ(velocity, A(4));
  CHECK_EQ(weight, A(weight_after));
  CHECK_EQ(shadow, A(shadow_after));
}

}  // namespace

int main() {
  one_step<float>(false, 2, 6.5);
  one_step<double>(false, 2, 6.5);
  one_step<float>(true, 1.5, 6.375);
  one_step<double>(true, 1.5, 6.375);

  const double lr = 0.1;
  const float scale = 4, found = 1, none = 0;
  SgdEmaOptions o = options(&lr);
  CHECK_EQ(o.of_tensor<float>(0.3, 0).lr, float(0.1 * 0.3));  // rounded once
  CHECK_EQ(o.of_tensor<float>(1, 0).ema_rest, 0.25f);
  CHECK_EQ(decayed_gradient(o.of_tensor<float>(1, 0), 8.0f, INFINITY), 8.0f);  // no decay does not touch the weight
  o.gradient_scale = {&scale, false};
  CHECK_EQ(decayed_gradient(o.of_tensor<double>(1, 0.5), 8.0, 6.0), 5.0);

  CHECK(!o.skipped());
  o.found_inf = {&none, false};
  CHECK(!o.skipped());
  o.found_inf = {&found, false};
  CHECK(o.skipped());

  o.shrink = 0.5;
  double weight = 4, shadow = 8;
  average(o.of_tensor<double>(1, 0), weight, shadow);
  CHECK_EQ(shadow, 7.0);  // of the weight before it shrinks
  CHECK_EQ(weight, 2.0);
  return check::result();
}
