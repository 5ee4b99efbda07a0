// From tensors to what the augmentation loops read, and the op's entry point. The CPU and CUDA files add
// how the rows are walked, as a Backend: Scope(tensor), run<C>(AugmentProblem<T>, scope).
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "checks.h"
#include "math/augment.h"
#include "math/divide.h"
#include "math/view_draw.h"

namespace interlude {

template <typename T>
struct AugmentProblem {
  AugmentPolicy policy;
  uint64_t seed;
  const int64_t* step;
  const uint8_t* store;                 // [S, side, side, C]
  const int64_t *items, *rows, *views;  // [R]
  const int64_t* affine;                // [kAugmentOps, levels, 2, 6]
  const float* values;                  // [kAugmentOps, levels]
  const T* table;                       // [C, 256]
  T* out;                               // [R, side, side, C]
  int64_t count, stored;
  Divisor by_side;

  IF_HD float value(const ViewDraw& d, int i) const { return values[d.op[i] * policy.levels + d.level[i]]; }
  IF_HD const int64_t* matrix(const ViewDraw& d, int i) const {
    return affine + ((int64_t{d.op[i]} * policy.levels + d.level[i]) * 2 + d.mirrored[i]) * 6;
  }
};

template <typename Backend>
at::Tensor augment_views(const at::Tensor& store, const at::Tensor& items, const at::Tensor& rows,
                         const at::Tensor& views, const at::Tensor& step, int64_t seed, bool flip, int64_t pad,
                         int64_t ops, bool always, int64_t square, bool random_square, at::IntArrayRef fill,
                         const at::Tensor& affine, const at::Tensor& values, const at::Tensor& table) {
  check_augment(store, items, rows, views, step, pad, ops, square, fill, affine, values, table);
  const typename Backend::Scope scope(store);
  const int64_t side = store.size(1), channels = store.size(3);
  at::Tensor out =
      at::empty({items.size(0), channels, side, side}, table.options().memory_format(at::MemoryFormat::ChannelsLast));
  if (out.numel() == 0) return out;
  AT_DISPATCH_FLOATING_TYPES_AND3(at::kHalf, at::kBFloat16, at::kByte, table.scalar_type(), "augment_views", [&] {
    AugmentProblem<scalar_t> p{};
    p.policy = {.side = int(side),
                .flip = flip,
                .pad = int(pad),
                .ops = int(ops),
                .always = always,
                .levels = int(values.size(1)),
                .square = int(square),
                .random_square = random_square,
                .fill = {}};
    for (int64_t c = 0; c < channels; ++c) p.policy.fill[c] = uint8_t(fill[c]);
    p.seed = uint64_t(seed), p.step = step.const_data_ptr<int64_t>(), p.store = store.const_data_ptr<uint8_t>();
    p.items = items.const_data_ptr<int64_t>(), p.rows = rows.const_data_ptr<int64_t>();
    p.views = views.const_data_ptr<int64_t>(), p.affine = affine.const_data_ptr<int64_t>();
    p.values = values.const_data_ptr<float>(), p.table = table.const_data_ptr<scalar_t>();
    p.out = out.mutable_data_ptr<scalar_t>(), p.count = items.size(0), p.stored = store.size(0);
    p.by_side = make_divisor(int(side));
    if (channels == 1)
      Backend::template run<1>(p, scope);
    else
      Backend::template run<3>(p, scope);
  });
  return out;
}

}  // namespace interlude
