// Rows of numbers, in loops that compilers turn into vectors.
#pragma once

#include <cstdint>

namespace spanbert::host {

template <class T>
void add(T* __restrict to, const T* __restrict from, int64_t count) {
  for (int64_t c = 0; c < count; ++c) to[c] += from[c];
}

template <class T>
void add_scaled(T* __restrict to, const T* __restrict from, T factor, int64_t count) {
  for (int64_t c = 0; c < count; ++c) to[c] += from[c] * factor;
}

}  // namespace spanbert::host
