// Work lists of spans on plain arrays: what lets a block of tokens find the spans that hold them.
#pragma once

#include <cstdint>

namespace spanbert::host {

// Sort N half-open spans by (start, end), equal ones in their order; those without tokens become (0, 0). `rows` says
// where each came from. Spans with tokens lie in 0 .. num_tokens.
void sort_spans(int64_t count, int64_t num_tokens, const int64_t* starts, const int64_t* ends, int64_t* sorted_starts,
                int64_t* sorted_ends, int64_t* rows);

// Of sorted spans, `first` [num_tokens + 1]: how many start before each token; `reach` [num_tokens]: the first that
// ends after it, N if none does. Spans that hold token t lie in reach[t] : first[t + 1].
void first_and_reach(int64_t count, int64_t num_tokens, const int64_t* starts, const int64_t* ends, int64_t* first,
                     int64_t* reach);

}  // namespace spanbert::host
