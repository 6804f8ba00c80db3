// Sorted spans on a GPU, and the way through those that hold some tokens.
#pragma once

#include "common/cuda_threads.h"

namespace spanbert {

// Spans sorted by (start, end). `first` counts those that start before a token, `reach` names the first that ends after
// it: the spans that hold token t lie in the slice reach[t] : first[t + 1].
struct SortedSpans {
  const int64_t* starts;  // [count]
  const int64_t* ends;    // [count]
  const int64_t* rows;    // [count], or null: row i
  const int64_t* first;   // [tokens + 1]
  const int64_t* reach;   // [tokens]
  int64_t count, tokens;  // both below 2^31
};

struct Span {
  int64_t start, end, row;

  SPANBERT_DEVICE bool empty() const { return end <= start; }
  SPANBERT_DEVICE int64_t width() const { return end - start; }
};

// Span i. One that reaches outside the tokens counts as empty, one without an output row (-1) is left out.
SPANBERT_DEVICE Span span_at(const SortedSpans& spans, int64_t i) {
  Span span{spans.starts[i], spans.ends[i], spans.rows ? spans.rows[i] : i};
  if (span.start < 0 || span.end > spans.tokens) span.start = span.end = 0;
  if (span.row < 0 || span.row >= spans.count) span.row = -1;
  return span;
}

// A span as the tokens from `begin` on see it.
struct SeenSpan {
  int low, high, row;  // start - begin, end - begin

  SPANBERT_DEVICE bool holds(int i) const { return low <= i && i < high; }
};

// Calls use(span, load(span)) for the spans that hold one of the tokens begin .. stop - 1, in sorted order: a warp
// together, and `Batch` loads before the first use, so that they are on their way from memory together.
template <int Batch, class Load, class Use>
SPANBERT_DEVICE void for_spans(const SortedSpans& spans, int64_t begin, int64_t stop, const Load& load,
                               const Use& use) {
  const int64_t last = spans.first[stop] < spans.count ? spans.first[stop] : spans.count;
  for (int64_t base = spans.reach[begin] > 0 ? spans.reach[begin] : 0; base < last; base += kLanes) {
    SeenSpan mine{0, 0, 0};
    bool seen = false;
    if (base + lane_index() < last) {
      const Span span = span_at(spans, base + lane_index());
      seen = span.end > begin && span.start < stop && !span.empty() && span.row >= 0;
      mine = {static_cast<int>(span.start - begin), static_cast<int>(span.end - begin), static_cast<int>(span.row)};
    }
    for (unsigned left = ballot(seen); left != 0;) {
      SeenSpan batch[Batch];
      decltype(load(mine)) loaded[Batch];
      int count = 0;
#pragma unroll
      for (int b = 0; b < Batch; ++b) {
        if (left == 0) continue;
        const int lane = lowest_bit(left);
        left &= left - 1;
        batch[b] = {shuffle(mine.low, lane), shuffle(mine.high, lane), shuffle(mine.row, lane)};
        loaded[b] = load(batch[b]);
        count = b + 1;
      }
#pragma unroll
      for (int b = 0; b < Batch; ++b) {
        if (b < count) use(batch[b], loaded[b]);
      }
    }
  }
}

}  // namespace spanbert
