// Attention of one segment and head on a CPU. Only for kernel files.
//
// Forward: queries in blocks, keys in blocks that stay in the cache; one pass with a running maximum and sum (online
// softmax, Milakov and Gimelshein 2018; Rabe and Staats 2021). Up to kKeys keys are one block: no rescaling. Backward:
// a block of queries meets all keys at once, so that its rows of scores are whole, five products a block:
//   dV = P' dO,   dP = dO V',   dS = P * (dP - delta) with delta = rowsum(P * dP),   dQ = dS K scale,   dK = dS' Q
//   scale
// P is exp(S - lse), with the log-sum-exp that the forward kept, divided by its sum: a lse of 1000 is rounded by 3e-5,
// so P would not add up to 1, and where one weight is nearly 1, dS is a difference far smaller than that. With
// delta = rowsum(dO * O) the rounding of O to 16 bits would be left in such a difference.
// With dropout, the factors (0 or 1 / (1 - p)) multiply P in dV and dP in dS. One task owns a segment and head, so
// every sum has one order.
//
// A block of queries is of one document, and its products run over the ranges that this one sees: what it does not see
// may hold Inf or NaN. Where each document sees all keys but its own and all numbers are finite, a block of short
// documents holds rows of several: its products run over all keys, and what a row does not see has weight 0. Only a
// value that is not finite is seen through a weight of 0, and then the sums are not finite: a forward over one block of
// keys makes such sums again, row by row.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "attention/call.h"
#include "common/product.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

constexpr int64_t kQueries = 48;  // a multiple of kRows: 8 tiles of 6
constexpr int64_t kKeys = 512;

// Arrays of the given sizes, in one piece of memory: short documents are over in microseconds.
template <class A, int N>
struct Arrays {
  std::unique_ptr<A[]> memory;
  A* array[N];

  explicit Arrays(const int64_t (&sizes)[N]) {
    int64_t total = 0;
    for (const int64_t size : sizes) total += size;
    memory.reset(new A[total]);
    A* next = memory.get();
    for (int i = 0; i < N; ++i) array[i] = next, next += sizes[i];
  }
};

struct QueryBlock {
  int64_t first, count, document;
  bool mixed;  // rows of several documents
};

template <class S>
struct Attention {
  using A = typename Accumulator<S>::type;
  using V = Vector<A>;

  const AttentionCall& call;
  const Segment& segment;
  const int64_t head, dim = call.head_dim, wide = whole_vectors<A>(dim);
  const int64_t key_block;    // keys that meet a block of queries at once
  const int64_t key_columns;  // from one row of scores to the next
  // Scores are scaled in float, at the end, so that they are rounded once; -inf must stay -inf, so a scale that is not
  // positive goes to the queries.
  const A query_factor = call.scale > 0 ? A(1) : static_cast<A>(call.scale);
  const A score_factor = call.scale > 0 ? static_cast<A>(call.scale) : A(1);
  bool mixable;
  std::vector<Range> spans;  // the columns of a block's scores that are computed: whole panels

  Attention(const AttentionCall& call, const Segment& segment, int64_t head, const AttentionGrads* grads = nullptr)
      : call(call),
        segment(segment),
        head(head),
        key_block(grads == nullptr ? std::min(segment.keys, kKeys) : segment.keys),
        key_columns(odd_vectors(key_block)) {
    mixable = segment.documents > 1 && segment.nearly_all && segment.queries < segment.documents * kQueries;
    // A forward over one block of keys looks at its results instead.
    if (mixable && (grads != nullptr || segment.keys > kKeys)) {
      mixable = finite(call.q, segment.query_rows, segment.queries) && finite(call.k, segment.key_rows, segment.keys) &&
                finite(call.v, segment.key_rows, segment.keys) &&
                (grads == nullptr || finite(grads->output, segment.query_rows, segment.queries));
    }
  }

  // Rows an odd number of vectors apart: their columns are not all in the same few sets of a cache.
  static int64_t odd_vectors(int64_t columns) { return (whole_vectors<A>(columns) / lanes<A> | 1) * lanes<A>; }
  static std::unique_ptr<A[]> buffer(int64_t size) { return std::unique_ptr<A[]>(new A[size]); }
  static std::unique_ptr<A[]> zeros(int64_t size) { return std::unique_ptr<A[]>(new A[size]()); }

