// The choice is that of ExtractSpans (Lee et al. 2018, e2e-coref; Joshi et al. 2019, SpanBERT's coreference): best
// score first, a span is kept unless it crosses one kept before. Half-open spans [s, e) and [a, b) cross if s < a < e <
// b or a < s < b < e: a kept span either starts inside the open interval (s, e) and ends behind it, or ends inside it
// and starts before it. So per position the latest end of the kept spans that start there and the earliest start of
// those that end there suffice. The published code looks at every position of the interval; a segment tree over
// positions answers in O(log T) for spans of any width.
#include "host/prune_spans.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace spanbert::host {
namespace {

constexpr int64_t NO_END = std::numeric_limits<int64_t>::min();
constexpr int64_t NO_START = std::numeric_limits<int64_t>::max();

class KeptSpans {
 public:
  KeptSpans(int64_t begin, int64_t end)
      : begin_(begin), size_(end - begin), nodes_(2 * size_, Node{NO_END, NO_START}) {}

  bool crossed_by(int64_t start, int64_t end) const {
    if (end <= start) return false;
    int64_t left = start + 1 - begin_ + size_, right = end - begin_ + size_;
    for (; left < right; left /= 2, right /= 2) {
      if (left % 2 == 1 && crosses(nodes_[left++], start, end)) return true;
      if (right % 2 == 1 && crosses(nodes_[--right], start, end)) return true;
    }
    return false;
  }

  void add(int64_t start, int64_t end) {
    if (end <= start) return;
    for (int64_t i = start - begin_ + size_; i > 0; i /= 2) nodes_[i].latest_end = std::max(nodes_[i].latest_end, end);
    for (int64_t i = end - begin_ + size_; i > 0; i /= 2)
      nodes_[i].earliest_start = std::min(nodes_[i].earliest_start, start);
  }

 private:
  // Of the spans that start, and of those that end, in a node's positions.
  struct Node {
    int64_t latest_end, earliest_start;
  };

  static bool crosses(const Node& node, int64_t start, int64_t end) {
    return node.latest_end > end || node.earliest_start < start;
  }

  int64_t begin_, size_;
  std::vector<Node> nodes_;
};

KeptSpans none_kept(const Candidates& spans, bool non_crossing) {
  int64_t begin = NO_START, end = NO_END;
  for (int64_t i = 0; non_crossing && i < spans.count; ++i) {
    if (spans.ends[i] <= spans.starts[i]) continue;
    begin = std::min(begin, spans.starts[i]);
    end = std::max(end, spans.ends[i]);
  }
  return begin <= end ? KeptSpans(begin, end + 1) : KeptSpans(0, 0);
}

struct Ranked {
  double score;
  int64_t row;
  bool operator<(const Ranked& other) const { return score > other.score || (score == other.score && row < other.row); }
};

}  // namespace

std::vector<int64_t> prune_spans(const Candidates& spans, bool non_crossing) {
  std::vector<int64_t> budgets = spans.budgets, kept;
  int64_t wanted = 0;
  for (int64_t& budget : budgets) wanted += budget = std::min(budget, spans.count);
  wanted = std::min(wanted, spans.count);
  std::vector<Ranked> ranked(spans.count);
  for (int64_t i = 0; i < spans.count; ++i) ranked[i] = {spans.scores[i], i};

  KeptSpans tree = none_kept(spans, non_crossing);
  // Most budgets are full long before the last span: only as many as needed are sorted, in growing blocks.
  int64_t block = 4 * wanted + 256;
  for (int64_t begin = 0, end; begin < spans.count && int64_t(kept.size()) < wanted; begin = end, block *= 2) {
    end = std::min(begin + block, spans.count);
    std::nth_element(ranked.begin() + begin, ranked.begin() + end, ranked.end());
    std::sort(ranked.begin() + begin, ranked.begin() + end);
    for (int64_t i = begin; i < end && int64_t(kept.size()) < wanted; ++i) {
      const int64_t row = ranked[i].row, start = spans.starts[row], stop = spans.ends[row];
      int64_t& budget = budgets[spans.documents[row]];
      if (budget == 0 || (non_crossing && tree.crossed_by(start, stop))) continue;
      if (non_crossing) tree.add(start, stop);
      --budget;
      kept.push_back(row);
    }
  }
  std::sort(kept.begin(), kept.end(), [&](int64_t a, int64_t b) {
    return std::tie(spans.starts[a], spans.ends[a], a) < std::tie(spans.starts[b], spans.ends[b], b);
  });
  return kept;
}

}  // namespace spanbert::host
