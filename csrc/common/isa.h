// Instruction sets (ISAs). Kernel files are compiled once for each, into a namespace of its name; the bindings call the
// one that this processor has. The build says which there are, the best last: SPANBERT_ISAS(use, argument) stands for
// use(portable, argument) use(avx2, argument) ...
#pragma once

#include <array>

#ifndef SPANBERT_ISAS  // sources for a GPU read what these headers say of the arguments
#define SPANBERT_ISAS(use, argument)
#endif

#define SPANBERT_DECLARE_IN(isa, signature) \
  namespace isa {                           \
  SPANBERT_WITHOUT_PARENTHESES signature;   \
  }
#define SPANBERT_WITHOUT_PARENTHESES(...) __VA_ARGS__
#define SPANBERT_ADDRESS_IN(isa, name) &::spanbert::isa::name,

// Declares a kernel in the namespace of every instruction set that was compiled.
#define SPANBERT_DECLARE(...) SPANBERT_ISAS(SPANBERT_DECLARE_IN, (__VA_ARGS__))

// The kernel of the instruction set in use.
#define SPANBERT_KERNEL(name) (std::array{SPANBERT_ISAS(SPANBERT_ADDRESS_IN, name)}[::spanbert::isa()])

namespace spanbert {

// Which is in use, counted from 0: the last that was compiled and that the processor has, unless a test chose another.
int isa();

}  // namespace spanbert
