// Faults that a sanitizer must report, with every instruction set: in sanitized builds alone.

#include <cstdint>
#include <limits>
#include <memory>

#include "common/vector.h"

namespace spanbert {
namespace SPANBERT_ISA {

// Loads a vector of which all but the first `allocated` elements lie outside of the memory asked for.
double read_past(int64_t allocated) {
  const std::unique_ptr<float[]> memory(new float[allocated]());
  return load(memory.get())[0];
}

int64_t overflow(int64_t summand) { return std::numeric_limits<int64_t>::max() + summand; }

}  // namespace SPANBERT_ISA
}  // namespace spanbert
