// Keyed permutations: bijections, different for every key, uniform; and the items of a step. Frozen numbers
// come from interlude_fast/reference/sampling.py; tests/ops/test_sample_rows.py holds the same ones, so that neither
// language's stream changes unseen.
#include <vector>

#include "check.h"
#include "math/shuffle.h"

using namespace interlude;

using Items = std::vector<uint32_t>;

Items image(const Permutation& p, uint32_t count) {
  Items items(count);
  for (uint32_t i = 0; i < count; ++i) items[i] = permute(p, i);
  return items;
}

void bijections() {
  for (uint32_t size : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 9u, 10u, 31u, 33u, 1023u, 1437u, 4096u, 65536u, 65537u})
    for (uint64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int> seen(size);
      for (uint32_t item : image(make_permutation(size, 5, epoch, 2, Stream::kSplit), size)) {
        CHECK(item < size);
        if (item < size) ++seen[item];
      }
      for (int times : seen) CHECK_EQ(times, 1);
    }
}

void keys_matter() {
  const auto order = [](uint64_t seed, uint64_t epoch, uint32_t row, Stream stream) {
    return image(make_permutation(1437, seed, epoch, row, stream), 1437);
  };
  const Items first = order(3, 4, 5, Stream::kSplit);
  const std::vector<Items> others = {
      order(2, 4, 5, Stream::kSplit), order(3 + (uint64_t{1} << 32), 4, 5, Stream::kSplit),
      order(3, 5, 5, Stream::kSplit), order(3, 4 + (uint64_t{1} << 32), 5, Stream::kSplit),
      order(3, 4, 6, Stream::kSplit), order(3, 4, 5, Stream::kAugment)};
  CHECK(first == order(3, 4, 5, Stream::kSplit));
  for (const Items& other : others) {
    int fixed = 0;  // of two independent orders about one item stands in the same place
    for (size_t i = 0; i < first.size(); ++i) fixed += first[i] == other[i];
    CHECK(fixed < 10);
  }
}

// Chi-square of counts that ought to be equal, in standard deviations from its mean.
double excess(const std::vector<int>& counts) {
  double total = 0, square = 0;
  for (int count : counts) total += count, square += double(count) * count;
  const double freedom = double(counts.size()) - 1;
  return (square * double(counts.size()) / total - total - freedom) / std::sqrt(2 * freedom);
}

void uniformity() {
  for (uint32_t size : {5u, 8u, 12u, 33u, 40u, 97u}) {
    std::vector<int> first(size), pairs(size * size), off_diagonal;
    for (uint64_t epoch = 0; epoch < 20000; ++epoch) {
      const Items items = image(make_permutation(size, 11, epoch, 0, Stream::kUnlabeledDraw), 2);
      ++first[items[0]];
      ++pairs[items[0] * size + items[1]];
    }
    for (uint32_t i = 0; i < size * size; ++i)
      if (i / size != i % size) off_diagonal.push_back(pairs[i]);
    CHECK(std::abs(excess(first)) < 4);
    CHECK(std::abs(excess(off_diagonal)) < 4);
  }
}

void frozen() {
  CHECK((image(make_permutation(40, 1, 0, 0, Stream::kLabeledOrder), 8) == Items{35, 11, 23, 33, 38, 28, 12, 34}));
  CHECK((image(make_permutation(1437, uint64_t(-5), (uint64_t{1} << 40) + 3, 63, Stream::kUnlabeledDraw), 8) ==
         Items{582, 246, 1029, 507, 919, 700, 1406, 277}));
  CHECK((image(make_permutation(65537, (uint64_t{1} << 62) + 1, 11, 5, Stream::kSplit), 8) ==
         Items{14112, 32282, 3426, 50120, 6109, 25151, 36160, 50456}));
  const Permutation largest = make_permutation(1u << 31, 3, 1, 1, Stream::kAugment);
  CHECK_EQ(permute(largest, 0), 1026117277u);
  CHECK_EQ(permute(largest, (1u << 31) - 1), 1007214730u);
}

// Seed -1, step 2^33 + 5, 1437 labeled and unlabeled items, batch 3, mu 4.
void items_of_a_step() {
  const uint64_t seed = uint64_t(-1), step = (uint64_t{1} << 33) + 5;
  const Items labeled{133, 990, 788};
  const Items unlabeled{1100, 525, 104, 156, 1424, 86, 1110, 874, 119, 1372, 905, 410};
  for (uint32_t i = 0; i < 3; ++i) {
    CHECK_EQ(labeled_item(seed, step * 3 + i, 1437), labeled[i]);
    for (uint32_t j = 0; j < 4; ++j) CHECK_EQ(unlabeled_item(seed, step, i, j, 1437), unlabeled[i * 4 + j]);
  }
}

int main() {
  bijections();
  keys_matter();
  uniformity();
  frozen();
  items_of_a_step();
  return check::result();
}
