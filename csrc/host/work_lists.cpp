#include "host/work_lists.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace spanbert::host {
namespace {

// One pass of a stable counting sort: `order` by the keys, in 0 .. num_tokens.
template <typename Key>
std::vector<int64_t> sorted_by(const std::vector<int64_t>& order, int64_t num_tokens, Key key) {
  std::vector<int64_t> place(num_tokens + 2, 0), result(order.size());
  for (const int64_t row : order) ++place[key(row) + 1];
  std::partial_sum(place.begin(), place.end(), place.begin());
  for (const int64_t row : order) result[place[key(row)]++] = row;
  return result;
}

}  // namespace

void sort_spans(int64_t count, int64_t num_tokens, const int64_t* starts, const int64_t* ends, int64_t* sorted_starts,
                int64_t* sorted_ends, int64_t* rows) {
  const auto start_of = [&](int64_t row) { return ends[row] > starts[row] ? starts[row] : 0; };
  const auto end_of = [&](int64_t row) { return ends[row] > starts[row] ? ends[row] : 0; };
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  order = sorted_by(sorted_by(order, num_tokens, end_of), num_tokens, start_of);
  for (int64_t i = 0; i < count; ++i) {
    rows[i] = order[i];
    sorted_starts[i] = start_of(order[i]);
    sorted_ends[i] = end_of(order[i]);
  }
}

void first_and_reach(int64_t count, int64_t num_tokens, const int64_t* starts, const int64_t* ends, int64_t* first,
                     int64_t* reach) {
  int64_t span = 0;
  for (int64_t token = 0; token <= num_tokens; ++token) {
    while (span < count && starts[span] < token) ++span;
    first[token] = span;
  }
  int64_t token = 0;
  for (int64_t i = 0; i < count; ++i)
    for (; token < std::min(ends[i], num_tokens); ++token) reach[token] = i;
  std::fill(reach + token, reach + num_tokens, count);
}

}  // namespace spanbert::host
