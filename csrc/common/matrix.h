// Packed weights, and products with them.
#pragma once

#include "common/rows.h"

namespace spanbert {
namespace SPANBERT_ISA {

// Columns between up and down that are made and used while they are in the cache. Whole panels, and whole steps.
constexpr int64_t kChunk = 768;
static_assert(kChunk % kTileColumns == 0);
constexpr int64_t kSummed = 256;  // steps whose products are summed by themselves, so that rounding does not pile up

constexpr int64_t kPanelStep = kTileColumns * kStepBytes;

constexpr int64_t panels_of(int64_t columns) { return (columns + kTileColumns - 1) / kTileColumns; }
constexpr int64_t chunks_of(int64_t depth) { return (depth + kChunk - 1) / kChunk; }

// Rows as they enter a product.
struct Input {
  const char* data = nullptr;
  int64_t row_bytes = 0;
  const float* scales = nullptr;  // Int8: a step of each row
};

// A packed matrix: its panels; for Int8 behind these, or where `by_column` is, a step a column, and the sums of each
// column over all of the depth, and over each chunk of it, times 128, which an unsigned input adds.
template <class E>
struct Matrix {
  int64_t columns, depth;
  const char* panels;
  const float* bias = nullptr;
  const void* by_column = panels + panels_of(columns) * panel_bytes(depth);

  static int64_t panel_bytes(int64_t depth) { return steps_of<E>(depth) * kTileColumns * kStepBytes; }
  static int64_t padded(int64_t columns) { return panels_of(columns) * kTileColumns; }
  static int64_t bytes(int64_t columns, int64_t depth) {
    const int64_t products = panels_of(columns) * panel_bytes(depth);
    return E::kElements == 4 ? products + padded(columns) * 4 * (2 + chunks_of(depth)) : products;
  }

  int64_t count() const { return panels_of(columns); }
  int vectors(int64_t panel) const {
    return static_cast<int>(std::min<int64_t>(kTileVectors, (columns - panel * kTileColumns + kLanes - 1) / kLanes));
  }
  const float* scales() const { return static_cast<const float*>(by_column); }
  const int32_t* all_sums() const { return static_cast<const int32_t*>(by_column) + padded(columns); }
  const int32_t* sums(int64_t chunk) const { return all_sums() + padded(columns) * (1 + chunk); }
};

// What is multiplied by what: rows of an input, columns first .. last - 1 of its depth, panels of a matrix.
template <class E>
struct Product {
  const Matrix<E>& matrix;
  Input input;
  int64_t rows;
  int64_t first_panel, last_panel;
  int64_t next_panel = last_panel;          // what is asked for while the last one is multiplied
  int64_t first = 0, depth = matrix.depth;  // of the depth: whole chunks, or all

  // finish(row, column, x): `x` is a vector of the product, at this row and from this column on. `InRegisters` finishes
  // whole tiles there, which saves a hundredth of the time and costs as much code as a tile.
  template <bool InRegisters = true, class Finish>
  void run(const Finish& finish) const {
    const int64_t steps = steps_of<E>(depth), panel_bytes = Matrix<E>::panel_bytes(matrix.depth);
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    const int64_t lines = steps * kTileColumns * kStepBytes / kCacheLine;  // of a panel, to be asked for by its tiles
    const int64_t times = std::max<int64_t>(1, steps / kPrefetchSteps * tiles);
    const int64_t lines_each = (lines + times - 1) / times;
    Steps by_column;
    if constexpr (E::kElements == 4) {
      by_column = {matrix.scales(), depth == matrix.depth ? matrix.all_sums() : matrix.sums(first / kChunk)};
    }
    alignas(64) float c[kTileRows * kTileColumns];
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const char* b = matrix.panels + panel * panel_bytes + first / E::kElements * kTileColumns * kStepBytes;
      const int vectors = matrix.vectors(panel);
      const char* ahead = b + (panel + 1 < last_panel ? 1 : next_panel - panel) * panel_bytes;
      int64_t asked = 0;
      for (int64_t row = 0; row < rows; row += kTileRows) {
        const auto count = std::min<int64_t>(kTileRows, rows - row);
        const char* a = input.data + row * input.row_bytes;
        const bool whole_tile = InRegisters && count == kTileRows && vectors == kTileVectors;
        int64_t step = 0;
        const auto ask = [&](int64_t some) {
          const Prefetch prefetch{ahead + asked * kCacheLine, asked < lines ? lines_each : 0};
          asked += prefetch.lines * (some / kPrefetchSteps);
          return prefetch;
        };
        for (; step < (whole_tile ? steps - kSummed : steps); step += kSummed) {
          const int64_t some = std::min(kSummed, steps - step);
          kTiles<E>[vectors - 1][count](a + step* kStepBytes, input.row_bytes, b + step* kPanelStep, kPanelStep, some,
                                        c, kTileColumns, step > 0, ask(some));
        }
        const int64_t column = panel * kTileColumns;
        if constexpr (InRegisters) {
          if (whole_tile) {
            Vector<float> sum[kTileRows][kTileVectors];
            sums_of<E>(a + step * kStepBytes, input.row_bytes, b + step * kPanelStep, kPanelStep, steps - step,
                       ask(steps - step), sum);
#pragma GCC unroll 16
            for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
              for (int v = 0; v < kTileVectors; ++v) {
                const Vector<float> all =
                    step > 0 ? E::sum(load(c + r * kTileColumns + v * kLanes), sum[r][v]) : sum[r][v];
                finish(row + r, column + v * kLanes, value(all, row + r, column + v * kLanes, by_column));
              }
            }
            continue;
          }
        }
        for (int64_t r = 0; r < count; ++r) {
          for (int v = 0; v < vectors; ++v) {
            const Vector<float> sum = load(c + r * kTileColumns + v * kLanes);
            finish(row + r, column + v * kLanes, value(sum, row + r, column + v * kLanes, by_column));
          }
        }
      }
    }
  }

