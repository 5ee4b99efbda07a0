// What every kernel demands of its tensors, by argument name: once, in front of the CPU and CUDA code.
// The Python faces (interlude_fast/ops) say the same to users in more words, also where no extension
// is built; these guard the memory accesses against direct callers of torch.ops.interlude_fast.*.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

namespace interlude {

inline void check_floating(const at::Tensor& t, const char* name) {
  const auto dtype = t.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kDouble || dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, name,
                   " must be float64, float32, bfloat16 or float16, got ", dtype);
}

inline void check_same_device(const at::Tensor& t, const char* name, const at::Tensor& like, const char* like_name) {
  TORCH_CHECK_VALUE(t.device() == like.device(), name, " is on ", t.device(), " but ", like_name, " is on ",
                    like.device());
}

inline void check_like(const at::Tensor& t, const char* name, const at::Tensor& like, const char* like_name) {
  TORCH_CHECK_TYPE(t.scalar_type() == like.scalar_type(), name, " is ", t.scalar_type(), " but ", like_name, " is ",
                   like.scalar_type());
  check_same_device(t, name, like, like_name);
}

inline void check_shape(const at::Tensor& t, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(t.sizes() == shape, name, " must have shape ", shape, ", got ", t.sizes());
}

inline void check_per_class(const std::optional<at::Tensor>& t, const char* name, const at::Tensor& logits) {
  if (!t) return;
  check_floating(*t, name);
  check_shape(*t, name, {logits.size(-1)});
  check_same_device(*t, name, logits, "logits");
}

inline void check_fusion(const at::Tensor& x, double alpha, int64_t shift) {
  check_floating(x, "x");
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must have a row dimension, got a scalar");
  TORCH_CHECK_VALUE(alpha >= 0 && alpha < 1, "alpha must lie in [0, 1), got ", alpha);
  TORCH_CHECK_VALUE(shift == 1 || shift == -1, "shift must be 1 or -1, got ", shift);
}

inline void check_conv3x3(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  check_floating(x, "x");
  TORCH_CHECK_VALUE(x.dim() == 4, "x must be [N, C, H, W], got ", x.sizes());
  TORCH_CHECK_VALUE(weight.dim() == 4, "weight must be [K, C, 3, 3], got ", weight.sizes());
  check_shape(weight, "weight", {weight.size(0), x.size(1), 3, 3});
  check_like(weight, "weight", x, "x");
  if (!bias) return;
  check_shape(*bias, "bias", {weight.size(0)});
  check_like(*bias, "bias", x, "x");
}

inline void check_conv3x3_weight(const at::Tensor& x, const at::Tensor& grad) {
  check_floating(x, "x");
  TORCH_CHECK_VALUE(x.dim() == 4, "x must be [N, C, H, W], got ", x.sizes());
  TORCH_CHECK_VALUE(grad.dim() == 4, "grad must be [N, K, H, W], got ", grad.sizes());
  check_shape(grad, "grad", {x.size(0), grad.size(1), x.size(2), x.size(3)});
  check_like(grad, "grad", x, "x");
}

// Formats whose rows (dimension 0) lie one after another in memory need no copy.
inline at::MemoryFormat dense_rows_format(const at::Tensor& x) {
  if (x.is_contiguous()) return at::MemoryFormat::Contiguous;
  if (x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast)) return at::MemoryFormat::ChannelsLast;
  if (x.dim() == 5 && x.is_contiguous(at::MemoryFormat::ChannelsLast3d)) return at::MemoryFormat::ChannelsLast3d;
  return at::MemoryFormat::Contiguous;
}

inline void check_sample_rows(const at::Tensor& step, int64_t labeled, int64_t unlabeled, int64_t batch, int64_t mu) {
  constexpr int64_t kMost = int64_t{1} << 31;
  TORCH_CHECK_TYPE(step.scalar_type() == at::kLong && step.numel() == 1, "step must be one int64 value");
  TORCH_CHECK_VALUE(batch >= 1 && mu >= 0, "batch must be >= 1 and mu >= 0, got ", batch, " and ", mu);
  TORCH_CHECK_VALUE(labeled >= 1 && labeled <= kMost, "labeled must lie in [1, 2^31], got ", labeled);
  TORCH_CHECK_VALUE(unlabeled >= mu && unlabeled <= kMost, "unlabeled must lie in [mu, 2^31], got ", unlabeled);
}

