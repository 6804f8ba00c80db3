// Span masking for pre-training on plain arrays. No PyTorch and no Python in here.
#pragma once

#include <cstdint>
#include <vector>

namespace spanbert::host {

// How spans are drawn and what becomes of them. `cumulative` [max_words]: the chance of at most 1, 2, .. words.
struct Masking {
  uint64_t seed;
  double budget;  // share of a document's tokens
  int64_t max_words;
  const double* cumulative;
  double mask_below;    // of a draw in [0, 1): the mask token,
  double random_below;  // else random tokens, else as they are
  int64_t mask_token;
  int64_t num_random;  // a random token is one of these
  const int64_t* random_tokens;
};

// Tokens [T] of documents with bounds [count + 1]; a word begins where `word_starts` is not 0, and with a document.
struct Documents {
  int64_t count;
  const int64_t* bounds;
  const int64_t* tokens;
  const uint8_t* word_starts;
};

// Masked spans, half-open and in order, disjoint and not adjacent within a document.
struct MaskedSpans {
  std::vector<int64_t> starts, ends;
};

// Writes the masked tokens to `inputs` [T] and returns the spans.
MaskedSpans mask_spans(const Documents& documents, const Masking& masking, int64_t* inputs);

}  // namespace spanbert::host
