// Flat loops that the compiler vectorizes (with -fwrapv only if they count in 64 bits): also built for AVX2, chosen
// when the library is loaded.
#pragma once

#if defined(__x86_64__) && defined(__GLIBC__)
#define IF_VECTORIZED __attribute__((target_clones("avx2", "default")))
#else
#define IF_VECTORIZED
#endif
// What such functions share: it must become part of each of them to be built for their processor.
#define IF_INLINE inline __attribute__((always_inline))
