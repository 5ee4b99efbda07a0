// From tensors to math/ssl_loss.h's description of a batch, and the loss ops' entry points. The CPU and
// CUDA files add only how the groups are walked, as a Backend:
//   Backend::Scope(tensor)              made first, lives through the call (device, stream)
//   Backend::run(SslLoss<T, A>, scope)  fills parts and gradients
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "math/ssl_loss.h"

namespace interlude {

using OptionalTensor = std::optional<at::Tensor>;

// Owns what SslLoss points to.
struct SslLossBuffers {
  at::Tensor work, targets, loss, parts;
};

inline at::ScalarType arithmetic_type(const at::Tensor& t) { return at::toOpMathType(t.scalar_type()); }

inline OptionalTensor as_arithmetic(const OptionalTensor& t, const at::Tensor& like) {
  return t ? OptionalTensor(t->to(arithmetic_type(like)).contiguous()) : std::nullopt;
}

template <typename A>
const A* data_or_null(const OptionalTensor& t) {
  return t ? t->const_data_ptr<A>() : nullptr;
}

// Work space and outputs for B groups of 2(1+mu) rows of K classes.
template <typename T, typename A>
void attach_buffers(SslLoss<T, A>& p, SslLossBuffers& buffers, const at::Tensor& like) {
  const int64_t per_row = p.batch * p.rows(), per_class = p.batch * p.classes, per_pair = p.batch * p.mu;
  const auto options = like.options().dtype(arithmetic_type(like));
  buffers.work = at::empty({2 * per_row + per_class + per_pair + kGroupSums * p.batch}, options);
  buffers.targets = at::empty({per_pair}, like.options().dtype(at::kInt));
  buffers.loss = at::empty({}, options);
  buffers.parts = at::empty({kParts}, options);
  p.row_max = buffers.work.mutable_data_ptr<A>();
  p.row_sum = p.row_max + per_row;
  p.delta = p.row_sum + per_row;
  p.share = p.delta + per_class;
  p.group_sum = p.share + per_pair;
  p.target = buffers.targets.mutable_data_ptr<int>();
  p.loss = buffers.loss.mutable_data_ptr<A>();
  p.parts = buffers.parts.mutable_data_ptr<A>();
}

struct LossOptions {
  OptionalTensor class_weights, thresholds, pseudo_label_bias, ramps;
  double tau = 0, temperature = 1, lambda_u = 0, lambda_dc = 0;
  bool per_class = false, interdigitated = true;
};

// The whole head: logits [2B(1+mu), K] in either row order, labels [B].
template <typename T, typename A>
SslLoss<T, A> head_problem(const at::Tensor& logits, const at::Tensor& labels, at::Tensor& grad, int64_t mu,
                           const LossOptions& o, SslLossBuffers& buffers) {
  SslLoss<T, A> p{};
  p.batch = labels.size(0), p.mu = int(mu), p.classes = int(logits.size(1));
  const T* in = logits.const_data_ptr<T>();
  A* out = grad.mutable_data_ptr<A>();
  p.logits = o.interdigitated ? interdigitated_rows(in, mu, p.classes) : separate_rows(in, p.batch, mu, p.classes);
  p.grad = o.interdigitated ? interdigitated_rows(out, mu, p.classes) : separate_rows(out, p.batch, mu, p.classes);
  p.labels = labels.const_data_ptr<int64_t>();
  p.class_weights = data_or_null<A>(o.class_weights);
  p.thresholds = data_or_null<A>(o.thresholds);
  p.pseudo_label_bias = data_or_null<A>(o.pseudo_label_bias);
  p.ramps = data_or_null<A>(o.ramps);
  p.tau = A(o.tau), p.temperature = A(o.temperature);
  p.lambda_u = A(o.lambda_u), p.lambda_dc = A(o.lambda_dc), p.per_class = o.per_class;
  attach_buffers(p, buffers, logits);
  return p;
}

// The delta-consistency term alone: labeled logits [B, K], unlabeled [B, mu, K], match [B, mu] or none.
template <typename T, typename A>
SslLoss<T, A> delta_problem(const at::Tensor& lw, const at::Tensor& ls, const at::Tensor& uw, const at::Tensor& us,
                            const OptionalTensor& match, at::Tensor& grad_uw, at::Tensor& grad_us,
                            SslLossBuffers& buffers) {
  SslLoss<T, A> p{};
  p.batch = uw.size(0), p.mu = int(uw.size(1)), p.classes = int(uw.size(2));
  const int64_t k = p.classes;
  p.logits = {
      lw.const_data_ptr<T>(), uw.const_data_ptr<T>(), ls.const_data_ptr<T>(), us.const_data_ptr<T>(), k, p.mu * k};
  p.grad = {nullptr, grad_uw.mutable_data_ptr<A>(), nullptr, grad_us.mutable_data_ptr<A>(), k, p.mu * k};
  p.match = match ? match->const_data_ptr<bool>() : nullptr;
  p.per_class = match.has_value();
  p.tau = A(2), p.temperature = A(1), p.lambda_u = A(0), p.lambda_dc = A(1);
  attach_buffers(p, buffers, uw);
  return p;
}

template <typename Backend>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> interlude_loss(
    const at::Tensor& logits_in, const at::Tensor& labels_in, int64_t mu, double tau, const OptionalTensor& thresholds,
    double lambda_u, double lambda_dc, double temperature, bool per_class, bool interdigitated,
    const OptionalTensor& class_weights, const OptionalTensor& pseudo_label_bias, const OptionalTensor& ramps) {
  check_interlude_loss(logits_in, labels_in, mu, thresholds, class_weights, pseudo_label_bias, ramps);
  const typename Backend::Scope scope(logits_in);
  const at::Tensor logits = logits_in.contiguous(), labels = labels_in.contiguous();
  const LossOptions options{as_arithmetic(class_weights, logits),
                            as_arithmetic(thresholds, logits),
                            as_arithmetic(pseudo_label_bias, logits),
                            as_arithmetic(ramps, logits),
                            tau,
                            temperature,
                            lambda_u,
                            lambda_dc,
                            per_class,
                            interdigitated};
  at::Tensor grad = at::empty_like(logits, arithmetic_type(logits));
  SslLossBuffers buffers;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, logits.scalar_type(), "interlude_loss", [&] {
    using A = at::opmath_type<scalar_t>;
    Backend::run(head_problem<scalar_t, A>(logits, labels, grad, mu, options, buffers), scope);
  });
  return {buffers.loss, buffers.parts, grad, buffers.targets.view({labels.size(0), mu})};
}

template <typename Backend>
std::tuple<at::Tensor, at::Tensor, at::Tensor> delta_consistency_loss(const at::Tensor& lw_in, const at::Tensor& ls_in,
                                                                      const at::Tensor& uw_in, const at::Tensor& us_in,
                                                                      const OptionalTensor& match_in) {
  check_delta_consistency(lw_in, ls_in, uw_in, us_in, match_in);
  const typename Backend::Scope scope(uw_in);
  const at::Tensor lw = lw_in.contiguous(), ls = ls_in.contiguous(), uw = uw_in.contiguous(), us = us_in.contiguous();
  const OptionalTensor match = match_in ? OptionalTensor(match_in->contiguous()) : std::nullopt;
  at::Tensor grad_uw = at::empty_like(uw, arithmetic_type(uw)), grad_us = at::empty_like(us, arithmetic_type(us));
  SslLossBuffers buffers;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, uw.scalar_type(), "delta_consistency_loss", [&] {
    using A = at::opmath_type<scalar_t>;
    Backend::run(delta_problem<scalar_t, A>(lw, ls, uw, us, match, grad_uw, grad_us, buffers), scope);
  });
  return {buffers.loss, grad_uw, grad_us};
}

}  // namespace interlude
