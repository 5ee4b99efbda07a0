// Marks a function as host-and-device: one definition for g++, for nvcc's host pass and for the GPU.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define IF_HD __host__ __device__ __forceinline__
#else
#define IF_HD inline
#endif
