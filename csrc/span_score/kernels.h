// What the span_score binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/philox.h"
#include "span_linear/call.h"

namespace spanbert {

struct SpanScoreCall {
  ProjectedCall inner;
  const void* out_weight;      // [S, O], dense rows
  int64_t out_stride, scores;  // S
  Dropout dropout;             // of (0, output row, column)
};

struct SpanScoreGrads {
  ProjectedGrads inputs;
  const void* output;  // gradient of the output [N, S], contiguous
  void* out_weight;    // [S, O], zero on entry
};

// `output` [N, S], contiguous: the rows of groups first .. last - 1; of the spans without tokens where there are none.
SPANBERT_DECLARE(void span_score_forward(const SpanScoreCall& call, void* output, int64_t first, int64_t last))
// One tile of columns over the groups of `factors`; over the spans without tokens where it is null.
SPANBERT_DECLARE(void span_score_backward(const SpanScoreCall& call, const SpanScoreGrads& grads, const void* factors,
                                          int64_t tile))

}  // namespace spanbert
