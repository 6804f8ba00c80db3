// What the span_linear binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "span_linear/call.h"

namespace spanbert {

struct SpanLinearGrads {
  ProjectedGrads inputs;
  const void* output;  // gradient of the output, dense rows
  int64_t output_stride;
  void* addend;  // [N, O], contiguous, or null
};

// `output` [N, O], contiguous: the rows of groups first .. last - 1; of the spans without tokens where there are none.
SPANBERT_DECLARE(void span_linear_forward(const ProjectedCall& call, void* output, int64_t first, int64_t last))
// Factors of groups first .. last - 1, for the backward of their tiles, here and in span_score.
SPANBERT_DECLARE(void* new_projected_factors(const ProjectedCall& call, int64_t first, int64_t last))
SPANBERT_DECLARE(void delete_projected_factors(const ProjectedCall& call, void* factors))
// One tile of columns over the groups of `factors`; over the spans without tokens where it is null.
SPANBERT_DECLARE(void span_linear_backward(const ProjectedCall& call, const SpanLinearGrads& grads, const void* factors,
                                           int64_t tile))

}  // namespace spanbert
