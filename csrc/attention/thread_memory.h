// Memory of a thread for what it computes at a time. Only for kernel files.
#pragma once

#include <cstdint>
#include <memory>

#include "common/vector.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

// Kept from call to call: fresh memory of this size would be cleared page by page.
template <class A>
inline A* thread_memory(int64_t size) {
  thread_local std::unique_ptr<A[]> memory;
  thread_local int64_t held = 0;
  if (held < size) {
    memory.reset(new A[size]);
    held = size;
  }
  return memory.get();
}

}  // namespace
}  // namespace SPANBERT_ISA
}  // namespace spanbert
