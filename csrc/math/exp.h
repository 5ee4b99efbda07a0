// exp of values <= 0, as a softmax needs it, in a form that compilers vectorize: the C library's expf is a
// call per element. Relative error below 3e-7 in float (Cephes' polynomial); double takes std::exp.
#pragma once

#include <cstring>

#include "hd.h"

namespace interlude {

IF_HD double exp_nonpositive(double x) { return std::exp(x); }

IF_HD float exp_nonpositive(float x) {
  constexpr float kLeast = -87.3f;                // below: under float's normal range, taken as 0
  constexpr float kRounding = 12582912.0f;        // 1.5 * 2^23: adding and subtracting it rounds to an integer
  const float clamped = x > kLeast ? x : kLeast;  // NaN too, put back at the end
  const float n = (clamped * 1.44269504f + kRounding) - kRounding;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const int32_t bits = (int32_t(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  const float result = x < kLeast ? 0.0f : y * scale;
  return x != x ? x : result;
}

}  // namespace interlude
