// What every launch needs: the tensor's device made current, its current stream, checked launches, wide accesses.
// Only small torch headers: ATen/cuda/CUDAContext.h would want cuSPARSE's.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <utility>

// A block's dynamic shared memory, by its name in the kernel; aligned for the widest access.
#ifndef IF_DYNAMIC_SHARED
#define IF_DYNAMIC_SHARED(name) extern __shared__ __align__(16) uint8_t name[]
#endif

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

struct LaunchShape {
  int64_t blocks;
  int threads;
  size_t dynamic_bytes = 0;  // of shared memory
  bool cooperative = false;  // all blocks run at once and may meet (this_grid().sync())
};

// The one way to launch a kernel; arguments become what its parameters are. Raises what CUDA says of the launch.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, const LaunchScope& scope,
            Arguments&&... arguments) {
  TORCH_INTERNAL_ASSERT(shape.blocks > 0 && shape.blocks < (int64_t{1} << 31), "blocks: ", shape.blocks);
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.dynamic_bytes;
  config.stream = scope.stream;
  config.attrs = &cooperative;
  config.numAttrs = shape.cooperative ? 1 : 0;
  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

}  // namespace interlude
