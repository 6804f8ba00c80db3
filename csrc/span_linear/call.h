// What the bindings of span_linear and span_score hand to their kernels, and the kernels to their walks.
#pragma once

#include <cstdint>

#include "common/storage.h"
#include "span_pool/kernels.h"

namespace spanbert {

enum class Activation : int { none, relu, gelu };

// Columns that a walk carries in registers, and those of one backward task: its rows of thirty tokens stay in the first
// cache, and its sums are ordered the same for any number of threads.
constexpr int64_t kProjectedTile = 32;

// Spans over projected tokens, all in one type, float32 or float64. Absent tensors are null.
struct ProjectedCall {
  Storage storage;
  Activation activation;
  SpanGroups groups;
  const int64_t* empty;  // [empties], output rows of spans without tokens
  int64_t empties;
  int64_t tokens, columns;  // T, O
  const void* projected;    // [T, blocks * O], dense rows
  int64_t projected_stride, blocks;
  int64_t block[kParts];  // of each part the number of its (first) block, -1 for a part not asked for
  const void* scores;     // [T, heads], contiguous
  int64_t heads;          // 0 without attention
  const void* table;      // width_projected [table_rows, O], dense rows
  int64_t table_stride, table_rows;
  const int64_t* table_index;  // [N] by output row, or null: min(width, table_rows) - 1
  const void* bias;            // [O], contiguous
  const void* addend;          // [N, O], dense rows
  int64_t addend_stride;

  bool has(Part part) const { return block[part] >= 0; }
  int64_t table_row(int64_t row, int64_t width) const {
    return table_index ? table_index[row] : (width < table_rows ? width : table_rows) - 1;
  }
};

// Zero on entry.
struct ProjectedGrads {
  void* projected;  // [T, blocks * O], contiguous
  void* scores;     // [tiles, T, heads]: one slice per tile of columns
  void* table;      // [table_rows, O], contiguous
  void* bias;       // [O]
};

}  // namespace spanbert
