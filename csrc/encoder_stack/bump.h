// Pieces of one memory.
#pragma once

#include <cstdint>

#include "encoder_stack/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {

// Pieces of memory one behind the other, each on a cache line. Without a beginning it only counts.
struct Bump {
  char* begin;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    char* taken = begin ? begin + used : nullptr;
    used += aligned(count * static_cast<int64_t>(sizeof(T)));
    return reinterpret_cast<T*>(taken);
  }
};

}  // namespace SPANBERT_ISA
}  // namespace spanbert
