// What every launch needs: the tensor's device made current, its current stream, checked launches, wide accesses.
// Only small torch headers: ATen/cuda/CUDAContext.h would want cuSPARSE's.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

namespace interlude {

// Makes `like`'s device current for the scope and names the stream that torch is using on it.
struct LaunchScope {
  explicit LaunchScope(const at::Tensor& like)
      : guard(like.device()), device(like.device()), stream(c10::cuda::getCurrentCUDAStream(device.index())) {}
  c10::cuda::CUDAGuard guard;
  c10::Device device;
  cudaStream_t stream;
};

// Neighbours that are read and written together; 16 bytes are the widest access.
template <typename T, int kLanes>
struct alignas(sizeof(T) * kLanes) Packet {
  T lane[kLanes];
};

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

}  // namespace interlude
