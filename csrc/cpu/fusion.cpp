// Embedding fusion on the CPU. One pass: each row is read as itself and once more, from cache, as its
// neighbour's neighbour. The backward pass is the same loop with the shift reversed.
//   x [N, ...] contiguous or channels-last -> y, same shape and strides.
#include "../math/fusion.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>

#include "../checks.h"

namespace interlude {
namespace {

constexpr int64_t kElementsPerTask = 32768;

template <typename T>
void fuse_rows(const T* x, T* y, int64_t rows, int64_t row_size, double alpha_, int64_t shift) {
  using A = at::opmath_type<T>;
  const A alpha = static_cast<A>(alpha_);
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, row_size));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* own = x + r * row_size;
      const T* neighbour = x + shifted_row(r, rows, shift) * row_size;
      T* out = y + r * row_size;
#pragma omp simd
      for (int64_t i = 0; i < row_size; ++i) out[i] = static_cast<T>(fuse_element<A>(own[i], neighbour[i], alpha));
    }
  });
}

at::Tensor circular_shift_fusion(const at::Tensor& x_in, double alpha, int64_t shift) {
  check_fusion(x_in, alpha, shift);
  const auto format = dense_rows_format(x_in);
  const at::Tensor x = x_in.contiguous(format);
  at::Tensor y = at::empty_like(x, x.options().memory_format(format));
  if (x.numel() == 0) return y;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "circular_shift_fusion", [&] {
    fuse_rows(x.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(), x.size(0), x.numel() / x.size(0), alpha,
              shift);
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(interlude_fast, CPU, m) { m.impl("circular_shift_fusion", &circular_shift_fusion); }

}  // namespace interlude
