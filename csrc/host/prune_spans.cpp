// The choice is that of ExtractSpans (Lee et al. 2018, e2e-coref; Joshi et al. 2019, SpanBERT's coreference): best
// score first, a span is kept unless it crosses one kept before. Half-open spans [s, e) and [a, b) cross if s < a < e <
// b or a < s < b < e: a kept span either starts inside the open interval (s, e) and ends behind it, or ends inside it
// and starts before it. So per position the latest end of the kept spans that start there and the earliest start of
// those that end there suffice. Like the published code, narrow spans look at every position of the interval; for wide
// ones a segment tree over the positions answers in O(log T).
//
// Most budgets are full long before the last span, so spans are ranked in rounds: a sample of the scores says below
// which rank about as many lie as are needed, one pass collects those, and only they are sorted.
#include "host/prune_spans.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <tuple>
#include <type_traits>

namespace spanbert::host {
namespace {

// Positions that spans with tokens begin and end at.
struct Positions {
  int64_t first = std::numeric_limits<int64_t>::max(), last = std::numeric_limits<int64_t>::min();
  bool wide = false;

  bool any() const { return first <= last; }
};

constexpr int64_t kNarrow = 64;  // tokens

class KeptSpans {
 public:
  explicit KeptSpans(const Positions& positions)
      : begin_(positions.first),
        size_(positions.any() ? positions.last - positions.first + 1 : 0),
        tree_(positions.wide),
        latest_end_(2 * size_, -1),
        earliest_start_(2 * size_, std::numeric_limits<int32_t>::max()) {}

  bool crossed_by(int64_t start, int64_t end) const {
    int64_t left = start - begin_ + 1 + size_, right = end - begin_ + size_;
    const auto s = static_cast<int32_t>(start - begin_), e = static_cast<int32_t>(end - begin_);
    if (right - left < kNarrow) return any_crosses(left, right, s, e);
    for (; left < right; left /= 2, right /= 2) {
      if (left % 2 == 1 && any_crosses(left, left + 1, s, e)) return true;
      if (right % 2 == 1 && any_crosses(right - 1, right, s, e)) return true;
      left += left % 2;
    }
    return false;
  }

  void add(int64_t start, int64_t end) {
    const auto s = static_cast<int32_t>(start - begin_), e = static_cast<int32_t>(end - begin_);
    const int64_t root = tree_ ? 1 : size_;
    for (int64_t i = s + size_; i >= root; i /= 2) latest_end_[i] = std::max(latest_end_[i], e);
    for (int64_t i = e + size_; i >= root; i /= 2) earliest_start_[i] = std::min(earliest_start_[i], s);
  }

 private:
  // Nodes one behind the other, without a branch: compilers make vectors of it.
  bool any_crosses(int64_t from, int64_t to, int32_t start, int32_t end) const {
    const int32_t *latest_end = latest_end_.data(), *earliest_start = earliest_start_.data();
    int32_t found = 0;
    for (int64_t i = from; i < to; ++i) found |= (latest_end[i] > end) | (earliest_start[i] < start);
    return found;
  }

  int64_t begin_, size_;
  bool tree_;
  // Of the spans that start, and of those that end, at a position (from node size_ on) or at those below a node.
  std::vector<int32_t> latest_end_, earliest_start_;
};

// A span's rank: the lower, the earlier. Descending scores, and of equal ones the lower row.
template <class Score, class Row>
struct Ranking {
  using Bits = std::conditional_t<sizeof(Score) == 4, uint32_t, uint64_t>;
  using Rank = std::conditional_t<sizeof(Score) + sizeof(Row) == 8, uint64_t, unsigned __int128>;

  static Rank rank(Score score, int64_t row) {
    constexpr Bits sign = Bits(1) << (8 * sizeof(Bits) - 1);
    Bits bits;
    score += Score(0);  // -0 equals 0
    std::memcpy(&bits, &score, sizeof(bits));
    bits = bits & sign ? bits : ~(bits | sign);
    return Rank(bits) << (8 * sizeof(Row)) | Rank(row);
  }
  static int64_t row(Rank rank) { return static_cast<Row>(rank); }

  // By the scores' digits, the lowest first: rows ascend already.
  static void sort(std::vector<Rank>& ranks, std::vector<Rank>& buffer) {
    constexpr int digit = 11, rows = 8 * sizeof(Row), all = 8 * (sizeof(Row) + sizeof(Score));
    buffer.resize(ranks.size());
    for (int shift = rows; shift < all; shift += digit) {
      const auto digit_of = [&](Rank rank) { return static_cast<size_t>(rank >> shift) % (1 << digit); };
      std::array<int64_t, 1 << digit> place{};
      for (const Rank rank : ranks) ++place[digit_of(rank)];
      std::exclusive_scan(place.begin(), place.end(), place.begin(), int64_t(0));
      for (const Rank rank : ranks) buffer[place[digit_of(rank)]++] = rank;
      ranks.swap(buffer);
    }
  }
};

// The rows in the order of their ranks.
template <class Ranking, class Score>
class BestFirst {
 public:
  BestFirst(const Column<Score>& scores, int64_t count) : scores_(scores), count_(count) {
    const int64_t step = std::max<int64_t>(count / kSample, 1);
    for (int64_t i = 0; i < count; i += step) sample_.push_back(Ranking::rank(scores[i], i));
  }

