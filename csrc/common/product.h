// Small matrix products on packed panels, for kernel files: C = A B, everything in the accumulator type.
//
// B is a panel of kPanel columns, its rows one behind the other; A is read element by element through two strides, so
// that A and its transpose are the same code; kRows x kPanel sums stay in registers (Goto and van de Geijn 2008).
#pragma once

#include "common/vector.h"

namespace spanbert {
namespace SPANBERT_LEVEL {

#if defined(SPANBERT_LEVEL_AVX512)
constexpr int kRows = 6, kVectors = 4;
#elif defined(SPANBERT_LEVEL_AVX2)
constexpr int kRows = 6, kVectors = 2;
#else
constexpr int kRows = 4, kVectors = 2;
#endif

template <class A>
constexpr int kPanel = kVectors * lanes<A>;

template <class A>
inline int64_t panels(int64_t columns) {
  return (columns + kPanel<A> - 1) / kPanel<A>;
}

template <class A, int R>
inline void product_rows(const A* a, int64_t a_row, int64_t a_column, const A* b, int64_t depth, A* c, int64_t c_row,
                         bool add) {
  Vector<A> sum[R][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector<A> row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + k * kPanel<A> + v * lanes<A>);
    for (int r = 0; r < R; ++r) {
      const A factor = a[r * a_row + k * a_column];
      for (int v = 0; v < kVectors; ++v) sum[r][v] += factor * row[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      A* to = c + r * c_row + v * lanes<A>;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);  // sums of blocks round less than one long sum
    }
  }
}

template <class A, int R>
inline void product_rest(int64_t rows, const A* a, int64_t a_row, int64_t a_column, const A* b, int64_t depth, A* c,
                         int64_t c_row, bool add) {
  if (rows == R) return product_rows<A, R>(a, a_row, a_column, b, depth, c, c_row, add);
  if constexpr (R > 1) product_rest<A, R - 1>(rows, a, a_row, a_column, b, depth, c, c_row, add);
}

// C [rows, columns] (+)= A [rows, depth] B [depth, columns]. B: panels of [depth, kPanel], `b_panel` elements apart.
// C is written in whole panels: its rows must have room for them.
template <class A>
inline void product(int64_t rows, int64_t columns, int64_t depth, const A* a, int64_t a_row, int64_t a_column,
                    const A* b, int64_t b_panel, A* c, int64_t c_row, bool add) {
  for (int64_t panel = 0; panel < panels<A>(columns); ++panel) {
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
      product_rows<A, kRows>(a + row * a_row, a_row, a_column, b + panel * b_panel, depth,
                             c + row * c_row + panel * kPanel<A>, c_row, add);
    }
    if (row < rows) {
      product_rest<A, kRows - 1>(rows - row, a + row * a_row, a_row, a_column, b + panel * b_panel, depth,
                                 c + row * c_row + panel * kPanel<A>, c_row, add);
    }
  }
}

// Rows `row(0)`, `row(1)`, ... (pointers to dense rows) as panels [rows, kPanel] over the columns, zeros beyond the
// last column.
template <class A, class Row>
inline void pack(const Row& row, int64_t rows, int64_t columns, A* to) {
  for (int64_t panel = 0; panel < panels<A>(columns); ++panel) {
    for (int64_t r = 0; r < rows; ++r, to += kPanel<A>) {
      const auto* from = row(r);
      for (int v = 0; v < kVectors; ++v) {
        const int64_t c = panel * kPanel<A> + v * lanes<A>;
        const int64_t count = columns - c < 0 ? 0 : columns - c < lanes<A> ? columns - c : lanes<A>;
        store(to + v * lanes<A>, load_up_to(from + (count ? c : 0), static_cast<int>(count)));
      }
    }
  }
}

// The same of the transpose: panels [columns, kPanel] over the rows, zeros beyond the last row.
template <class A, class Row>
inline void pack_transposed(const Row& row, int64_t rows, int64_t columns, A* to) {
  constexpr int kLanes = lanes<A>;
  for (int64_t panel = 0; panel < panels<A>(rows); ++panel, to += columns * kPanel<A>) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t first = panel * kPanel<A> + v * kLanes;
      for (int64_t c = 0; c < columns; c += kLanes) {
        const int count = static_cast<int>(columns - c < kLanes ? columns - c : kLanes);
        Vector<A> block[kLanes];
        for (int r = 0; r < kLanes; ++r) {
          block[r] = first + r < rows ? load_up_to(row(first + r) + c, count) : Vector<A>{};
        }
        transpose<A>(block);
        for (int column = 0; column < count; ++column) store(to + (c + column) * kPanel<A> + v * kLanes, block[column]);
      }
    }
  }
}

}  // namespace SPANBERT_LEVEL
}  // namespace spanbert
