// The Winograd convolution in vectors of eight floats, for processors with AVX2 and FMA.
#include "../conv3x3_problem.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#include "../math/hd.h"

// From here on the compiler may use AVX2; nothing but this file's own code may follow, lest a shared inline function
// be compiled for it.
#pragma GCC push_options
#pragma GCC target("avx2,fma")

#include "../math/winograd.h"

namespace interlude {
namespace {

struct Vec {
  static constexpr int kSize = 8;
  __m256 v;

  static IF_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static IF_INLINE Vec all(float x) { return {_mm256_set1_ps(x)}; }
  IF_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
};
IF_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
IF_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
IF_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
IF_INLINE Vec multiply_add(float a, Vec b, Vec c) { return multiply_add(Vec::all(a), b, c); }

#include "conv3x3_kernels.h"

constexpr Conv3x3Kernels kKernels = {kPanel, transform_weights, convolve_tiles, add_weight_gradient, collect_weights};

}  // namespace
}  // namespace interlude

#pragma GCC pop_options

namespace interlude {

const Conv3x3Kernels* conv3x3_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kKernels : nullptr;
}

}  // namespace interlude
#else
namespace interlude {

const Conv3x3Kernels* conv3x3_avx2() { return nullptr; }

}  // namespace interlude
#endif
