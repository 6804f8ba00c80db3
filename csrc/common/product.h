// Small matrix products on packed panels, for kernel files: C = A B, everything in the accumulator type.
//
// B lies in panels of kPanel columns, the last of as many vectors as are needed, the rows of a panel one behind the
// other; A is read element by element through two strides, so that A and its transpose are the same code; kRows x
// kPanel sums stay in registers (Goto and van de Geijn 2008).
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "common/vector.h"

namespace spanbert {
namespace SPANBERT_ISA {

constexpr int kRows = SPANBERT_TILE_ROWS, kVectors = SPANBERT_TILE_VECTORS;  // of the micro-kernel: set by setup.py

template <class A>
constexpr int kPanel = kVectors * lanes<A>;

// `columns` in whole vectors.
template <class A>
inline int64_t whole_vectors(int64_t columns) {
  return (columns + lanes<A> - 1) / lanes<A> * lanes<A>;
}

// A matrix in panels: `rows` rows of `columns` columns, zeros up to a whole vector. The rows of a single panel may lie
// where they are: with `apart`, that many elements lie from one to the next, any number of them.
template <class A>
struct Panels {
  const A* first;
  int64_t rows, columns;
  std::optional<int64_t> apart = std::nullopt;
};

template <class A, int R, int V>
inline void micro_kernel(const A* a, int64_t a_row, int64_t a_column, const A* b, int64_t apart, int64_t depth, A* c,
                         int64_t c_row, bool add) {
  Vector<A> sum[R][V] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector<A> row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + k * apart + v * lanes<A>);
    for (int r = 0; r < R; ++r) {
      const A factor = a[r * a_row + k * a_column];
      for (int v = 0; v < V; ++v) sum[r][v] += factor * row[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      A* to = c + r * c_row + v * lanes<A>;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);  // sums of blocks round less than one long sum
    }
  }
}

template <class A, int R, int V>
inline void product_rest(int64_t rows, const A* a, int64_t a_row, int64_t a_column, const A* b, int64_t apart,
                         int64_t depth, A* c, int64_t c_row, bool add) {
  if (rows == R) return micro_kernel<A, R, V>(a, a_row, a_column, b, apart, depth, c, c_row, add);
  if constexpr (R > 1) product_rest<A, R - 1, V>(rows, a, a_row, a_column, b, apart, depth, c, c_row, add);
}

// One panel of V vectors, or of fewer; b's rows are `apart` elements apart, if nothing is said as many as the panel is
// wide.
template <class A, int V = kVectors>
inline void product_panel(int64_t vectors, int64_t rows, int64_t depth, const A* a, int64_t a_row, int64_t a_column,
                          const A* b, int64_t b_row, std::optional<int64_t> apart, A* c, int64_t c_row, bool add) {
  if constexpr (V > 1) {
    if (vectors < V) {
      return product_panel<A, V - 1>(vectors, rows, depth, a, a_row, a_column, b, b_row, apart, c, c_row, add);
    }
  }
  const int64_t between = apart.value_or(V * lanes<A>);
  b += b_row * between;
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    micro_kernel<A, kRows, V>(a + row * a_row, a_row, a_column, b, between, depth, c + row * c_row, c_row, add);
  }
  if (row < rows) {
    product_rest<A, kRows - 1, V>(rows - row, a + row * a_row, a_row, a_column, b, between, depth, c + row * c_row,
                                  c_row, add);
  }
}

// C [rows, b.columns] (+)= A [rows, depth] B [depth, b.columns], B from its row `b_row` on. C is written in whole
// vectors: its rows must have room for them.
template <class A>
inline void product(int64_t rows, int64_t depth, const A* a, int64_t a_row, int64_t a_column, const Panels<A>& b,
                    int64_t b_row, A* c, int64_t c_row, bool add) {
  for (int64_t column = 0; column < b.columns; column += kPanel<A>) {
    const int64_t left = b.columns - column, vectors = (left + lanes<A> - 1) / lanes<A>;
    product_panel<A>(vectors, rows, depth, a, a_row, a_column, b.first + column * b.rows, b_row, b.apart, c + column,
                     c_row, add);
  }
}

// Vectors of the panel that begins at `column`.
template <class A>
inline int panel_vectors(int64_t column, int64_t columns) {
  return static_cast<int>(std::min<int64_t>(kVectors, (columns - column + lanes<A> - 1) / lanes<A>));
}

// Rows `row(0)`, `row(1)`, ... (pointers to dense rows) as panels.
template <class A, class Row>
inline Panels<A> pack(const Row& row, int64_t rows, int64_t columns, A* to) {
  const Panels<A> packed{to, rows, columns};
  for (int64_t column = 0; column < columns; column += kPanel<A>) {
    const int vectors = panel_vectors<A>(column, columns);
    for (int64_t r = 0; r < rows; ++r) {
      const auto* from = row(r) + column;
      for (int64_t c = 0; c < vectors * lanes<A>; c += lanes<A>, to += lanes<A>) {
        store(to, load_up_to(from + c, static_cast<int>(std::min<int64_t>(lanes<A>, columns - column - c))));
      }
    }
  }
  return packed;
}

// The same of the transpose, [columns, rows].
template <class A, class Row>
inline Panels<A> pack_transposed(const Row& row, int64_t rows, int64_t columns, A* to) {
  constexpr int kLanes = lanes<A>;
  const Panels<A> packed{to, columns, rows};
  for (int64_t panel = 0; panel < rows; panel += kPanel<A>) {
    const int vectors = panel_vectors<A>(panel, rows);
    for (int v = 0; v < vectors; ++v) {
      const int64_t first = panel + v * kLanes;
      for (int64_t c = 0; c < columns; c += kLanes) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes, columns - c));
        Vector<A> block[kLanes];
        for (int r = 0; r < kLanes; ++r) {
          block[r] = first + r < rows ? load_up_to(row(first + r) + c, count) : Vector<A>{};
        }
        transpose<A>(block);
        for (int column = 0; column < count; ++column) store(to + ((c + column) * vectors + v) * kLanes, block[column]);
      }
    }
    to += columns * vectors * kLanes;
  }
  return packed;
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
