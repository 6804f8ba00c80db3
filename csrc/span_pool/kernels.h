// What the span_pool binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/storage.h"

namespace spanbert {

enum Part : int { kStart, kEnd, kMean, kSum, kMax, kAttention, kWidth, kParts };

// Columns that one backward task works on: wide tiles, which touch fewer pages, where that leaves every thread a task.
constexpr int64_t kWideTile = 384, kNarrowTile = 128;
// Columns of one partial sum: no result depends on the tiles, and so on the number of threads.
constexpr int64_t kSliceColumns = kNarrowTile, kSlicesPerTile = kWideTile / kSliceColumns;

// Spans with tokens, sorted by (first token, width) and grouped by first token. Span i of group g has
// first <= i < next group's first, covers tokens start .. end(i) - 1 and belongs to output row row(i).
struct SpanGroups {
  int64_t count = 0;
  const int64_t* start = nullptr;  // [count]
  const int64_t* first = nullptr;  // [count + 1]
  const int64_t* ends = nullptr;   // [spans], or null: the widths of a group are 1, 2, 3, ...
  const int64_t* rows = nullptr;   // [spans], or null: row i

  int64_t end(int64_t group, int64_t i) const { return ends ? ends[i] : start[group] + 1 + i - first[group]; }
  int64_t row(int64_t i) const { return rows ? rows[i] : i; }
};

struct SpanPoolCall {
  Storage storage;
  SpanGroups groups;
  int64_t tokens, columns, max_width;  // T, H
  const void* hidden;                  // [T, H], dense rows
  int64_t hidden_stride;
  const void* scores;  // [T, heads], accumulator type, contiguous
  int64_t heads;
  const void* table;  // [table_rows, table_columns], contiguous
  int64_t table_rows, table_columns;
  const int64_t* table_index;  // [N] by output row, or null: min(width, table_rows) - 1
  int64_t offset[kParts];      // first output column of each part, -1 for a part not asked for
  void* output;                // [N, output_columns], of the forward
  int64_t output_columns;
  bool output_exceeds_caches;

  bool has(Part part) const { return offset[part] >= 0; }
  int64_t table_row(int64_t row, int64_t width) const {
    return table_index ? table_index[row] : (width < table_rows ? width : table_rows) - 1;
  }
};

struct SpanPoolGrads {
  const void* output;  // gradient of the output, dense rows
  int64_t output_stride;
  int64_t tile_columns;
  void* hidden;  // [T, H], accumulator type, zero on entry
  void* scores;  // [slices, T, heads], accumulator type, zero on entry: partial sums over kSliceColumns columns
  void* table;   // [table_rows, table_columns], accumulator type, zero on entry
};

// Spans first .. last - 1 of the sorted order.
SPANBERT_DECLARE(void span_pool_forward(const SpanPoolCall& call, int64_t first, int64_t last))
// Columns of one tile, for groups first .. last - 1.
SPANBERT_DECLARE(void span_pool_backward(const SpanPoolCall& call, const SpanPoolGrads& grads, int64_t tile,
                                         int64_t first, int64_t last))
// The width table, for all spans.
SPANBERT_DECLARE(void span_pool_table_backward(const SpanPoolCall& call, const SpanPoolGrads& grads))

}  // namespace spanbert
