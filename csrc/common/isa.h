// Instruction sets (ISAs). Kernel files are compiled once for each, into a namespace of its name; the bindings call the
// one that this processor has. The build says which there are, the best last: SPANBERT_ISAS(use, argument) stands for
// use(portable, argument) use(avx2, argument) ..., and SPANBERT_ALL_ISAS for these and those behind them that only some
// kernels are compiled for.
#pragma once

#include <array>

#ifndef SPANBERT_ISAS  // sources for a GPU read what these headers say of the arguments
#define SPANBERT_ISAS(use, argument)
#define SPANBERT_ALL_ISAS(use, argument)
#endif

#define SPANBERT_DECLARE_IN(isa, signature) \
  namespace isa {                           \
  SPANBERT_WITHOUT_PARENTHESES signature;   \
  }
#define SPANBERT_WITHOUT_PARENTHESES(...) __VA_ARGS__
#define SPANBERT_ADDRESS_IN(isa, name) &::spanbert::isa::name,

// Declares a kernel in the namespace of every instruction set that it is compiled for.
#define SPANBERT_DECLARE(...) SPANBERT_ISAS(SPANBERT_DECLARE_IN, (__VA_ARGS__))
#define SPANBERT_DECLARE_ALL(...) SPANBERT_ALL_ISAS(SPANBERT_DECLARE_IN, (__VA_ARGS__))

// The kernel of the instruction set in use, or of the last one before it that it is compiled for.
#define SPANBERT_KERNEL(name) (::spanbert::of_isa(std::array{SPANBERT_ISAS(SPANBERT_ADDRESS_IN, name)}))
#define SPANBERT_KERNEL_ALL(name) (::spanbert::of_isa(std::array{SPANBERT_ALL_ISAS(SPANBERT_ADDRESS_IN, name)}))

namespace spanbert {

// Which is in use, counted from 0: the last that was compiled and that the processor has, unless a test chose another.
int isa();

template <class Kernels>
auto of_isa(const Kernels& kernels) {
  const auto wanted = static_cast<std::size_t>(isa());
  return kernels[wanted < kernels.size() ? wanted : kernels.size() - 1];
}

}  // namespace spanbert