  S* row(const Rows& rows, int64_t index) const {
    return static_cast<S*>(rows.data) + index * rows.row + head * rows.head;
  }
  // Row by row: queries or keys from `first` on.
  auto query(const Rows& rows, int64_t first) const {
    return [this, &rows, first](int64_t r) { return row(rows, segment.query_rows[first + r]); };
  }
  auto key(const Rows& rows, int64_t first) const {
    return [this, &rows, first](int64_t r) { return row(rows, segment.key_rows[first + r]); };
  }
  // f(column, lanes in use) for every vector of a row; whole vectors are known to be whole when this is compiled.
  template <class F>
  void each_vector(const F& f) const {
    int64_t c = 0;
    for (; c + lanes<A> <= dim; c += lanes<A>) f(c, std::integral_constant<int, lanes<A>>{});
    if (c < dim) f(c, static_cast<int>(dim - c));
  }

  bool finite(const Rows& rows, const int64_t* indices, int64_t count) const {
    V zero{};
    for (int64_t r = 0; r < count; ++r) {
      const S* from = row(rows, indices[r]);
      each_vector([&](int64_t c, auto n) {
        const V x = load_up_to(from + c, n);
        zero += x - x;
      });
    }
    return sum_of<A>(zero) == 0;
  }

  // Rows as plain accumulator rows [count, wide], zeros beyond head_dim.
  template <class Row>
  void widen(const Row& from, int64_t count, A factor, A* to) const {
    for (int64_t r = 0; r < count; ++r) {
      const S* values = from(r);
      each_vector([&](int64_t c, auto n) { store(to + r * wide + c, load_up_to(values + c, n) * factor); });
    }
  }
  void narrow(const A* from, A factor, S* to) const {
    each_vector([&](int64_t c, auto n) { store_up_to(to + c, load(from + c) * factor, n); });
  }

  QueryBlock block_at(int64_t first, int64_t last, int64_t document) const {
    while (segment.query_first[document + 1] <= first) ++document;
    const int64_t end = segment.query_first[document + 1] < last ? segment.query_first[document + 1] : last;
    const int64_t full = first + kQueries < last ? first + kQueries : last;
    if (mixable && end - first < kQueries / 2 && full > end) return {first, full - first, document, true};
    return {first, (end < full ? end : full) - first, document, false};
  }

  // f(begin, end) for every range that a document sees of the keys first .. first + count - 1, counted from `first`.
  template <class F>
  void each_range(int64_t document, int64_t first, int64_t count, const F& f) const {
    for (int64_t i = segment.range_first[document]; i < segment.range_first[document + 1]; ++i) {
      const int64_t begin = segment.ranges[i].begin - first, end = segment.ranges[i].end - first;
      if (begin < count && end > 0) f(begin > 0 ? begin : 0, end < count ? end : count);
    }
  }
  // The ranges over which a block's products run.
  template <class F>
  void each_depth(const QueryBlock& block, int64_t first, int64_t count, const F& f) const {
    if (block.mixed) {
      f(int64_t{0}, count);
    } else {
      each_range(block.document, first, count, f);
    }
  }

  void find_spans(const QueryBlock& block, int64_t first, int64_t count) {
    constexpr int64_t P = kPanel<A>;
    spans.clear();
    each_depth(block, first, count, [&](int64_t begin, int64_t end) {
      const int64_t from = begin / P * P, to = std::min((end + P - 1) / P * P, whole_vectors<A>(count));
      if (!spans.empty() && from <= spans.back().end) {
        spans.back().end = to;
      } else {
        spans.push_back({from, to});
      }
    });
  }

  // f(begin, end) for pieces of the spans, whole vectors: sums of blocks round less than one long sum.
  template <class F>
  void each_part(const F& f) const {
    for (const Range& span : spans) {
      for (int64_t begin = span.begin; begin < span.end; begin += kKeys) f(begin, std::min(begin + kKeys, span.end));
    }
  }

  // Columns of the spans: rows [rows, wide] times packed columns of [dim, keys].
  void multiply(int64_t rows, const A* from, const Panels<A>& packed, A* to) const {
    for (const Range& span : spans) {
      const Panels<A> part{packed.first + span.begin * dim, dim, std::min(span.end, packed.columns) - span.begin};
      product<A>(rows, dim, from, wide, 1, part, 0, to + span.begin, key_columns, false);
    }
  }

  // What a document does not see takes no part.
  void fill_gaps(A* columns, int64_t document, int64_t first, int64_t count, A value) const {
    auto span = spans.begin();
    int64_t at = spans.empty() ? 0 : span->begin;
    const auto fill = [&](int64_t end) {
      for (; at < end; ++at) columns[at] = value;
    };
    each_range(document, first, count, [&](int64_t begin, int64_t end) {
      for (; begin >= span->end; at = span->begin) {
        fill(span->end);
        ++span;
      }
      fill(begin);
      at = end;
    });
    while (span != spans.end()) {
      fill(span->end);
      if (++span != spans.end()) at = span->begin;
    }
  }