inline void check_augment(const at::Tensor& store, const at::Tensor& items, const at::Tensor& rows,
                          const at::Tensor& views, const at::Tensor& step, int64_t pad, int64_t ops, int64_t square,
                          at::IntArrayRef fill, const at::Tensor& affine, const at::Tensor& values,
                          const at::Tensor& table) {
  TORCH_CHECK_TYPE(store.scalar_type() == at::kByte, "store must be uint8, got ", store.scalar_type());
  TORCH_CHECK_VALUE(store.dim() == 4 && store.size(1) == store.size(2) && store.size(1) <= 4096 &&
                        (store.size(3) == 1 || store.size(3) == 3),
                    "store must be [S, side, side, 1 or 3], got ", store.sizes());
  const int64_t side = store.size(1);
  TORCH_CHECK_VALUE(pad >= 0 && pad < side, "pad must lie in [0, side), got ", pad);
  TORCH_CHECK_VALUE(square >= 0 && square <= side << 16, "square must lie in [0, 65536 * side], got ", square);
  TORCH_CHECK_VALUE(int64_t(fill.size()) == store.size(3), "fill must hold a value for each channel, got ", fill);
  for (const int64_t v : fill) TORCH_CHECK_VALUE(v >= 0 && v <= 255, "fill must lie in [0, 255], got ", fill);
  TORCH_CHECK_VALUE(ops >= 0 && ops <= 16, "ops must lie in [0, 16], got ", ops);
  TORCH_CHECK_VALUE(values.dim() == 2 && values.size(0) == 14 && values.size(1) >= 1 && values.size(1) < 32768,
                    "values must be [14, levels], got ", values.sizes());
  check_shape(affine, "affine", {14, values.size(1), 2, 6});
  check_shape(table, "table", {store.size(3), 256});
  for (const auto* t : {&items, &rows, &views}) check_shape(*t, "items, rows and views", {items.numel()});
  TORCH_CHECK_VALUE(step.numel() == 1, "step must be one value");
  for (const auto* t : {&items, &rows, &views, &step, &affine})
    TORCH_CHECK_TYPE(t->scalar_type() == at::kLong, "items, rows, views, step and affine must be int64");
  TORCH_CHECK_TYPE(values.scalar_type() == at::kFloat, "values must be float32");
  for (const auto* t : {&items, &rows, &views, &step, &affine, &values, &table}) {
    check_same_device(*t, "an argument", store, "store");
    TORCH_CHECK_VALUE(t->is_contiguous(), "all arguments must be contiguous");
  }
  TORCH_CHECK_VALUE(store.is_contiguous(), "store must be contiguous");
}

inline void check_interlude_loss(const at::Tensor& logits, const at::Tensor& labels, int64_t mu,
                                 const std::optional<at::Tensor>& thresholds,
                                 const std::optional<at::Tensor>& class_weights,
                                 const std::optional<at::Tensor>& pseudo_label_bias,
                                 const std::optional<at::Tensor>& ramps) {
  check_floating(logits, "logits");
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(1) >= 1, "logits must be [2B(1+mu), K], got ", logits.sizes());
  TORCH_CHECK_TYPE(labels.scalar_type() == at::kLong, "labels must be int64, got ", labels.scalar_type());
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.size(0) >= 1, "labels must be [B] with B >= 1, got ", labels.sizes());
  TORCH_CHECK_VALUE(mu >= 1, "mu must be >= 1, got ", mu);
  TORCH_CHECK_VALUE(mu < logits.size(0) && logits.size(0) == 2 * labels.size(0) * (1 + mu),
                    "logits must have 2B(1+mu) rows; B = ", labels.size(0), ", mu = ", mu, ", rows = ", logits.size(0));
  check_same_device(labels, "labels", logits, "logits");
  check_per_class(thresholds, "thresholds", logits);
  check_per_class(class_weights, "class_weights", logits);
  check_per_class(pseudo_label_bias, "pseudo_label_bias", logits);
  if (!ramps) return;
  check_floating(*ramps, "ramps");
  check_shape(*ramps, "ramps", {2});
  check_same_device(*ramps, "ramps", logits, "logits");
}

inline void check_delta_consistency(const at::Tensor& lw, const at::Tensor& ls, const at::Tensor& uw,
                                    const at::Tensor& us, const std::optional<at::Tensor>& match) {
  check_floating(uw, "unlabeled_weak");
  TORCH_CHECK_VALUE(uw.dim() == 3 && uw.numel() > 0, "unlabeled_weak must be [B, mu, K], got ", uw.sizes());
  check_shape(us, "unlabeled_strong", uw.sizes());
  check_shape(lw, "labeled_weak", {uw.size(0), uw.size(2)});
  check_shape(ls, "labeled_strong", {uw.size(0), uw.size(2)});
  for (const auto* t : {&lw, &ls, &us}) {
    TORCH_CHECK_TYPE(t->scalar_type() == uw.scalar_type(), "the four logits must share one dtype");
    check_same_device(*t, "logits", uw, "unlabeled_weak");
  }
  if (!match) return;
  TORCH_CHECK_TYPE(match->scalar_type() == at::kBool, "match must be bool, got ", match->scalar_type());
  check_shape(*match, "match", {uw.size(0), uw.size(1)});
  check_same_device(*match, "match", uw, "unlabeled_weak");
}

