// What the span_score binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/philox.h"
#include "span_linear/call.h"

namespace spanbert {

// Up to so many scores are sums of vectors, more a matrix product.
constexpr int64_t kFewScores = 4;

struct SpanScoreCall {
  ProjectedCall inner;
  const void* out_weight;                    // [D, S, O], dense rows
  int64_t out_stride, out_document, scores;  // elements from row to row and from document to document, S
  const int64_t* documents;                  // [D + 1], offsets in the tokens, or null: one weight for all spans
  int64_t document_count;                    // D
  double epsilon;                            // of the norm, below 0 where there is none
  Dropout dropout;                           // of (0, output row, column)
  const void* panels;                        // [D, panel_size], by span_score_pack, of more than few scores
  int64_t panel_size;

  bool normed() const { return epsilon >= 0; }
};

struct SpanScoreGrads {
  ProjectedGrads inputs;
  const void* output;  // gradient of the output [N, S], contiguous, in the order of the groups, empty spans last
  const void* rows;    // [N, 3] in the same order, of the norm, or null: see ops/span_score/operators.py
  void* out_weight;    // [D, S, O], zero on entry
};

// Elements of a document's weight as packed, and packing it.
SPANBERT_DECLARE(int64_t span_score_panel_size(const SpanScoreCall& call))
SPANBERT_DECLARE(void span_score_pack(const SpanScoreCall& call, void* panels, int64_t document))
// `output` [N, S] and `statistics` [N, 2] (with the norm), contiguous: the rows of groups first .. last - 1, which are
// of one document; of the spans without tokens where there are none.
SPANBERT_DECLARE(void span_score_forward(const SpanScoreCall& call, void* output, void* statistics, int64_t first,
                                         int64_t last))
// One tile of columns over the groups of `factors`; over the spans without tokens where it is null.
SPANBERT_DECLARE(void span_score_backward(const SpanScoreCall& call, const SpanScoreGrads& grads, const void* factors,
                                          int64_t tile))

}  // namespace spanbert