  // Dropout's factors for the keys that a document sees.
  void find_factors(int64_t document, int64_t query, int64_t first, int64_t count, A* factor) const {
    each_range(document, first, count, [&](int64_t begin, int64_t end) {
      const int64_t* rows = segment.key_rows + first;
      for (int64_t j = begin, run; j < end; j = run) {
        for (run = j + 1; run < end && rows[run] == rows[run - 1] + 1;) ++run;
        call.dropout.factors(head, segment.query_rows[query], rows[j], run - j, factor + j);
      }
    });
  }

  // emit(query, sums [wide], maximum, total, whether it sees any key): the output is sums / total.
  template <class Emit>
  void forward(int64_t first, int64_t last, const Emit& emit) {
    const int64_t block_rows = last - first < kQueries ? last - first : kQueries;
    const int64_t blocks = segment.keys > 0 ? (segment.keys + key_block - 1) / key_block : 1;
    // With several key blocks all the task's sums wait.
    const int64_t sum_rows = blocks > 1 ? last - first : block_rows;
    const Arrays<A, 7> arrays({key_columns * dim, wide * key_block, block_rows * wide, block_rows * key_columns,
                               sum_rows * wide, sum_rows, sum_rows});
    const auto [key_memory, value_memory, queries, scores, sums, maxima, totals] = arrays.array;

    for (int64_t part = 0; part < blocks; ++part) {
      const int64_t from = part * key_block, n = segment.keys - from < key_block ? segment.keys - from : key_block;
      const Panels<A> keys = pack_transposed<A>(key(call.k, from), n, dim, key_memory);
      const Panels<A> values = pack<A>(key(call.v, from), n, dim, value_memory);
      QueryBlock block{};
      for (int64_t q = first; q < last; q += block.count) {
        block = block_at(q, last, block.document);
        const int64_t place = blocks > 1 ? q - first : 0;
        A *sum = sums + place * wide, *maximum = maxima + place, *total = totals + place;
        find_spans(block, from, n);
        widen(query(call.q, q), block.count, query_factor, queries);
        multiply(block.count, queries, keys, scores);
        for (int64_t r = 0, document = block.document; r < block.count; ++r) {
          while (segment.query_first[document + 1] <= q + r) ++document;
          A* columns = scores + r * key_columns;
          fill_gaps(columns, document, from, n, -INFINITY);
          soften(columns, part == 0, maximum + r, total + r, sum + r * wide);
          if (call.dropout.active) drop(columns, document, q + r, from, n);
        }
        bool add = part > 0;
        each_depth(block, from, n, [&](int64_t begin, int64_t end) {
          product<A>(block.count, end - begin, scores + begin, key_columns, 1, values, begin, sum, wide, add);
          add = true;
        });
        if (!add) std::fill(sum, sum + block.count * wide, A(0));
        if (block.mixed && blocks == 1 && !all_finite(sum, block.count * wide)) {
          multiply_apart(block, q, scores, values, sum);
        }
        if (part + 1 < blocks) continue;
        for (int64_t r = 0, document = block.document; r < block.count; ++r) {
          while (segment.query_first[document + 1] <= q + r) ++document;
          const bool any = segment.range_first[document] < segment.range_first[document + 1];
          emit(q + r, sum + r * wide, maximum[r], total[r], any);
        }
      }
    }
  }

  static bool all_finite(const A* values, int64_t count) {
    V zero{};
    for (int64_t i = 0; i < count; i += lanes<A>) zero += load(values + i) - load(values + i);
    return sum_of<A>(zero) == 0;
  }

  // The sums of a mixed block, each row's over what its own document sees.
  void multiply_apart(const QueryBlock& block, int64_t first, const A* weights, const Panels<A>& values,
                      A* sums) const {
    std::fill(sums, sums + block.count * wide, A(0));
    for (int64_t r = 0, document = block.document; r < block.count; ++r) {
      while (segment.query_first[document + 1] <= first + r) ++document;
      each_range(document, 0, values.rows, [&](int64_t begin, int64_t end) {
        product<A>(1, end - begin, weights + r * key_columns + begin, key_columns, 1, values, begin, sums + r * wide,
                   wide, true);
      });
    }
  }

