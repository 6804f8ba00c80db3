// The procedure is that of SpanBERT's PairWithSpanMaskingScheme (Joshi et al. 2020): until the budget is met, a length
// in words from a truncated geometric distribution and an anchor among the tokens not masked yet; the span begins with
// the anchor's word and is cut where the budget ends, be it inside a word. Spans that overlap or touch are one. What
// becomes of a span is drawn once for all of its tokens, a random token anew for each.
//
// Every document has random numbers of its own, SplitMix64 (Steele, Lea and Flood 2014) from a mixed seed, so that the
// result depends neither on the other documents nor on who computes it: the numpy way draws the same numbers.
#include "host/span_masking.h"

#include <algorithm>
#include <cmath>

namespace spanbert::host {
namespace {

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15;

uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

class Draws {
 public:
  Draws(uint64_t seed, uint64_t document) : state_(mixed(mixed(seed + GOLDEN) ^ (document * GOLDEN))) {}

  uint64_t below(uint64_t count) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * count) >> 64);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  uint64_t next() { return mixed(state_ += GOLDEN); }
  uint64_t state_;
};

// One document while its spans are drawn.
class Drawing {
 public:
  Drawing(const uint8_t* word_starts, int64_t length, int64_t wanted)
      : word_starts_(word_starts), length_(length), left_(wanted), masked_(length, 0) {}

  bool done() const { return left_ == 0; }
  bool masked(int64_t token) const { return masked_[token] != 0; }

  // Masks words from the anchor's on, as far as the budget goes.
  void add(int64_t anchor, int64_t words) {
    int64_t begin = anchor;
    while (begin > 0 && !word_starts_[begin]) --begin;
    int64_t token = begin;
    for (; words > 0 && token < length_ && left_ > 0; --words) {
      do {
        left_ -= 1 - masked_[token];
        masked_[token++] = 1;
      } while (token < length_ && !word_starts_[token] && left_ > 0);
    }
  }

  const std::vector<uint8_t>& result() const { return masked_; }

 private:
  const uint8_t* word_starts_;
  int64_t length_, left_;
  std::vector<uint8_t> masked_;
};

void mask_document(const Documents& documents, int64_t document, const Masking& masking, int64_t* inputs,
                   MaskedSpans& spans) {
  const int64_t begin = documents.bounds[document], length = documents.bounds[document + 1] - begin;
  Draws draws(masking.seed, document);
  Drawing drawing(documents.word_starts + begin, length,
                  static_cast<int64_t>(std::ceil(static_cast<double>(length) * masking.budget)));
  while (!drawing.done()) {
    const double draw = draws.uniform();
    const int64_t words =
        1 + std::min<int64_t>(
                std::upper_bound(masking.cumulative, masking.cumulative + masking.max_words, draw) - masking.cumulative,
                masking.max_words - 1);
    const auto anchor = static_cast<int64_t>(draws.below(length));
    if (!drawing.masked(anchor)) drawing.add(anchor, words);
  }
  const std::vector<uint8_t>& masked = drawing.result();
  for (int64_t start = 0; start < length; ++start) {
    if (!masked[start]) continue;
    int64_t end = start;
    while (end < length && masked[end]) ++end;
    spans.starts.push_back(begin + start);
    spans.ends.push_back(begin + end);
    const double draw = draws.uniform();
    for (int64_t token = begin + start; token < begin + end; ++token) {
      if (draw < masking.mask_below)
        inputs[token] = masking.mask_token;
      else if (draw < masking.random_below)
        inputs[token] = masking.random_tokens[draws.below(masking.num_random)];
    }
    start = end;
  }
}

}  // namespace

MaskedSpans mask_spans(const Documents& documents, const Masking& masking, int64_t* inputs) {
  MaskedSpans spans;
  std::copy(documents.tokens, documents.tokens + documents.bounds[documents.count], inputs);
  for (int64_t document = 0; document < documents.count; ++document)
    mask_document(documents, document, masking, inputs, spans);
  return spans;
}

}  // namespace spanbert::host
