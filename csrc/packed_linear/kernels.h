// What the packed_linear binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/storage.h"

namespace spanbert {

struct LinearCall {
  Precision precision;  // of the products; float64 has products of its own
  Storage storage;      // of bias, residual and output, and of panels that the precision does not say
  int64_t rows, in_features, out_features;
  const void* x;  // rows as `packed_linear_prepare` makes them, x_row bytes apart
  int64_t x_row;
  const float* x_scales;  // int8: a step of each row
  const void* panels;     // [panels, steps, panel width x elements of a step]
  const void* by_column;  // int8: steps and sums of the columns, as Matrix has them
  const void* bias;       // [out_features], or null
  const void* residual;   // [rows, out_features], dense, or null
  void* output;           // [rows, out_features], dense
};

// Whether the instruction set has products of this precision.
SPANBERT_DECLARE_ALL(bool packed_linear_has(Precision precision))
// Columns of one panel.
SPANBERT_DECLARE_ALL(int64_t packed_linear_width(Storage storage))
// One row of x, not of float64, as the products take it, in whole vectors; and in float32, where `to` is `wide` itself,
// in `wide`. Gives its step for int8.
SPANBERT_DECLARE_ALL(float packed_linear_prepare(Precision precision, Storage storage, const void* from, int64_t count,
                                                 float* wide, void* to))
// The output columns of panels first .. last - 1, all rows.
SPANBERT_DECLARE_ALL(void packed_linear(const LinearCall& call, int64_t first, int64_t last))

}  // namespace spanbert
