// Pages of 2 MiB for large results: one page fault where 512 were.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace spanbert {

constexpr int64_t kHugePageBytes = 2 << 20;
// Smaller blocks come from the allocator's heap, whose pages stay with the process.
constexpr int64_t kLargeBytes = 2 * kHugePageBytes;

// Of a large block of memory that is about to be written wholly: whether its pages are still to come from the system.
// If so, asks for huge ones inside of it. Only a hint: where the system has none to give, nothing else changes.
inline bool fresh_on_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kLargeBytes) return false;
  const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  static const uintptr_t small = sysconf(_SC_PAGESIZE);
  unsigned char present = 1;
  if (mincore(reinterpret_cast<void*>((begin + end) / 2 / small * small), small, &present) != 0 || present & 1) {
    return false;
  }
  constexpr uintptr_t huge = kHugePageBytes;
  const uintptr_t first = (begin + huge - 1) / huge * huge, last = end / huge * huge;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  return true;
#else
  return false;
#endif
}

}  // namespace spanbert
