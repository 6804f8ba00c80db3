// What the cross_document_attention binding hands to the kernels of each instruction set. The joint softmax is
// document_attention's kernel.
#pragma once

#include <cstdint>

#include "attention/call.h"
#include "common/isa.h"

namespace spanbert {

// Segments with the same queries, each with the keys of one document. `statistics`: where query row 0 of each would
// have its log-sum-exp.
struct Pairs {
  const Segment* all;
  const int64_t* statistics;
  int64_t count;
};

// Document weights of a segment's queries, one head: float32 [query rows, heads, most_places]. `call.lse` is an input.
SPANBERT_DECLARE(void cross_document_attention_weights(const AttentionCall& call, const Segment& segment,
                                                       const KeyDocuments& documents, int64_t head, int64_t most_places,
                                                       float* weights))
// All that some queries see, one head. `call.lse` is [heads, size]; what is not seen is not written.
SPANBERT_DECLARE(void cross_document_attention_pairwise_forward(const AttentionCall& call, const Pairs& pairs,
                                                                int64_t head, int64_t size))
// All of a cluster, whose keys are the rows `keys`, one head: the segments that are sparse share them.
SPANBERT_DECLARE(void cross_document_attention_pairwise_backward(const AttentionCall& call, const AttentionGrads& grads,
                                                                 const Pairs* pairs, int64_t count,
                                                                 const RowRange& keys, int64_t head))

}  // namespace spanbert
