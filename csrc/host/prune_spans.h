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

// Span i belongs to group `groups[i]`, or all to the only one where that is null, and a group may keep `budgets[group]`
// spans.
struct Limit {
  const int64_t* groups;
  std::vector<int64_t> budgets;

  int64_t& left(int64_t span) { return budgets[groups ? groups[span] : 0]; }
};

// N spans, token after the last in `ends`. A span is kept only within every limit.
template <class Index, class Score>
struct Candidates {
  int64_t count;
  Column<Index> starts, ends;
  Column<Score> scores;
  std::vector<Limit> limits;
};

// Indices of the spans kept, by (start, end, index). None where a score is NaN, where a span with tokens starts before
// 0, or where the tokens of all lie more than `most_tokens` apart.
template <class Index, class Score>
std::optional<std::vector<int64_t>> prune_spans(const Candidates<Index, Score>& spans, bool non_crossing,
                                                int64_t most_tokens);

}  // namespace spanbert::host
