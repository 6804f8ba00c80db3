// Tiles of matrix products whose depth goes in steps of four bytes: one float32, two bfloat16 or four 8-bit integers.
//
// B lies in panels of kTileColumns columns, [steps][columns][elements of a step], A row by row as it is. A tile of
// kTileRows x kTileColumns sums stays in registers (Goto and van de Geijn 2008); a step loads the panel's vectors once
// and every row's four bytes once, spread over a vector.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/vector.h"

namespace spanbert {
namespace SPANBERT_ISA {

constexpr int64_t kStepBytes = 4;
constexpr int kTileRows = kBytes == 64 ? 8 : SPANBERT_TILE_ROWS;
constexpr int kTileVectors = kBytes == 64 ? 3 : SPANBERT_TILE_VECTORS;
constexpr int kMostVectors = kBytes == 64 ? 4 : SPANBERT_TILE_VECTORS;  // with fewer rows: for heads of 64 columns
constexpr int kLanes = lanes<float>;
constexpr int kTileColumns = kTileVectors * kLanes;

// Rows of a tile that is so many vectors wide.
constexpr int rows_of_tile(int vectors) {
  return vectors > kTileVectors ? kTileRows * kTileVectors / vectors : kTileRows;
}

// The cache lines that a tile asks for while it multiplies, `lines` every kPrefetchSteps steps: a share of what is read
// next. With few rows the first tile of a panel would otherwise wait for the memory that the others leave idle.
struct Prefetch {
  const char* from = nullptr;
  int64_t lines = 0;
};
constexpr int64_t kPrefetchSteps = 4;
constexpr int64_t kCacheLine = 64;

// What the elements of A and B are, and a step: sum += a . b in every lane.

struct Float32 {
  using Element = float;
  static constexpr int64_t kElements = 1;
  static constexpr bool kHere = true;

  static Vector<float> step(Vector<float> sum, const char* a, Vector<float> b) {
    float factor;
    std::memcpy(&factor, a, sizeof(factor));
    return sum + factor * b;
  }
  static Vector<float> sum(Vector<float> a, Vector<float> b) { return a + b; }
};

struct BFloat16 {
  using Element = bfloat16;
  static constexpr int64_t kElements = 2;
  static Vector<float> sum(Vector<float> a, Vector<float> b) { return a + b; }
#if defined(__AVX512BF16__)
  static constexpr bool kHere = true;

  static Vector<float> step(Vector<float> sum, const char* a, Vector<float> b) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof(pair));
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
  }
#else
  static constexpr bool kHere = false;

  static Vector<float> step(Vector<float> sum, const char*, Vector<float>) { return sum; }
#endif
};

// A is unsigned, B signed.
struct Int8 {
  using Element = uint8_t;
  static constexpr int64_t kElements = 4;
  static Vector<float> sum(Vector<float> a, Vector<float> b) {
    typedef Simd<float>::Mask Integers;
    return bits_as<Vector<float>>(bits_as<Integers>(a) + bits_as<Integers>(b));
  }
#if defined(__AVX512VNNI__)
  static constexpr bool kHere = true;

  static Vector<float> step(Vector<float> sum, const char* a, Vector<float> b) {
    int32_t four;
    std::memcpy(&four, a, sizeof(four));
    return (__m512)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), (__m512i)b);
  }
#else
  static constexpr bool kHere = false;

  static Vector<float> step(Vector<float> sum, const char*, Vector<float>) { return sum; }
#endif
};

// Bytes of one row of A, in whole steps.
template <class E>
constexpr int64_t steps_of(int64_t depth) {
  return (depth + E::kElements - 1) / E::kElements;
}

// sum [R][V vectors] = A [R, steps] B [steps, V vectors], rows of A and steps of B so many bytes apart.
template <class E, int R, int V>
[[gnu::always_inline]] inline void sums_of(const char* a, int64_t a_row, const char* b, int64_t b_step, int64_t steps,
                                           Prefetch prefetch, Vector<float> (&sum)[R][V]) {
  // Loops over the tile are unrolled by name: left to itself the compiler keeps the sums in memory, too.
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = Vector<float>{};
  }
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    Vector<float> row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load(reinterpret_cast<const float*>(b) + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = E::step(sum[r][v], a + r * a_row + k * kStepBytes, row[v]);
    }
    b += b_step;
  };
  int64_t k = 0;
  for (; k + kPrefetchSteps <= steps; k += kPrefetchSteps) {
    for (int64_t line = 0; line < prefetch.lines; ++line, prefetch.from += kCacheLine) {
      __builtin_prefetch(prefetch.from, 0, 2);
    }
#pragma GCC unroll 4
    for (int64_t next = 0; next < kPrefetchSteps; ++next) step(k + next);
  }
  for (; k < steps; ++k) step(k);
}

// C [R, V vectors] (+)= A B, `c_row` sums apart. The sums of Int8 are integers, in the vectors of floats that they are
// as wide as.
template <class E, int R, int V>
[[gnu::noinline]] void tile(const char* a, int64_t a_row, const char* b, int64_t b_step, int64_t steps, float* c,
                            int64_t c_row, bool add, Prefetch prefetch) {
  Vector<float> sum[R][V];
  sums_of<E>(a, a_row, b, b_step, steps, prefetch, sum);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* to = c + r * c_row + v * kLanes;
      store(to, add ? E::sum(load(to), sum[r][v]) : sum[r][v]);
    }
  }
}

template <class E>
using Tile = void (*)(const char* a, int64_t a_row, const char* b, int64_t b_step, int64_t steps, float* c,
                      int64_t c_row, bool add, Prefetch prefetch);

template <class E, int V, std::size_t... R>
constexpr auto tiles_of(std::index_sequence<R...>) {
  return std::array<Tile<E>, kTileRows + 1>{
      nullptr, (R < rows_of_tile(V) ? &tile<E, (R < rows_of_tile(V) ? R + 1 : 1), V> : nullptr)...};
}
template <class E, std::size_t... V>
constexpr auto all_tiles(std::index_sequence<V...>) {
  return std::array{tiles_of<E, V + 1>(std::make_index_sequence<kTileRows>())...};
}
// By vectors - 1, then rows.
template <class E>
inline constexpr auto kTiles = all_tiles<E>(std::make_index_sequence<kMostVectors>());

}  // namespace SPANBERT_ISA
}  // namespace spanbert
