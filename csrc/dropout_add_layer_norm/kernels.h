// What the dropout_add_layer_norm binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/philox.h"
#include "common/storage.h"

namespace spanbert {

struct NormCall {
  Storage storage;
  int64_t columns;  // H
  const void* x;    // [T, H], dense rows
  int64_t x_row;
  const void* residual;  // [T, H], dense rows
  int64_t residual_row;
  const void* weight;  // [H]
  double eps;
  Dropout dropout;
};

struct NormResult {
  const void* bias;  // [H], or null
  void* output;      // [T, H], contiguous
  void* mean;        // [T], accumulator type
  void* rstd;        // [T], accumulator type: 1 / sqrt(variance + eps)
};

struct NormGrads {
  const void* output;  // [T, H], dense rows: the gradient of the output
  int64_t output_row;
  const void* mean;  // of the forward
  const void* rstd;
  void* residual;  // [T, H], contiguous
  void* x;         // [T, H], contiguous; null without dropout, where it is the residual's
};

// Rows first .. last - 1.
SPANBERT_DECLARE(void dropout_add_layer_norm_forward(const NormCall& call, const NormResult& result, int64_t first,
                                                     int64_t last))
// The same rows, which `partial` [2, H] gets the sums of: gradients of weight and bias, in the accumulator type.
SPANBERT_DECLARE(void dropout_add_layer_norm_backward(const NormCall& call, const NormGrads& grads, int64_t first,
                                                      int64_t last, void* partial))
// Entries first .. last - 1 of the sum of `count` partials, each of `size` numbers, one after the other.
SPANBERT_DECLARE(void dropout_add_layer_norm_sum(Storage storage, const void* partials, int64_t count, int64_t size,
                                                 int64_t first, int64_t last, void* sums))

}  // namespace spanbert
