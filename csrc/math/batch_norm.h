// Batch norm over the pixels of a batch, then leaky ReLU: elements, and how statistics of parts come together.
#pragma once

#include "hd.h"

namespace interlude {

// Count, mean and sum of squared differences from it. Parts are joined in double.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  IF_HD void join(double other_count, double other_mean, double other_squares) {
    const double total = count + other_count, difference = other_mean - mean;
    mean += difference * other_count / total;
    squares += other_squares + difference * difference * count * other_count / total;
    count = total;
  }
};

template <typename T>
IF_HD T leaky(T value, T slope) {
  return value > 0 ? value : slope * value;
}

// Gradient in front of the activation; `value` is what went into it.
template <typename T>
IF_HD T leaky_gradient(T value, T gradient, T slope) {
  return value > 0 ? gradient : slope * gradient;
}

}  // namespace interlude
