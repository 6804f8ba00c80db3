// Instruction-set levels. Kernel files are compiled once per level, each into a namespace of that name; the bindings
// call the one that this processor has.
#pragma once

#ifdef SPANBERT_HAS_AVX512
#define SPANBERT_IF_AVX512(x) x
#else
#define SPANBERT_IF_AVX512(x)
#endif
#ifdef SPANBERT_HAS_AVX2
#define SPANBERT_IF_AVX2(x) x
#else
#define SPANBERT_IF_AVX2(x)
#endif

// Declares a kernel in the namespace of every level that was compiled.
#define SPANBERT_DECLARE(signature)               \
  namespace portable {                            \
  signature;                                      \
  }                                               \
  SPANBERT_IF_AVX2(namespace avx2 { signature; }) \
  SPANBERT_IF_AVX512(namespace avx512 { signature; })

// The kernel of the level in use.
// clang-format off
#define SPANBERT_KERNEL(name)                                                                        \
  (SPANBERT_IF_AVX512(::spanbert::level() == ::spanbert::Level::avx512 ? ::spanbert::avx512::name :) \
   SPANBERT_IF_AVX2(::spanbert::level() == ::spanbert::Level::avx2 ? ::spanbert::avx2::name :)       \
   ::spanbert::portable::name)
// clang-format on

namespace spanbert {

enum class Level : int { portable = 0, avx2 = 1, avx512 = 2 };

// The level in use: the highest that was compiled and that the processor has, unless a test chose a lower one.
Level level();

}  // namespace spanbert
