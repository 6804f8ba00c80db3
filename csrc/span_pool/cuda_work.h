// What the span_pool binding hands to its CUDA kernels.
#pragma once

#include "common/cuda_columns.h"
#include "common/cuda_spans.h"
#include "span_pool/kernels.h"

namespace spanbert {

// Parts and the width table as in SpanPoolCall.
struct PoolWork {
  const void* hidden;  // [T, H], rows of which 16 aligned bytes can be read at once, also at their end
  int64_t hidden_stride;
  int64_t columns;  // H
  SortedSpans spans;
  const float* scores;  // [T, heads]
  int64_t heads;
  const void* table;  // [table_rows, table_columns], contiguous
  int64_t table_rows, table_columns;
  const int64_t* table_index;  // [N] by output row, or null
  int64_t offset[kParts];      // first output column of each part, -1 for a part that takes no work
  int64_t output_columns;
  void* output;      // [N, output_columns], of the forward
  void* winners;     // [N, H], the maximum's tokens as offsets from the span's first, or null where nobody asks
  int winner_bytes;  // 1 or 4
  float* lse;        // [N, heads], or null where nobody asks

  SPANBERT_DEVICE bool has(Part part) const { return offset[part] >= 0; }

  // The row of the width table, -1 for an index that is none.
  SPANBERT_DEVICE int64_t table_row(int64_t row, int64_t width) const {
    if (!table_index) return (width < table_rows ? width : table_rows) - 1;
    const int64_t index = table_index[row];
    return index >= 0 && index < table_rows ? index : -1;
  }
};

}  // namespace spanbert
