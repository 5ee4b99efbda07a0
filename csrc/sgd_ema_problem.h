// From lists of tensors to flat spans, and the entry point of sgd_ema_. The CPU and CUDA files add how the
// spans are walked, as a Backend: Scope(tensor), run(spans, options, scope).
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "checks.h"
#include "math/sgd_ema.h"

namespace interlude {

// One parameter with what belongs to it, element beside element in memory, whatever the shape.
template <typename T>
struct SgdEmaSpan {
  T* weight;
  const T* gradient;  // null: the average alone
  T* velocity;        // null: no momentum
  T* shadow;
  int64_t count;
  double scale, weight_decay;
};

inline DeviceNumber device_number(const std::optional<at::Tensor>& t) {
  return t ? DeviceNumber{t->const_data_ptr(), t->scalar_type() == at::kDouble} : DeviceNumber{nullptr, false};
}

// Autograd then sees that what it may have saved has changed, as after any op in place.
inline void bump_version(const at::Tensor& t) {
  if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}

template <typename Backend>
void sgd_ema_(at::TensorList weights, const c10::List<std::optional<at::Tensor>>& gradients, at::TensorList momenta,
              at::TensorList shadows, const at::Tensor& lr, at::ArrayRef<double> scales,
              at::ArrayRef<double> weight_decays, double momentum, bool nesterov, double ema_decay, double shrink,
              const std::optional<at::Tensor>& gradient_scale, const std::optional<at::Tensor>& found_inf) {
  check_sgd_ema(weights, gradients, momenta, shadows, lr, scales, weight_decays, momentum, ema_decay, shrink,
                gradient_scale, found_inf);
  if (weights.empty()) return;
  const typename Backend::Scope scope(lr);
  const SgdEmaOptions options{
      momentum, ema_decay, shrink, device_number(lr), device_number(gradient_scale), device_number(found_inf),
      nesterov};
  AT_DISPATCH_FLOATING_TYPES(weights[0].scalar_type(), "sgd_ema_", [&] {
    std::vector<SgdEmaSpan<scalar_t>> spans;
    spans.reserve(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      if (weights[i].numel() == 0) continue;
      const std::optional<at::Tensor> gradient = gradients.get(i);
      const bool moving = gradient && momentum != 0;
      spans.push_back({weights[i].mutable_data_ptr<scalar_t>(),
                       gradient ? gradient->const_data_ptr<scalar_t>() : nullptr,
                       moving ? momenta[i].mutable_data_ptr<scalar_t>() : nullptr,
                       shadows[i].mutable_data_ptr<scalar_t>(), weights[i].numel(), scales[i], weight_decays[i]});
    }
    Backend::run(spans, options, scope);
  });
  for (const at::TensorList list : {weights, momenta, shadows})
    for (const at::Tensor& t : list) bump_version(t);
}

}  // namespace interlude