 private:
  // Int8: of each column a step, and what the shift of the input added.
  struct Steps {
    const float* scales = nullptr;
    const int32_t* shifts = nullptr;
  };

  Vector<float> value(Vector<float> sum, int64_t row, int64_t column, const Steps& by_column) const {
    if constexpr (E::kElements < 4) return sum;
    typedef Simd<float>::Mask Integers;
    Integers shift;
    std::memcpy(&shift, by_column.shifts + column, sizeof(shift));
    const auto exact = __builtin_convertvector(bits_as<Integers>(sum) - shift, Vector<float>);
    return exact * (input.scales[row] * load(by_column.scales + column));
  }
};

// Calls f(E{}) with what a precision multiplies, if the instruction set has it.
template <class F>
void with_precision(Precision precision, const F& f) {
  if (precision == Precision::float32) return f(Float32{});
  if constexpr (BFloat16::kHere) {
    if (precision == Precision::bfloat16) return f(BFloat16{});
  }
  if constexpr (Int8::kHere && BFloat16::kHere) {
    if (precision == Precision::int8) return f(Int8{});
  }
}

// Packs a weight [columns, depth] as `Matrix` reads it.
template <class E, class S>
void pack_matrix(const S* weight, int64_t columns, int64_t depth, char* to) {
  const int64_t panel_bytes = Matrix<E>::panel_bytes(depth), padded = Matrix<E>::padded(columns);
  std::memset(to, 0, Matrix<E>::bytes(columns, depth));
  char* behind = to + panels_of(columns) * panel_bytes;
  auto* scales = reinterpret_cast<float*>(behind);
  auto* sums = reinterpret_cast<int32_t*>(behind) + padded;
  for (int64_t column = 0; column < columns; ++column) {
    const S* from = weight + column * depth;
    char* panel = to + column / kTileColumns * panel_bytes + column % kTileColumns * kStepBytes;
    const auto place = [&](int64_t k) {
      return panel + k / E::kElements * kTileColumns * kStepBytes + k % E::kElements * (kStepBytes / E::kElements);
    };
    if constexpr (E::kElements < 4) {
      for (int64_t k = 0; k < depth; ++k) {
        const auto element = from_accumulator<typename E::Element>(to_accumulator(from[k]));
        std::memcpy(place(k), &element, sizeof(element));
      }
      continue;
    }
    float largest = 0;
    for (int64_t k = 0; k < depth; ++k) largest = std::max(largest, std::fabs(to_accumulator(from[k])));
    const float scale = largest > 1e-35f ? largest / 127.0f : 1.0f;
    scales[column] = scale;
    for (int64_t k = 0; k < depth; ++k) {
      const auto rounded = static_cast<int8_t>(std::lrint(to_accumulator(from[k]) / scale));
      std::memcpy(place(k), &rounded, sizeof(rounded));
      sums[column] += 128 * rounded;
      sums[(1 + k / kChunk) * padded + column] += 128 * rounded;
    }
  }
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