  // f(query, scores, first, count) for the scores of every query with the keys first .. first + count - 1, -inf where a
  // key is not seen, before they are multiplied by score_factor; only the columns of `spans` are there.
  template <class F>
  void each_scores(const F& f) {
    const auto key_memory = buffer(key_columns * dim);
    const auto queries = buffer(kQueries * wide), scores = buffer(kQueries * key_columns);
    for (int64_t from = 0; from < segment.keys; from += key_block) {
      const int64_t n = segment.keys - from < key_block ? segment.keys - from : key_block;
      const Panels<A> keys = pack_transposed<A>(key(call.k, from), n, dim, key_memory.get());
      QueryBlock block{};
      for (int64_t q = 0; q < segment.queries; q += block.count) {
        block = block_at(q, segment.queries, block.document);
        find_spans(block, from, n);
        widen(query(call.q, q), block.count, query_factor, queries.get());
        multiply(block.count, queries.get(), keys, scores.get());
        for (int64_t r = 0, document = block.document; r < block.count; ++r) {
          while (segment.query_first[document + 1] <= q + r) ++document;
          fill_gaps(scores.get() + r * key_columns, document, from, n, -INFINITY);
          f(q + r, scores.get() + r * key_columns, from, n);
        }
      }
    }
  }

  // One row of scores becomes weights relative to the running maximum; what was summed before is rescaled to it.
  void soften(A* scores, bool fresh, A* maximum, A* total, A* sum) const {
    A now = maximum_of(scores);
    if (!fresh && *maximum > now) now = *maximum;
    // Scores that are all -inf have no maximum to subtract; 0 leaves their weights 0.
    const A pivot = now == -INFINITY ? A(0) : now;
    A added = 0;
    each_part([&](int64_t begin, int64_t end) {
      V sum{};
      for (int64_t j = begin; j < end; j += lanes<A>) {
        const V weight = exponential(load(scores + j) * score_factor - pivot);
        sum += weight;
        store(scores + j, weight);
      }
      added += sum_of<A>(sum);
    });
    A rescale = 0;
    if (!fresh) {
      rescale = std::exp(*maximum - pivot);
      for (int64_t c = 0; c < wide; c += lanes<A>) store(sum + c, load(sum + c) * rescale);
    }
    *total = (fresh ? A(0) : *total * rescale) + added;
    *maximum = now;
  }