  // Calls take(row) until it says false, or for all rows. The first round ranks about `needed`, every other twice as
  // many as the one before.
  template <class Take>
  void each(int64_t needed, const Take& take) {
    std::vector<Rank> round, buffer;
    for (int64_t done = 0; done < count_; needed *= 2) {
      collect(done + needed, round);
      Ranking::sort(round, buffer);
      for (const Rank rank : round) {
        if (!take(Ranking::row(rank))) return;
      }
      done += round.size();
    }
  }

 private:
  using Rank = typename Ranking::Rank;
  static constexpr int64_t kSample = 1024;

  // What was not collected yet of about the first `wanted` ranks.
  [[gnu::noinline]] void collect(int64_t wanted, std::vector<Rank>& round) {
    round.clear();
    const Rank from = limit_;
    const int64_t place = wanted * static_cast<int64_t>(sample_.size()) / count_ + 1;
    Score lowest = -std::numeric_limits<Score>::infinity();
    limit_ = ~Rank(0);
    if (place < static_cast<int64_t>(sample_.size())) {
      std::nth_element(sample_.begin(), sample_.begin() + place, sample_.end());
      limit_ = sample_[place];
      lowest = scores_[Ranking::row(limit_)];
    }
    for (int64_t i = 0; i < count_; ++i) {
      const Score score = scores_[i];
      if (!(score >= lowest)) continue;
      const Rank rank = Ranking::rank(score, i);
      if (rank >= from && rank < limit_) round.push_back(rank);
    }
  }

  const Column<Score> scores_;
  const int64_t count_;
  std::vector<Rank> sample_;
  Rank limit_ = 0;  // what was collected lies below
};

}  // namespace

template <class Index, class Score>
std::optional<std::vector<int64_t>> prune_spans(const Candidates<Index, Score>& spans, bool non_crossing,
                                                int64_t most_tokens) {
  Positions positions;
  bool bad = false;
  for (int64_t i = 0; i < spans.count; ++i) {
    const int64_t start = spans.starts[i], end = spans.ends[i];
    bad |= spans.scores[i] != spans.scores[i];
    if (end <= start) continue;
    bad |= start < 0;
    positions.first = std::min(positions.first, start);
    positions.last = std::max(positions.last, end);
    positions.wide |= end - start > kNarrow;
  }
  if (bad || (positions.any() && positions.last - positions.first > most_tokens)) return std::nullopt;

  std::vector<Limit> limits = spans.limits;
  std::vector<int64_t> kept;
  int64_t wanted = spans.count;
  for (Limit& limit : limits) {
    int64_t sum = 0;
    for (int64_t& budget : limit.budgets) sum += budget = std::min(budget, spans.count);
    wanted = std::min(wanted, sum);
  }
  KeptSpans tree(non_crossing ? positions : Positions{});
  const auto take = [&](int64_t row) {
    if (static_cast<int64_t>(kept.size()) == wanted) return false;
    const int64_t start = spans.starts[row], end = spans.ends[row];
    for (Limit& limit : limits) {
      if (limit.left(row) == 0) return true;
    }
    const bool can_cross = non_crossing && end > start;
    if (can_cross && tree.crossed_by(start, end)) return true;
    if (can_cross) tree.add(start, end);
    for (Limit& limit : limits) --limit.left(row);
    kept.push_back(row);
    return true;
  };
  const int64_t needed = 6 * wanted + 256;  // most are crossed
  if (wanted == 0) return kept;
  if (spans.count <= std::numeric_limits<uint32_t>::max()) {
    BestFirst<Ranking<Score, uint32_t>, Score>(spans.scores, spans.count).each(needed, take);
  } else {
    BestFirst<Ranking<Score, uint64_t>, Score>(spans.scores, spans.count).each(needed, take);
  }
  std::sort(kept.begin(), kept.end(), [&](int64_t a, int64_t b) {
    return std::make_tuple(spans.starts[a], spans.ends[a], a) < std::make_tuple(spans.starts[b], spans.ends[b], b);
  });
  return kept;
}

template std::optional<std::vector<int64_t>> prune_spans(const Candidates<int32_t, float>&, bool, int64_t);
template std::optional<std::vector<int64_t>> prune_spans(const Candidates<int64_t, float>&, bool, int64_t);
template std::optional<std::vector<int64_t>> prune_spans(const Candidates<int32_t, double>&, bool, int64_t);
template std::optional<std::vector<int64_t>> prune_spans(const Candidates<int64_t, double>&, bool, int64_t);

}  // namespace spanbert::host
