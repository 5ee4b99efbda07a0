// Winograd's transforms: the convolution that they make, and that the adjoints are adjoint.
#include "check.h"
#include "math/winograd.h"

using namespace interlude;

namespace {

// Uneven numbers of both signs, exactly representable.
template <typename T, int n>
void fill(T (&values)[n], int seed) {
  for (int i = 0; i < n; ++i) values[i] = T((7 * i * i + 13 * seed + 5 * i * seed) % 17 - 8) / 4;
}

template <typename T>
void check_convolution(int seed, double tolerance) {
  T d[6], g[3], v[6], u[6], m[6], y[4];
  fill(d, seed);
  fill(g, seed + 1);
  winograd_input(d, v);
  winograd_filter(g, u);
  for (int p = 0; p < 6; ++p) m[p] = v[p] * u[p];
  winograd_output(m, y);
  for (int i = 0; i < 4; ++i) CHECK_NEAR(y[i], d[i] * g[0] + d[i + 1] * g[1] + d[i + 2] * g[2], tolerance);

  // The gradient of <y, e> for the taps: sum_i e_i d_{i+k}.
  T e[4], back[6], taps[3];
  fill(e, seed + 2);
  winograd_output_adjoint(e, back);
  for (int p = 0; p < 6; ++p) m[p] = v[p] * back[p];
  winograd_filter_adjoint(m, taps);
  for (int k = 0; k < 3; ++k)
    CHECK_NEAR(taps[k], e[0] * d[k] + e[1] * d[k + 1] + e[2] * d[k + 2] + e[3] * d[k + 3], tolerance);
}

// <A' m, e> = <m, A e> and <G g, m> = <g, G' m>.
void check_adjoints(int seed) {
  double m[6], e[4], y[4], back[6], g[3], u[6], taps[3], left = 0, right = 0;
  fill(m, seed);
  fill(e, seed + 1);
  fill(g, seed + 2);
  winograd_output(m, y);
  winograd_output_adjoint(e, back);
  for (int i = 0; i < 4; ++i) left += y[i] * e[i];
  for (int p = 0; p < 6; ++p) right += m[p] * back[p];
  CHECK_NEAR(left, right, 1e-5);
  winograd_filter(g, u);
  winograd_filter_adjoint(m, taps);
  left = right = 0;
  for (int p = 0; p < 6; ++p) left += u[p] * m[p];
  for (int k = 0; k < 3; ++k) right += g[k] * taps[k];
  CHECK_NEAR(left, right, 1e-5);
}

}  // namespace

int main() {
  for (int seed = 0; seed < 20; ++seed) {
    check_convolution<float>(seed, 1e-4);
    check_convolution<double>(seed, 1e-5);  // the points are float constants
    check_adjoints(seed);
  }
  return check::result();
}
