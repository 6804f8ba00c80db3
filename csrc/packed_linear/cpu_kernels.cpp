// x W^T + b + residual on a CPU, for few rows: the time is that of reading W once from memory.
//
// W lies in panels of kPanel columns, in the order in which it is read. A tile of kRows x kPanel sums stays in
// registers (Goto and van de Geijn 2008). With few rows the first tile that touches a block of W would wait for the
// memory and the others would not use it, so every tile asks for its share of the block that comes next: the memory
// then works all the time. W in 16 bits is widened block by block, once for all rows of a row block.

#include <memory>
#include <type_traits>

#include "common/product.h"
#include "packed_linear/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

constexpr int64_t kRowBlock = 8 * kRows;
constexpr int64_t kDepth = 256;  // columns of x summed by themselves, so that rounding errors do not pile up
constexpr int64_t kStep = 4;     // columns of x between two prefetches
constexpr int64_t kCacheLine = 64;

// The part of the next block that a tile asks for: `lines` cache lines every kStep columns.
struct Prefetch {
  const char* from;
  int64_t lines;
};

// sums [R, kPanel] (+)= x [R, depth] panel [depth, kPanel].
template <class A, int R>
inline void tile(const A* x, int64_t x_row, const A* panel, int64_t depth, A* sums, bool add, Prefetch prefetch) {
  Vector<A> sum[R][kVectors];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Vector<A>{};
  }
  const auto column = [&](int64_t k) {
    Vector<A> row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = load(panel + k * kPanel<A> + v * lanes<A>);
    for (int r = 0; r < R; ++r) {
      const A factor = x[r * x_row + k];
      for (int v = 0; v < kVectors; ++v) sum[r][v] += factor * row[v];
    }
  };
  int64_t k = 0;
  for (; k + kStep <= depth; k += kStep) {
    for (int64_t line = 0; line < prefetch.lines; ++line, prefetch.from += kCacheLine)
      __builtin_prefetch(prefetch.from, 0, 2);
    for (int64_t step = 0; step < kStep; ++step) column(k + step);
  }
  for (; k < depth; ++k) column(k);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      A* to = sums + r * kPanel<A> + v * lanes<A>;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);
    }
  }
}

template <class A, int R>
inline void tile_rest(int64_t rows, const A* x, int64_t x_row, const A* panel, int64_t depth, A* sums, bool add,
                      Prefetch prefetch) {
  if (rows == R) return tile<A, R>(x, x_row, panel, depth, sums, add, prefetch);
  if constexpr (R > 1) tile_rest<A, R - 1>(rows, x, x_row, panel, depth, sums, add, prefetch);
}

template <class S>
struct Linear {
  using A = typename Accumulator<S>::type;
  static constexpr bool kWidens = !std::is_same_v<S, A>;

  const LinearCall& call;
  const std::unique_ptr<A[]> sums{new A[kRowBlock * kPanel<A>]};
  const std::unique_ptr<A[]> widened{kWidens ? new A[kDepth * kPanel<A>] : nullptr};

  explicit Linear(const LinearCall& call) : call(call) {}

  // A block of a panel in the accumulator type.
  const A* block(const S* panel, int64_t depth) const {
    if constexpr (kWidens) {
      for (int64_t i = 0; i < depth * kPanel<A>; i += lanes<A>) store(widened.get() + i, load(panel + i));
      return widened.get();
    } else {
      return panel;
    }
  }

  void panel(int64_t index, int64_t first_row, int64_t rows) const {
    const S* from = static_cast<const S*>(call.panels) + index * call.in_features * kPanel<A>;
    const A* x = static_cast<const A*>(call.x) + first_row * call.x_row;
    const int64_t tiles = (rows + kRows - 1) / kRows;
    for (int64_t k = 0; k < call.in_features; k += kDepth) {
      const int64_t depth = call.in_features - k < kDepth ? call.in_features - k : kDepth;
      const int64_t lines_per_step = kStep * kPanel<A> * static_cast<int64_t>(sizeof(S)) / kCacheLine;
      Prefetch prefetch{reinterpret_cast<const char*>(from + depth * kPanel<A>), (lines_per_step + tiles - 1) / tiles};
      const A* weights = block(from, depth);
      int64_t prefetched = 0;
      for (int64_t row = 0; row < rows; row += kRows) {
        const Prefetch share{prefetch.from, prefetched < lines_per_step ? prefetch.lines : 0};
        const A* x_block = x + row * call.x_row + k;
        A* sum = sums.get() + row * kPanel<A>;
        if (row + kRows <= rows) {
          tile<A, kRows>(x_block, call.x_row, weights, depth, sum, k > 0, share);
        } else {
          tile_rest<A, kRows - 1>(rows - row, x_block, call.x_row, weights, depth, sum, k > 0, share);
        }
        prefetched += prefetch.lines;
        prefetch.from += depth / kStep * prefetch.lines * kCacheLine;
      }
      from += depth * kPanel<A>;
    }
    finish(index * kPanel<A>, first_row, rows);
  }

  // Bias and residual, and the result in the storage type.
  void finish(int64_t first_column, int64_t first_row, int64_t rows) const {
    const int64_t columns = call.out_features - first_column;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t offset = (first_row + r) * call.out_features + first_column;
      for (int v = 0; v < kVectors; ++v) {
        const int64_t c = v * lanes<A>;
        const int count = static_cast<int>(columns - c < lanes<A> ? columns - c : lanes<A>);
        if (count <= 0) break;
        Vector<A> x = call.in_features > 0 ? load(sums.get() + r * kPanel<A> + c) : Vector<A>{};
        if (call.bias) x += load_up_to(static_cast<const S*>(call.bias) + first_column + c, count);
        if (call.residual) x += load_up_to(static_cast<const S*>(call.residual) + offset + c, count);
        store_up_to(static_cast<S*>(call.output) + offset + c, x, count);
      }
    }
  }
};

}  // namespace

int64_t packed_linear_width(Storage storage) { return storage == Storage::float64 ? kPanel<double> : kPanel<float>; }

void packed_linear_widen(Storage storage, const void* from, int64_t count, void* to) {
  with_storage(storage, [&](auto s) {
    using S = decltype(s);
    using A = typename Accumulator<S>::type;
    for (int64_t c = 0; c < count; c += lanes<A>) {
      const int n = static_cast<int>(count - c < lanes<A> ? count - c : lanes<A>);
      store_up_to(static_cast<A*>(to) + c, load_up_to(static_cast<const S*>(from) + c, n), n);
    }
  });
}

void packed_linear(const LinearCall& call, int64_t first, int64_t last) {
  with_storage(call.storage, [&](auto s) {
    const Linear<decltype(s)> linear(call);
    for (int64_t row = 0; row < call.rows; row += kRowBlock) {
      const int64_t rows = call.rows - row < kRowBlock ? call.rows - row : kRowBlock;
      for (int64_t panel = first; panel < last; ++panel) linear.panel(panel, row, rows);
    }
  });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
