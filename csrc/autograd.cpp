// Gradient rules of the losses, whose kernels compute the gradient in the forward pass: the backward pass only
// scales it. They stand here because the same rules in Python cost more than the kernels on a CPU.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

namespace interlude {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

void refuse_second_order(const char* name) {
  TORCH_CHECK(!at::GradMode::is_enabled(), name,
              " computes its gradient in the forward pass and has no second derivative; use "
              "interlude_fast.reference.",
              name, " where create_graph=True is needed");
}

// One of the losses: kOutputs outputs, of which the first alone is differentiable, and gradients by input.
template <typename Loss, typename... Arguments>
struct Scaled : torch::autograd::Function<Scaled<Loss, Arguments...>> {
  static variable_list forward(AutogradContext* ctx, Arguments... arguments) {
    at::AutoDispatchBelowADInplaceOrView below;
    const variable_list outputs = Loss::call(arguments...);
    const variable_list rest(outputs.begin() + 1, outputs.end());
    ctx->mark_non_differentiable(rest);
    ctx->set_materialize_grads(false);  // zeros as large as the logits otherwise, for nobody
    ctx->save_for_backward(Loss::gradients(outputs));
    ctx->saved_data["dtype"] = int64_t(Loss::logits(arguments...).scalar_type());
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& from_above) {
    refuse_second_order(Loss::kName);
    variable_list result(sizeof...(Arguments));
    if (!from_above[0].defined()) return result;
    const auto dtype = at::ScalarType(ctx->saved_data["dtype"].toInt());
    size_t input = Loss::kFirstInput;
    for (const Tensor& gradient : ctx->get_saved_variables())
      result[input++] = at::mul(gradient, from_above[0]).to(dtype);
    return result;
  }
};

struct Head {
  static constexpr const char* kName = "interlude_loss";
  static constexpr size_t kFirstInput = 0;
  using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;
  using Signature = Outputs(const Tensor&, const Tensor&, int64_t, double, const OptionalTensor&, double, double,
                            double, bool, bool, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&);

  template <typename... Arguments>
  static variable_list call(const Arguments&... arguments) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("interlude_fast::interlude_loss", "").typed<Signature>();
    auto [loss, parts, gradient, targets] = op.call(arguments...);
    return {loss, parts, gradient, targets};
  }
  template <typename... Rest>
  static const Tensor& logits(const Tensor& first, const Rest&...) {
    return first;
  }
  static variable_list gradients(const variable_list& outputs) { return {outputs[2]}; }
};

struct Delta {
  static constexpr const char* kName = "delta_consistency_loss";
  static constexpr size_t kFirstInput = 2;
  using Outputs = std::tuple<Tensor, Tensor, Tensor>;
  using Signature = Outputs(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&);

  template <typename... Arguments>
  static variable_list call(const Arguments&... arguments) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("interlude_fast::delta_consistency_loss", "").typed<Signature>();
    auto [loss, weak, strong] = op.call(arguments...);
    return {loss, weak, strong};
  }
  template <typename... Rest>
  static const Tensor& logits(const Tensor& first, const Rest&...) {
    return first;
  }
  static variable_list gradients(const variable_list& outputs) { return {outputs[1], outputs[2]}; }
};

// The function that is registered, with the kernel's own signature.
template <typename Loss, typename Signature = typename Loss::Signature>
struct Entry;

template <typename Loss, typename Outputs, typename... Arguments>
struct Entry<Loss, Outputs(Arguments...)> {
  static Outputs run(Arguments... arguments) {
    const variable_list outputs = Scaled<Loss, Arguments...>::apply(arguments...);
    return [&]<size_t... i>(std::index_sequence<i...>) {
      return Outputs(outputs[i]...);
    }(std::make_index_sequence<std::tuple_size_v<Outputs>>());
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, Autograd, m) {
  m.impl("interlude_loss", &Entry<Head>::run);
  m.impl("delta_consistency_loss", &Entry<Delta>::run);
}

}  // namespace interlude
