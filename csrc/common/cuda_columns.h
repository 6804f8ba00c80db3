// A few columns of a row, in float32 registers of one thread: loaded and stored at once where memory allows.
#pragma once

#include "common/cuda_threads.h"

namespace spanbert {

template <int N>
struct Columns {
  float at[N];
};

template <int N>
SPANBERT_DEVICE void fill(Columns<N>& columns, float value) {
#pragma unroll
  for (int v = 0; v < N; ++v) columns.at[v] = value;
}
template <int N>
SPANBERT_DEVICE void add(Columns<N>& to, const Columns<N>& columns) {
#pragma unroll
  for (int v = 0; v < N; ++v) to.at[v] += columns.at[v];
}
template <int N>
SPANBERT_DEVICE void add(Columns<N>& to, float factor, const Columns<N>& columns) {
#pragma unroll
  for (int v = 0; v < N; ++v) to.at[v] = fmaf(factor, columns.at[v], to.at[v]);
}
template <int N>
SPANBERT_DEVICE void scale(Columns<N>& columns, float factor) {
#pragma unroll
  for (int v = 0; v < N; ++v) columns.at[v] *= factor;
}

// The columns of one thread where a warp's threads share a tile of a row. Threads beyond the last column have none
// (`count` 0): they read column 0, where there always is something, and write nothing.
struct ColumnTile {
  int64_t column;
  int count;
};

template <int N>
SPANBERT_DEVICE ColumnTile column_tile(int64_t tile, int64_t columns) {
  const int64_t column = (tile * kLanes + lane_index()) * N, left = columns - column;
  return {left > 0 ? column : 0, left > N ? N : left > 0 ? static_cast<int>(left) : 0};
}

// N columns as they lie in memory.
template <class S, int N>
struct Packed {
  static constexpr int kWords = N * static_cast<int>(sizeof(S)) / 4;
  uint32_t words[kWords];
};

template <class S, int N>
SPANBERT_DEVICE Columns<N> unpack(const Packed<S, N>& packed) {
  Columns<N> columns;
#pragma unroll
  for (int v = 0; v < N; ++v) {
    if constexpr (sizeof(S) == 4) {
      columns.at[v] = bits_to_float(packed.words[v]);
    } else {
      columns.at[v] = to_float(S{static_cast<uint16_t>(packed.words[v / 2] >> (16 * (v % 2)))});
    }
  }
  return columns;
}

template <class S, int N>
SPANBERT_DEVICE Packed<S, N> pack(const Columns<N>& columns) {
  Packed<S, N> packed;
#pragma unroll
  for (int w = 0; w < Packed<S, N>::kWords; ++w) {
    if constexpr (sizeof(S) == 4) {
      packed.words[w] = float_to_bits(columns.at[w]);
    } else {
      S low, high;
      from_float(columns.at[2 * w], &low);
      from_float(columns.at[2 * w + 1], &high);
      packed.words[w] = low.bits | static_cast<uint32_t>(high.bits) << 16;
    }
  }
  return packed;
}

// `aligned`: `from` is a multiple of N elements, and N can be read.
template <int N, class S>
SPANBERT_DEVICE Packed<S, N> load(const S* from, int count, bool aligned) {
  Packed<S, N> packed;
  if (aligned) {
    load_words(from, packed.words);
  } else if constexpr (sizeof(S) == 4) {
#pragma unroll
    for (int v = 0; v < N; ++v) packed.words[v] = v < count ? float_to_bits(from[v]) : 0;
  } else {
#pragma unroll
    for (int v = 0; v < N; v += 2) {
      const uint32_t low = v < count ? from[v].bits : 0, high = v + 1 < count ? from[v + 1].bits : 0;
      packed.words[v / 2] = low | high << 16;
    }
  }
  return packed;
}

// `aligned`: as above, for `to`; a thread has N columns or none.
template <class S, int N>
SPANBERT_DEVICE void store(S* to, int count, const Columns<N>& columns, bool aligned) {
  if (aligned) {
    if (count > 0) store_words(to, pack<S>(columns).words);
    return;
  }
#pragma unroll
  for (int v = 0; v < N; ++v) {
    if (v < count) from_float(columns.at[v], to + v);
  }
}

}  // namespace spanbert
