// Embedding fusion by circular shift (InterLUDE, section 3): one element, and which row is blended in.
#pragma once

#include "hd.h"

namespace interlude {

// Y_r = (1 - alpha) X_r + alpha X_{r + shift}. Arithmetic in A (float32 for 16-bit storage).
template <typename A>
IF_HD A fuse_element(A own, A neighbour, A alpha) {
  return (A(1) - alpha) * own + alpha * neighbour;
}

// (row + shift) mod rows for shift = +1 (forward) or -1 (backward).
IF_HD int64_t shifted_row(int64_t row, int64_t rows, int64_t shift) {
  const int64_t shifted = row + shift;
  return shifted >= rows ? shifted - rows : (shifted < 0 ? shifted + rows : shifted);
}

}  // namespace interlude
