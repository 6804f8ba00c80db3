// What the document_attention binding hands to the kernels of each instruction-set level.
#pragma once

#include <cstdint>

#include "common/levels.h"
#include "common/philox.h"
#include "common/storage.h"

namespace spanbert {

// A tensor [rows, heads, head_dim] whose last dimension is dense.
struct Rows {
  void* data;
  int64_t row, head;  // strides
};

struct AttentionCall {
  Storage storage;
  int64_t tokens, heads, head_dim;
  double scale;
  Dropout dropout;
  Rows q, k, v, output;
  void* lse;  // [heads, tokens], accumulator type
};

struct AttentionGrads {
  Rows output, q, k, v;
};

// Queries first .. last - 1 of the document at tokens begin .. end - 1, one head.
SPANBERT_DECLARE(void document_attention_forward(const AttentionCall& call, int64_t head, int64_t begin, int64_t end,
                                                 int64_t first, int64_t last))
// A whole document, one head.
SPANBERT_DECLARE(void document_attention_backward(const AttentionCall& call, const AttentionGrads& grads, int64_t head,
                                                  int64_t begin, int64_t end))

}  // namespace spanbert
