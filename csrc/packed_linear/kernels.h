// What the packed_linear binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/storage.h"

namespace spanbert {

struct LinearCall {
  Storage storage;
  int64_t rows, in_features, out_features;
  const void* x;  // accumulator type, rows x_row apart
  int64_t x_row;
  const void* panels;    // [panels, in_features, panel width], storage type
  const void* bias;      // [out_features], or null
  const void* residual;  // [rows, out_features], dense, or null
  void* output;          // [rows, out_features], dense
};

// Columns of one panel.
SPANBERT_DECLARE(int64_t packed_linear_width(Storage storage))
// One row of x, in_features long, in the accumulator type.
SPANBERT_DECLARE(void packed_linear_widen(Storage storage, const void* from, int64_t count, void* to))
// The output columns of panels first .. last - 1, all rows.
SPANBERT_DECLARE(void packed_linear(const LinearCall& call, int64_t first, int64_t last))

}  // namespace spanbert
