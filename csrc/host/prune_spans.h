// Greedy span pruning on plain arrays. No PyTorch and no Python in here.
#pragma once

#include <cstdint>
#include <vector>

namespace spanbert::host {

// N spans, token after the last in `ends`. Span i belongs to document `documents[i]`, which may keep
// `budgets[document]` spans. Scores hold no NaN, spans with tokens start at 0 or later.
struct Candidates {
  int64_t count;
  const int64_t* starts;
  const int64_t* ends;
  const double* scores;
  const int64_t* documents;
  std::vector<int64_t> budgets;
};

// Indices of the spans kept, by (start, end, index).
std::vector<int64_t> prune_spans(const Candidates& spans, bool non_crossing);

}  // namespace spanbert::host