// One number that the kernels read where it lies.
inline void check_device_number(const at::Tensor& t, const char* name, const at::Tensor& like, const char* like_name) {
  TORCH_CHECK_TYPE(t.numel() == 1 && (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble), name,
                   " must be one float32 or float64 value, got ", t.scalar_type(), " ", t.sizes());
  check_same_device(t, name, like, like_name);
}

// Equal shapes and the same place in memory for the same element; the stride of a side of 1 says nothing.
inline bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d) && a.numel() > 0) return false;
  return true;
}

inline void check_like_parameter(const at::Tensor& t, const char* list, size_t i, const at::Tensor& parameter,
                                 size_t j) {
  TORCH_CHECK_TYPE(t.scalar_type() == parameter.scalar_type(), list, "[", i, "] is ", t.scalar_type(),
                   " but parameters[", j, "] is ", parameter.scalar_type());
  TORCH_CHECK_VALUE(t.device() == parameter.device(), list, "[", i, "] is on ", t.device(), " but parameters[", j,
                    "] is on ", parameter.device());
}

inline void check_beside_parameter(const at::Tensor& t, const char* list, size_t i, const at::Tensor& parameter) {
  check_like_parameter(t, list, i, parameter, i);
  TORCH_CHECK_VALUE(same_layout(t, parameter), list, "[", i, "] must lie in memory as parameters[", i, "] does: shape ",
                    parameter.sizes(), ", strides ", parameter.strides(), "; got ", t.sizes(), ", ", t.strides());
}

inline void check_sgd_ema(at::TensorList parameters, const c10::List<std::optional<at::Tensor>>& gradients,
                          at::TensorList momenta, at::TensorList shadows, const at::Tensor& lr,
                          at::ArrayRef<double> scales, at::ArrayRef<double> weight_decays, double momentum,
                          double ema_decay, double shrink, const std::optional<at::Tensor>& gradient_scale,
                          const std::optional<at::Tensor>& found_inf) {
  TORCH_CHECK_VALUE(momentum >= 0, "momentum must be >= 0, got ", momentum);
  TORCH_CHECK_VALUE(ema_decay >= 0 && ema_decay <= 1, "ema_decay must lie in [0, 1], got ", ema_decay);
  TORCH_CHECK_VALUE(shrink >= 0 && shrink < 1, "shrink must lie in [0, 1), got ", shrink);
  const size_t n = parameters.size();
  const std::pair<const char*, size_t> lists[] = {{"gradients", gradients.size()},
                                                  {"momenta", momentum == 0 && momenta.empty() ? n : momenta.size()},
                                                  {"shadows", shadows.size()},
                                                  {"scales", scales.size()},
                                                  {"weight_decays", weight_decays.size()}};
  for (const auto& [name, size] : lists)
    TORCH_CHECK_VALUE(size == n, name, " must hold an entry for each of ", n, " parameters, got ", size);
  check_device_number(lr, "lr", n ? parameters[0] : lr, "parameters[0]");
  if (gradient_scale) check_device_number(*gradient_scale, "gradient_scale", lr, "lr");
  if (found_inf) check_device_number(*found_inf, "found_inf", lr, "lr");
  for (size_t i = 0; i < n; ++i) {
    const at::Tensor& p = parameters[i];
    TORCH_CHECK_TYPE(p.scalar_type() == at::kFloat || p.scalar_type() == at::kDouble, "parameters[", i,
                     "] must be float32 or float64, got ", p.scalar_type());
    TORCH_CHECK_VALUE(p.is_non_overlapping_and_dense(), "parameters[", i, "] must be dense in memory, got shape ",
                      p.sizes(), ", strides ", p.strides());
    check_like_parameter(p, "parameters", i, parameters[0], 0);
    if (const std::optional<at::Tensor> gradient = gradients.get(i))
      check_beside_parameter(*gradient, "gradients", i, p);
    if (!momenta.empty()) check_beside_parameter(momenta[i], "momenta", i, p);
    check_beside_parameter(shadows[i], "shadows", i, p);
  }
}

}  // namespace interlude
