// Sums and argmax over a warp and sums over a block. Every lane gets the result.
#pragma once

#include "../math/ssl_loss.h"

namespace interlude {

constexpr int kWarp = 32;

template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

template <typename A>
__device__ __forceinline__ void warp_argmax(A& value, int& index) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, offset);
    const int other_index = __shfl_xor_sync(0xffffffffu, index, offset);
    if (ranks_before(other, other_index, value, index)) value = other, index = other_index;
  }
}

// `shared` holds one A per warp. Begins and ends with a barrier, so that it can be reused at once.
template <typename A>
__device__ A block_sum(A value, A* shared) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = threadIdx.x % kWarp < blockDim.x / kWarp ? shared[threadIdx.x % kWarp] : A(0);
  value = warp_sum(value);
  __syncthreads();
  return value;
}

}  // namespace interlude
