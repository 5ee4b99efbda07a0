// SGD with momentum and weight decay, the moving average of the weights and the shrink after it: one element.
// The order of operations is torch.optim.SGD's, then that of training/ema.py.
#pragma once

#include "hd.h"

namespace interlude {

// A number that may lie on the device, where no host may wait for it: float32, or float64 where `wide`.
struct DeviceNumber {
  const void* data;  // null: none was given
  bool wide;

  IF_HD double value() const {
    return wide ? *static_cast<const double*>(data) : double(*static_cast<const float*>(data));
  }
};

// What a step does to every element of one tensor, in the tensor's own type.
template <typename A>
struct SgdEma {
  A lr, gradient_scale, weight_decay, momentum, ema_decay, ema_rest, kept;
  bool nesterov;
};

// The numbers of a call, as its caller wrote them.
struct SgdEmaOptions {
  double momentum, ema_decay, shrink;
  DeviceNumber lr, gradient_scale, found_inf;
  bool nesterov;

  IF_HD bool skipped() const { return found_inf.data && found_inf.value() != 0; }

  // Products and differences in double first: what Python's floats give before a tensor sees them.
  template <typename A>
  IF_HD SgdEma<A> of_tensor(double scale, double weight_decay) const {
    return {A(lr.value() * scale), gradient_scale.data ? A(gradient_scale.value()) : A(1),
            A(weight_decay),       A(momentum),
            A(ema_decay),          A(1 - ema_decay),
            A(1 - shrink),         nesterov};
  }
};

template <typename A>
IF_HD A decayed_gradient(const SgdEma<A>& s, A gradient, A weight) {
  const A unscaled = s.gradient_scale == A(1) ? gradient : gradient / s.gradient_scale;
  return s.weight_decay == A(0) ? unscaled : unscaled + s.weight_decay * weight;
}

template <typename A>
IF_HD A momentum_direction(const SgdEma<A>& s, A gradient, A& velocity) {
  velocity = s.momentum * velocity + gradient;
  return s.nesterov ? gradient + s.momentum * velocity : velocity;
}

template <typename A>
IF_HD void average(const SgdEma<A>& s, A& weight, A& shadow) {
  shadow = s.ema_decay * shadow + s.ema_rest * weight;
  weight *= s.kept;
}

template <typename A>
IF_HD void descend(const SgdEma<A>& s, A direction, A& weight, A& shadow) {
  weight -= s.lr * direction;
  average(s, weight, shadow);
}

}  // namespace interlude
