// What the cross_document_attention binding hands to the kernels of each instruction-set level. The joint softmax is
// document_attention's kernel.
#pragma once

#include <cstdint>

#include "common/levels.h"
#include "document_attention/kernels.h"

namespace spanbert {

// The neighbourhoods of one cluster in pairs: each has the keys of one document, whose place in the cluster is given.
struct Pairs {
  const Neighbourhood* all;
  const int64_t* places;
  int64_t count;
};

// Document weights of all queries of a cluster, one head: float32 [query rows, heads, most_places]. `key_first`: the
// first key of each document of the cluster and, last, their number. `call.lse` is an input.
SPANBERT_DECLARE(void cross_document_attention_weights(const AttentionCall& call, const Neighbourhood& near,
                                                       const int64_t* key_first, int64_t head, int64_t most_places,
                                                       float* weights))
// A cluster, one head. `call.lse` is [heads, query rows, most_places]; what is not seen is not written.
SPANBERT_DECLARE(void cross_document_attention_pairwise_forward(const AttentionCall& call, const Pairs& pairs,
                                                                int64_t head, int64_t most_places))
SPANBERT_DECLARE(void cross_document_attention_pairwise_backward(const AttentionCall& call, const AttentionGrads& grads,
                                                                 const Pairs& pairs, int64_t head, int64_t most_places))

}  // namespace spanbert
