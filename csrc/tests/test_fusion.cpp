// One element of the embedding fusion, and which row is its neighbour.
#include "check.h"
#include "math/fusion.h"

using namespace interlude;

int main() {
  CHECK_EQ(fuse_element(3.0f, 7.0f, 0.0f), 3.0f);
  CHECK_EQ(fuse_element(3.0f, 7.0f, 0.5f), 5.0f);
  CHECK_EQ(fuse_element(8.0, -8.0, 0.25), 4.0);
  CHECK_NEAR(fuse_element(1.1, 1.1, 0.3), 1.1, 1e-15);
  CHECK(std::isnan(fuse_element(NAN, 1.0f, 0.1f)) && std::isnan(fuse_element(1.0f, NAN, 0.1f)));

  for (int64_t rows : {int64_t{1}, int64_t{2}, int64_t{7}, int64_t{1} << 40})
    for (int64_t row : {int64_t{0}, rows / 2, rows - 1})
      for (int64_t shift : {1, -1}) {
        const int64_t neighbour = shifted_row(row, rows, shift);
        CHECK_EQ(neighbour, (row + shift + rows) % rows);
        CHECK_EQ(shifted_row(neighbour, rows, -shift), row);
      }
  return check::result();
}