  void drop(A* weights, int64_t document, int64_t query, int64_t first, int64_t count) const {
    A factor[kKeys];
    find_factors(document, query, first, count, factor);
    each_range(document, first, count, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) weights[j] *= factor[j];
    });
  }

  // For every query its log-sum-exp, if that is known, and, if any, what multiplies its incoming gradient. Adds to
  // `grad_queries` [queries, wide], which is not yet multiplied by the scale, and gives out the gradients of all keys
  // and values: emit(key, that of the key, not yet multiplied by score_factor, that of the value).
  template <class Emit>
  void backward(const AttentionGrads& grads, const A* lse, const A* share, A* grad_queries, const Emit& emit) {
    const int64_t block_rows = segment.queries < kQueries ? segment.queries : kQueries, row_size = block_rows * wide;
    const int64_t n = segment.keys, packed = whole_vectors<A>(n) * dim, columns = block_rows * key_columns,
                  key_size = n * wide;
    // Keys and values are panels of the transpose, the other panels are of the rows as they are.
    const Arrays<A, 12> arrays({packed, packed, key_size, row_size, row_size, row_size, row_size, columns, columns,
                                key_size, key_size, call.dropout.active ? key_columns : 0});
    const auto [key_columns_memory, value_columns_memory, key_memory, queries, incoming, query_memory, grad_memory,
                weights, slopes, grad_keys, grad_values, factors] = arrays.array;
    const Panels<A> keys_across = pack_transposed<A>(key(call.k, 0), n, dim, key_columns_memory);
    const Panels<A> values_across = pack_transposed<A>(key(call.v, 0), n, dim, value_columns_memory);
    const Panels<A> keys = pack<A>(key(call.k, 0), n, dim, key_memory);
    std::fill(grad_keys, grad_keys + n * wide, A(0));
    std::fill(grad_values, grad_values + n * wide, A(0));
    QueryBlock block{};
    for (int64_t q = 0; q < segment.queries; q += block.count) {
      block = block_at(q, segment.queries, block.document);
      const int64_t rows = block.count;
      find_spans(block, 0, n);
      if (spans.empty()) continue;
      widen(query(call.q, q), rows, query_factor, queries);
      widen(query(grads.output, q), rows, 1, incoming);
      for (int64_t r = 0; share && r < rows; ++r) {
        for (int64_t c = 0; c < wide; ++c) incoming[r * wide + c] *= share[q + r];
      }
      const auto query_row = [&](int64_t r) { return queries + r * wide; };
      const auto grad_row = [&](int64_t r) { return incoming + r * wide; };
      const Panels<A> query_panels = pack<A>(query_row, rows, dim, query_memory);
      const Panels<A> grad_panels = pack<A>(grad_row, rows, dim, grad_memory);
      multiply(rows, queries, keys_across, weights);
      multiply(rows, incoming, values_across, slopes);
      for (int64_t r = 0, document = block.document; r < rows; ++r) {
        while (segment.query_first[document + 1] <= q + r) ++document;
        A *row_weights = weights + r * key_columns, *row_slopes = slopes + r * key_columns;
        fill_gaps(row_weights, document, 0, n, -INFINITY);
        fill_gaps(row_slopes, document, 0, n, 0);
        if (call.dropout.active) {
          for (const Range& span : spans) std::fill(factors + span.begin, factors + span.end, A(1));
          find_factors(document, q + r, 0, n, factors);
        }
        slope(row_weights, row_slopes, factors, document, lse != nullptr ? lse[q + r] : maximum_of(row_weights));
        if (!block.mixed) continue;
        fill_gaps(row_weights, document, 0, n, 0);
        fill_gaps(row_slopes, document, 0, n, 0);
      }
      each_depth(block, 0, n, [&](int64_t first, int64_t last) {
        for (int64_t begin = first; begin < last; begin += kKeys) {
          const int64_t depth = std::min(kKeys, last - begin);
          product<A>(depth, rows, weights + begin, 1, key_columns, grad_panels, 0, grad_values + begin * wide, wide,
                     true);
          product<A>(depth, rows, slopes + begin, 1, key_columns, query_panels, 0, grad_keys + begin * wide, wide,
                     true);
          product<A>(rows, depth, slopes + begin, key_columns, 1, keys, begin, grad_queries + q * wide, wide, true);
        }
      });
    }
    for (int64_t j = 0; j < n; ++j) emit(j, grad_keys + j * wide, grad_values + j * wide);
  }
  void backward(const AttentionGrads& grads, const A* lse, const A* share, A* grad_queries) {
    backward(grads, lse, share, grad_queries, [&](int64_t key, const A* grad_key, const A* grad_value) {
      narrow(grad_key, score_factor, row(grads.k, segment.key_rows[key]));
      narrow(grad_value, 1, row(grads.v, segment.key_rows[key]));
    });
  }

  // The largest of a row of scores, -inf where there is none.
  A maximum_of(const A* scores) const {
    V largest = broadcast<A>(-INFINITY);
    for (const Range& span : spans) {
      for (int64_t j = span.begin; j < span.end; j += lanes<A>)
        largest = larger(largest, load(scores + j) * score_factor);
    }
    return largest_of<A>(largest);
  }

  // One row: scores become the weights that multiplied V, dP becomes dS. `near_maximum` is no smaller than the largest
  // score, and not much larger.
  void slope(A* scores, A* slopes, const A* factors, int64_t document, A near_maximum) const {
    const int64_t range = segment.range_first[document], ranges = segment.range_first[document + 1] - range;
    const A pivot = near_maximum == -INFINITY ? A(0) : near_maximum;
    A total = 0, product = 0;
    each_part([&](int64_t begin, int64_t end) {
      V weights{}, products{};
      for (int64_t j = begin; j < end; j += lanes<A>) {
        const V weight = exponential(load(scores + j) * score_factor - pivot);
        V grad = load(slopes + j);
        if (call.dropout.active) {
          grad *= load(factors + j);
          store(slopes + j, grad);
        }
        store(scores + j, weight);
        weights += weight;
        products += weight * grad;
      }
      total += sum_of<A>(weights);
      product += sum_of<A>(products);
    });
    const A share = ranges > 0 ? 1 / total : A(0), delta = product * share;
    each_part([&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; j += lanes<A>) {
        const V weight = load(scores + j) * share;
        store(scores + j, call.dropout.active ? weight * load(factors + j) : weight);
        store(slopes + j, weight * (load(slopes + j) - delta));
      }
    });
    // A softmax over one key is 1 whatever its score.
    if (ranges == 1 && segment.ranges[range].end == segment.ranges[range].begin + 1) {
      for (const Range& span : spans) std::fill(slopes + span.begin, slopes + span.end, A(0));
    }
  }
};

}  // namespace
}  // namespace SPANBERT_ISA
}  // namespace spanbert
