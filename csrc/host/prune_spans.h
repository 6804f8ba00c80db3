// Greedy span pruning on plain arrays. No PyTorch and no Python in here.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

namespace spanbert::host {

// A column of an array, its numbers `stride` bytes apart.
template <class T>
struct Column {
  const void* data;
  int64_t stride;

  T operator[](int64_t i) const {
    T value;
    std::memcpy(&value, static_cast<const char*>(data) + i * stride, sizeof(T));
    return value;
  }
};

// N spans, token after the last in `ends`. Span i belongs to document `documents[i]`, or all to the only one where that
// is null, and a document may keep `budgets[document]` spans.
template <class Index, class Score>
struct Candidates {
  int64_t count;
  Column<Index> starts, ends;
  Column<Score> scores;
  const int64_t* documents;
  std::vector<int64_t> budgets;
};

// Indices of the spans kept, by (start, end, index). None where a score is NaN, where a span with tokens starts before
// 0, or where the tokens of all lie more than `most_tokens` apart.
template <class Index, class Score>
std::optional<std::vector<int64_t>> prune_spans(const Candidates<Index, Score>& spans, bool non_crossing,
                                                int64_t most_tokens);

}  // namespace spanbert::host
