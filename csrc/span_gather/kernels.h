// What the span_gather binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/storage.h"

namespace spanbert {

struct SpanGatherGrads {
  Storage storage;
  int64_t columns;     // H
  const void* output;  // [sum of widths or more, H], dense rows: the gradient of the output
  int64_t output_stride;
  // Rows of `output` that each token went to: those of token t are sources[begin[t] .. begin[t + 1] - 1].
  const int64_t* begin;    // [T + 1]
  const int64_t* sources;  // [sum of widths]
  void* hidden;            // [T, H], contiguous
};

// Copies rows, past the caches if possible where that is wanted.
SPANBERT_DECLARE(void span_gather_copy(void* to, const void* from, int64_t bytes, bool past_caches))
// Columns left .. right - 1 of tokens first .. last - 1.
SPANBERT_DECLARE(void span_gather_backward(const SpanGatherGrads& grads, int64_t first, int64_t last, int64_t left,
                                           int64_t right))

}  // namespace spanbert
