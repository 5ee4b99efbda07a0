// Winograd's minimal filtering F(4x4, 3x3): four outputs of a three-tap filter in six products instead of twelve,
// and in two dimensions 36 instead of 144. One dimension here; a tile is transformed along columns, then rows.
//
//   y = A' [(G g) . (B' d)]   d six inputs, g three taps, y_i = sum_k g_k d_{i+k}
//
// Interpolation points 0, +-1/sqrt(2), +-sqrt(2), infinity: products and squares of the pairs are powers of two or
// cancel, and rounding errors are a quarter of those of the usual 0, +-1, +-2 (max over random tiles).
// T: float, double, or a vector of floats with + - and multiply_add.
#pragma once

#include "hd.h"

#if defined(__GNUC__) && !defined(__CUDACC__)
#define IF_INLINE inline __attribute__((always_inline))
#else
#define IF_INLINE IF_HD
#endif

namespace interlude {

constexpr float kRootHalf = 0.70710678118654752f, kRootTwo = 1.41421356237309505f;

IF_INLINE float multiply_add(float s, float x, float y) { return s * x + y; }
IF_INLINE double multiply_add(float s, double x, double y) { return s * x + y; }

// B': inputs of a tile -> values at the six points.
template <typename T>
IF_INLINE void winograd_input(const T (&d)[6], T (&v)[6]) {
  v[0] = multiply_add(-2.5f, d[2], d[0] + d[4]);
  v[5] = multiply_add(-2.5f, d[3], d[1] + d[5]);
  const T even_a = multiply_add(-2.0f, d[2], d[4]), odd_a = multiply_add(-2.0f, d[1], d[3]);
  const T even_b = multiply_add(-0.5f, d[2], d[4]), odd_b = multiply_add(-0.5f, d[1], d[3]);
  v[1] = multiply_add(kRootHalf, odd_a, even_a);
  v[2] = multiply_add(-kRootHalf, odd_a, even_a);
  v[3] = multiply_add(kRootTwo, odd_b, even_b);
  v[4] = multiply_add(-kRootTwo, odd_b, even_b);
}

// G: taps -> values at the six points.
template <typename T>
IF_INLINE void winograd_filter(const T (&g)[3], T (&u)[6]) {
  const T zero = g[0] - g[0];
  const T even_a = multiply_add(-1.0f / 3, g[2], multiply_add(-2.0f / 3, g[0], zero));
  const T even_b = multiply_add(1.0f / 3, g[2], multiply_add(1.0f / 6, g[0], zero));
  u[0] = g[0];
  u[1] = multiply_add(-2.0f / 3 * kRootHalf, g[1], even_a);
  u[2] = multiply_add(2.0f / 3 * kRootHalf, g[1], even_a);
  u[3] = multiply_add(1.0f / 6 * kRootTwo, g[1], even_b);
  u[4] = multiply_add(-1.0f / 6 * kRootTwo, g[1], even_b);
  u[5] = g[2];
}

// A': products at the six points -> outputs.
template <typename T>
IF_INLINE void winograd_output(const T (&m)[6], T (&y)[4]) {
  const T zero = m[0] - m[0];
  const T even_a = m[1] + m[2], odd_a = multiply_add(kRootHalf, m[1] - m[2], zero);
  const T even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = multiply_add(kRootTwo, odd_b, odd_a);
  y[2] = multiply_add(0.5f, even_a, even_b + even_b);
  y[3] = multiply_add(0.5f, odd_a, multiply_add(2 * kRootTwo, odd_b, m[5]));
}

// A: gradients of outputs -> gradients at the six points.
template <typename T>
IF_INLINE void winograd_output_adjoint(const T (&y)[4], T (&m)[6]) {
  const T even_a = multiply_add(0.5f, y[2], y[0]), odd_a = multiply_add(0.5f, y[3], y[1]);
  const T even_b = multiply_add(2.0f, y[2], y[0]), odd_b = multiply_add(2.0f, y[3], y[1]);
  m[0] = y[0];
  m[1] = multiply_add(kRootHalf, odd_a, even_a);
  m[2] = multiply_add(-kRootHalf, odd_a, even_a);
  m[3] = multiply_add(kRootTwo, odd_b, even_b);
  m[4] = multiply_add(-kRootTwo, odd_b, even_b);
  m[5] = y[3];
}

// G': gradients at the six points -> gradients of the taps.
template <typename T>
IF_INLINE void winograd_filter_adjoint(const T (&u)[6], T (&g)[3]) {
  const T even_a = u[1] + u[2], odd_a = u[2] - u[1];
  const T even_b = u[3] + u[4], odd_b = u[3] - u[4];
  const T zero = u[0] - u[0];
  g[0] = multiply_add(-2.0f / 3, even_a, multiply_add(1.0f / 6, even_b, u[0]));
  g[1] = multiply_add(2.0f / 3 * kRootHalf, odd_a, multiply_add(1.0f / 6 * kRootTwo, odd_b, zero));
  g[2] = multiply_add(-1.0f / 3, even_a, multiply_add(1.0f / 3, even_b, u[5]));
}

}  // namespace interlude
