// The table of contents: every op's schema, and what this build was made with.
// Implementations: cpu/<file>.cpp and cuda/<file>.cu; public faces, shape and gradient rules:
// interlude_fast/ops.
#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include "conv3x3_problem.h"

TORCH_LIBRARY(interlude_fast, m) {
  m.def("circular_shift_fusion(Tensor x, float alpha, int shift) -> Tensor");
  m.def("conv3x3(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("conv3x3_weight(Tensor x, Tensor grad) -> Tensor");
  m.def(
      "sample_rows(Tensor step, int seed, int labeled, int unlabeled, int batch, int mu) -> "
      "(Tensor labeled_items, Tensor unlabeled_items)");
  m.def(
      "augment_views(Tensor store, Tensor items, Tensor rows, Tensor views, Tensor step, int seed, bool flip, "
      "int pad, int ops, bool always, int square, bool random_square, int[] fill, Tensor affine, Tensor values, "
      "Tensor table) -> Tensor");
  m.def(
      "interlude_loss(Tensor logits, Tensor labels, int mu, float tau, Tensor? thresholds, float lambda_u, "
      "float lambda_dc, float temperature, bool per_class, bool interdigitated, Tensor? class_weights, "
      "Tensor? pseudo_label_bias, Tensor? ramps) -> (Tensor loss, Tensor parts, Tensor grad_logits, Tensor targets)");
  m.def(
      "delta_consistency_loss(Tensor labeled_weak, Tensor labeled_strong, Tensor unlabeled_weak, "
      "Tensor unlabeled_strong, Tensor? match) -> (Tensor loss, Tensor grad_weak, Tensor grad_strong)");
  m.def(
      "sgd_ema_(Tensor(a!)[] parameters, Tensor?[] gradients, Tensor(b!)[] momenta, Tensor(c!)[] shadows, Tensor lr, "
      "float[] scales, float[] weight_decays, float momentum, bool nesterov, float ema_decay, float shrink, "
      "Tensor? gradient_scale, Tensor? found_inf) -> ()");
}

PYBIND11_MODULE(_C, m) {
  m.attr("torch_version") = TORCH_VERSION;
#if defined(INTERLUDE_FAST_CUDA)
  m.attr("cuda_version") = INTERLUDE_FAST_CUDA;
  m.attr("cuda_archs") = INTERLUDE_FAST_CUDA_ARCHS;
#else
  m.attr("cuda_version") = pybind11::none();
  m.attr("cuda_archs") = "";
#endif
  m.attr("vector_unit") = interlude::conv3x3_avx2() ? "AVX2" : "";
#if defined(__clang__)
  m.attr("compiler") = "clang " __clang_version__;
#elif defined(__GNUC__)
  m.attr("compiler") = "g++ " __VERSION__;
#else
  m.attr("compiler") = "unknown";
#endif
}
