// What the document_attention binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "attention/call.h"
#include "attention/distance_call.h"
#include "common/isa.h"

namespace spanbert {

// Heads `head` .. head + heads - 1. Forward: queries first .. last - 1 of the segment, all of a small one; backward:
// all of its queries and keys. `next`: the segment that this thread takes afterwards, or nullptr. Returns whether the
// kernels of small.h took it.
SPANBERT_DECLARE(bool document_attention_forward(const AttentionCall& call, const Segment& segment, const Segment* next,
                                                 int64_t head, int64_t heads, int64_t first, int64_t last))
SPANBERT_DECLARE(bool document_attention_backward(const AttentionCall& call, const AttentionGrads& grads,
                                                  const Segment& segment, const Segment* next, int64_t head,
                                                  int64_t heads))
// All sparse segments of a cluster, whose keys are among the rows `keys`, one head.
SPANBERT_DECLARE(void document_attention_sparse_backward(const AttentionCall& call, const AttentionGrads& grads,
                                                         const Segment* all, int64_t count, const RowRange& keys,
                                                         int64_t head))

// With terms by distance. First of all: a head's tables, packed, for a backward too.
SPANBERT_DECLARE(void distance_attention_prepare(const DistanceCall& call, int64_t head, bool backward))
// Return the pairs of a query and a key that they went through. `next`: what this thread takes afterwards.
SPANBERT_DECLARE(int64_t distance_attention_forward(const DistanceCall& call, const DistanceTask& task, int64_t head,
                                                    const DistanceNext& next))
// A whole document; the tables' gradients are added to the sums of a part of the work.
SPANBERT_DECLARE(int64_t distance_attention_backward(const DistanceCall& call, const DistanceGrads& grads,
                                                     const DistanceTask& task, int64_t part, int64_t head,
                                                     const DistanceNext& next))
// Last: the gradients of a head's tables, from the sums.
SPANBERT_DECLARE(void distance_attention_add_up(const DistanceCall& call, const DistanceGrads& grads, int64_t head))

}  // namespace spanbert
