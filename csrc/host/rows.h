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

// The first largest number wins, and the first NaN over all numbers.
template <class T>
void keep_largest(T* __restrict best, const T* __restrict from, int64_t count) {
  for (int64_t c = 0; c < count; ++c) {
    const T value = from[c], known = best[c];
    best[c] = (value <= known) | (known != known) ? known : value;
  }
}

// Keeps the first largest number of several rows, or the first NaN, and the place of the row that it came from.
template <class T, class Place>
void keep_largest(T* __restrict best, Place* __restrict places, Place place, const T* __restrict from, int64_t count) {
  for (int64_t c = 0; c < count; ++c) {
    const T value = from[c], known = best[c];
    const Place before = places[c];
    const bool keep = (value <= known) | (known != known);
    best[c] = keep ? known : value;
    places[c] = keep ? before : place;
  }
}

}  // namespace spanbert::host
