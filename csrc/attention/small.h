// Attention of a small segment on a CPU, several heads in one task. Only for kernel files.
//
// A head's share of a row is short, and the next row is far away: the processor does not foresee what comes, so the
// rows of the thread's next task are asked for while this one is computed. Rows in another format than the sums, or
// not one after the other, are copied first, all heads of them. Scores are computed transposed, S' = K Q': a vector
// holds one key and many queries, and a softmax adds no lanes up. The products are those of attention.h, and so is the
// softmax that the backward makes again.
//
// Products run over all keys and all queries; what is not seen has weight 0. Only a number that is not finite is seen
// through a weight of 0: there `forward` and `backward` return false, and the caller takes the other way.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "attention/call.h"
#include "attention/prefetch.h"
#include "attention/thread_memory.h"
#include "common/product.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

// Of the rows that are copied at once: so many stay in a core's cache.
constexpr int64_t kSmallBytes = int64_t{384} << 10;
// Weights that are added up by themselves: sums of blocks round less than one long sum.
constexpr int64_t kTerms = 8;

template <class S>
class Small {
  using A = typename Accumulator<S>::type;
  using V = Vector<A>;
  using Mask = typename Simd<A>::Mask;
  using Lane = std::remove_cvref_t<decltype(Mask{}[0])>;

 public:
  // `next`: the segment that this thread takes after this one, or nullptr.
  Small(const AttentionCall& call, const Segment& segment, const Segment* next)
      : call(call), segment(segment), next(next) {
    for (int64_t d = 0; d < segment.documents; ++d) {
      if (segment.query_first[d] == segment.query_first[d + 1]) continue;
      const Range* first = segment.ranges + segment.range_first[d];
      const int64_t count = segment.range_first[d + 1] - segment.range_first[d];
      masked = masked || count != 1 || first->begin != 0 || first->end != segment.keys;
    }
    find_seen();
  }

  // Heads `head` .. head + heads - 1.
  bool forward(int64_t head, int64_t heads) {
    return in_groups(head, heads, [&] { return forward_group(); });
  }
  bool backward(const AttentionGrads& grads, int64_t head, int64_t heads) {
    return in_groups(head, heads, [&] { return backward_group(grads); });
  }

 private:
  const AttentionCall& call;
  const Segment& segment;
  const Segment* const next;
  const int64_t dim = call.head_dim, wide = whole_vectors<A>(dim), columns = whole_vectors<A>(segment.queries);
  // As in attention.h.
  const A query_factor = call.scale > 0 ? A(1) : static_cast<A>(call.scale);
  const A score_factor = call.scale > 0 ? static_cast<A>(call.scale) : A(1);
  bool masked = false;                // some query does not see some key
  std::vector<Lane> seen;             // [keys, columns], set where the query sees the key; only if masked
  Lane any[kSmall], one[kSmall];      // [columns], set for queries that see any key, and for those that see one
  int64_t first_head = 0, heads = 0;  // of the group in hand

  void find_seen() {
    std::fill(any, any + columns, Lane(0));
    std::fill(one, one + columns, Lane(0));
    if (masked) seen.assign(segment.keys * columns, Lane(0));
    for (int64_t d = 0; d < segment.documents; ++d) {
      const int64_t begin = segment.query_first[d], end = segment.query_first[d + 1];
      int64_t count = 0;
      each_range(d, [&](int64_t from, int64_t to) {
        count += to - from;
        for (int64_t j = from; masked && j < to; ++j) {
          for (int64_t query = begin; query < end; ++query) seen[j * columns + query] = -1;
        }
      });
      if (count > 0) std::fill(any + begin, any + end, Lane(-1));
      if (count == 1) std::fill(one + begin, one + end, Lane(-1));
    }
  }

  template <class F>
  void each_range(int64_t document, const F& f) const {
    for (int64_t i = segment.range_first[document]; i < segment.range_first[document + 1]; ++i) {
      f(segment.ranges[i].begin, segment.ranges[i].end);
    }
  }

  template <class F>
  bool in_groups(int64_t head, int64_t count, const F& f) {
    const int64_t head_bytes = 2 * (segment.queries + segment.keys) * wide * static_cast<int64_t>(sizeof(A));
    const int64_t most = std::max<int64_t>(1, kSmallBytes / std::max<int64_t>(1, head_bytes));
    for (first_head = head; first_head < head + count; first_head += heads) {
      heads = std::min(most, head + count - first_head);
      if (!f()) return false;
    }
    return true;
  }

  S* row(const Rows& rows, int64_t index) const {
    return static_cast<S*>(rows.data) + index * rows.row + first_head * rows.head;
  }
  // A row of `rows`, all heads of the group, to or from copies [heads, count, wide], zeros beyond head_dim. `odd` stays
  // 0 where all numbers are finite.
  void copy_in(const Rows& rows, int64_t index, int64_t count, A factor, A* to, Mask& odd) const {
    const int64_t dim = this->dim, whole = dim / lanes<A> * lanes<A>;
    const S* from = row(rows, index);
    Mask found{};  // in a register, which `odd` is not
    for (int64_t h = 0; h < heads; ++h, from += rows.head, to += count * wide) {
      for (int64_t c = 0; c < whole; c += lanes<A>) {
        const V x = load(from + c) * factor;
        found |= bits_as<Mask>(x - x);
        store(to + c, x);
      }
      if (whole < dim) {
        const V x = load(from + whole, static_cast<int>(dim - whole)) * factor;
        found |= bits_as<Mask>(x - x);
        store(to + whole, x);
      }
    }
    odd |= found;
  }
  void copy_out(const A* from, int64_t count, A factor, const Rows& rows, int64_t index) const {
    const int64_t dim = this->dim, whole = dim / lanes<A> * lanes<A>;
    S* to = row(rows, index);
    for (int64_t h = 0; h < heads; ++h, from += count * wide, to += rows.head) {
      for (int64_t c = 0; c < whole; c += lanes<A>) store(to + c, load(from + c) * factor);
      if (whole < dim) store(to + whole, load(from + whole) * factor, static_cast<int>(dim - whole));
    }
  }
  Prefetch<S> next_rows() const {
    Prefetch<S> prefetch(first_head, heads, dim);
    if (next != nullptr) {
      prefetch.add(call.q, next->query_rows, next->queries);
      prefetch.add(call.k, next->key_rows, next->keys);
      prefetch.add(call.v, next->key_rows, next->keys);
    }
    return prefetch;
  }
  // Rows where they are used, float or double: row r of head h of the group at first + r * row + h * head.
  struct View {
    A* first;
    int64_t row, head;
    A* of_head(int64_t h) const { return first + h * head; }
  };
  View copies(A* memory, int64_t count) const { return {memory, wide, count * wide}; }
  // Rows that need no copy: numbers of the accumulator's type in whole vectors, one row after the other.
  static bool in_turn(const int64_t* indices, int64_t count) {
    return count == 0 || indices[count - 1] - indices[0] == count - 1;
  }
  bool direct() const {
    return std::is_same_v<S, A> && dim == wide && query_factor == 1 && in_turn(segment.query_rows, segment.queries) &&
           in_turn(segment.key_rows, segment.keys);
  }
  View in_place(const Rows& rows, const int64_t* indices, int64_t count) const {
    return {count == 0 ? nullptr : reinterpret_cast<A*>(row(rows, indices[0])), rows.row, rows.head};
  }
  bool finite(const View& rows, int64_t count) const {
    Mask odd{};
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t c = 0; c < wide; c += lanes<A>) {
          const V x = load(rows.of_head(h) + r * rows.row + c);
          odd |= bits_as<Mask>(x - x);
        }
      }
    }
    return !any_set(odd);
  }

  // A head's copied rows as panels; one panel is what they are already.
  Panels<A> panels_of(const A* rows, int64_t row, int64_t count, A* memory) const {
    if (wide <= kPanel<A>) return {rows, count, wide, row};
    return pack<A>([&](int64_t r) { return rows + r * row; }, count, wide, memory);
  }
  Panels<A> across(const A* rows, int64_t row, int64_t count, A* memory) const {
    return pack_transposed<A>([&](int64_t r) { return rows + r * row; }, count, dim, memory);
  }

  static bool any_set(Mask mask) {
    Lane set = 0;
    for (int lane = 0; lane < lanes<A>; ++lane) set |= mask[lane];
    return set != 0;
  }
  static Mask mask_at(const Lane* lane) {
    Mask mask;
    std::memcpy(&mask, lane, sizeof(mask));
    return mask;
  }

  // f(query, key, factor) for every pair that is seen.
  template <class F>
  void each_factor(int64_t head, const F& f) const {
    A factor[kSmall];
    for (int64_t d = 0; d < segment.documents; ++d) {
      for (int64_t query = segment.query_first[d]; query < segment.query_first[d + 1]; ++query) {
        each_range(d, [&](int64_t begin, int64_t end) {
          for (int64_t j = begin, run; j < end; j = run) {
            for (run = j + 1; run < end && segment.key_rows[run] == segment.key_rows[run - 1] + 1;) ++run;
            call.dropout.factors(head, segment.query_rows[query], segment.key_rows[j], run - j, factor);
            for (int64_t i = j; i < run; ++i) f(query, i, factor[i - j]);
          }
        });
      }
    }
  }

  bool forward_group() {
    const int64_t queries = segment.queries, keys = segment.keys, query_size = queries * wide, key_size = keys * wide;
    const bool direct = this->direct();
    const int64_t copied = direct ? 0 : 2 * heads * (query_size + key_size);
    A* const memory = thread_memory<A>(columns * (dim + keys) + key_size + copied);
    A *const query_columns = memory, *const scores = query_columns + columns * dim;
    A *const panel_memory = scores + keys * columns, *const copy = panel_memory + key_size;
    View q, k, v, output;
    if (direct) {
      q = in_place(call.q, segment.query_rows, queries);
      k = in_place(call.k, segment.key_rows, keys);
      v = in_place(call.v, segment.key_rows, keys);
      output = in_place(call.output, segment.query_rows, queries);
      if (masked && !finite(v, keys)) return false;
    } else {
      q = copies(copy, queries), k = copies(copy + heads * query_size, keys);
      v = copies(k.first + heads * key_size, keys), output = copies(v.first + heads * key_size, queries);
      Mask odd{};
      for (int64_t r = 0; r < std::max(queries, keys); ++r) {
        if (r < queries) copy_in(call.q, segment.query_rows[r], queries, query_factor, q.first + r * wide, odd);
        if (r < keys) copy_in(call.k, segment.key_rows[r], keys, 1, k.first + r * wide, odd);
        if (r < keys) copy_in(call.v, segment.key_rows[r], keys, 1, v.first + r * wide, odd);
      }
      if (masked && any_set(odd)) return false;
    }
    A shares[kSmall];
    Prefetch<S> prefetch = next_rows();
    const int64_t parts = 3 * heads;
    for (int64_t h = 0; h < heads; ++h) {
      const Panels<A> queries_across = across(q.of_head(h), q.row, queries, query_columns);
      product<A>(keys, dim, k.of_head(h), k.row, 1, queries_across, 0, scores, columns, false);
      prefetch.advance(parts);
      A* lse = static_cast<A*>(call.lse) + (first_head + h) * call.query_rows;
      masked ? soften<true>(scores, shares, lse) : soften<false>(scores, shares, lse);
      prefetch.advance(parts);
      if (call.dropout.active) {
        each_factor(first_head + h, [&](int64_t query, int64_t j, A factor) { scores[j * columns + query] *= factor; });
      }
      const Panels<A> values = panels_of(v.of_head(h), v.row, keys, panel_memory);
      product<A>(queries, keys, scores, 1, columns, values, 0, output.of_head(h), output.row, false);
      for (int64_t r = 0; r < queries; ++r) {
        A* to = output.of_head(h) + r * output.row;
        for (int64_t c = 0; c < wide; c += lanes<A>) store(to + c, load(to + c) * shares[r]);
      }
      prefetch.advance(parts);
    }
    for (int64_t r = 0; !direct && r < queries; ++r) {
      copy_out(output.first + r * wide, queries, 1, call.output, segment.query_rows[r]);
    }
    return true;
  }

  // Scores become weights relative to the largest; `shares` [columns] is what the sums of values are multiplied by.
  template <bool kMasked>
  void soften(A* scores, A* shares, A* lse) const {
    const V none = broadcast<A>(-INFINITY);
    const Lane* visible = seen.data();
    const int64_t keys = segment.keys, columns = this->columns;
    const A factor = score_factor;
    for (int64_t c = 0; c < columns; c += lanes<A>) {
      V largest = none, total{};
      for (int64_t at = c; at < keys * columns; at += columns) {
        V score = load(scores + at) * factor;
        if constexpr (kMasked) score = mask_at(visible + at) ? score : none;
        store(scores + at, score);
        largest = larger(largest, score);
      }
      // Scores that are all -inf have no maximum to subtract; 0 leaves their weights 0.
      const V pivot = largest == none ? V{} : largest;
      for (int64_t j = 0; j < keys; j += kTerms) {
        V sum{};
        for (int64_t at = c + j * columns; at < std::min(j + kTerms, keys) * columns; at += columns) {
          const V weight = exponential(load(scores + at) - pivot);
          store(scores + at, weight);
          sum += weight;
        }
        total += sum;
      }
      store(shares + c, mask_at(any + c) ? 1 / total : V{});
      for (int64_t lane = 0; lane < lanes<A> && c + lane < segment.queries; ++lane) {
        lse[segment.query_rows[c + lane]] = largest[lane] + std::log(total[lane]);
      }
    }
  }

  bool backward_group(const AttentionGrads& grads) {
    const int64_t queries = segment.queries, keys = segment.keys, query_size = queries * wide, key_size = keys * wide;
    const int64_t matrix = keys * columns, panel_size = std::max(query_size, key_size);
    const bool direct = this->direct();
    const int64_t copied = direct ? 0 : 2 * heads * (query_size + key_size);
    A* const memory = thread_memory<A>(2 * columns * dim + 4 * matrix + panel_size + copied);
    A *const query_columns = memory, *const grad_columns = query_columns + columns * dim;
    A *const weights = grad_columns + columns * dim, *const slopes = weights + matrix;
    A *const factors = slopes + matrix, *const dropped = factors + matrix;
    A *const panel_memory = dropped + matrix, *const copy = panel_memory + panel_size;
    View q, k, v, incoming, grad_q, grad_k, grad_v;
    bool all_finite;
    if (direct) {
      q = in_place(call.q, segment.query_rows, queries), incoming = in_place(grads.output, segment.query_rows, queries);
      k = in_place(call.k, segment.key_rows, keys), v = in_place(call.v, segment.key_rows, keys);
      grad_q = in_place(grads.q, segment.query_rows, queries);
      grad_k = in_place(grads.k, segment.key_rows, keys), grad_v = in_place(grads.v, segment.key_rows, keys);
      all_finite = !masked || (finite(q, queries) && finite(k, keys) && finite(v, keys) && finite(incoming, queries));
    } else {
      q = copies(copy, queries), incoming = copies(copy + heads * query_size, queries);
      k = copies(copy + 2 * heads * query_size, keys), v = copies(k.first + heads * key_size, keys);
      Mask odd{};
      for (int64_t r = 0; r < std::max(queries, keys); ++r) {
        if (r < queries) copy_in(call.q, segment.query_rows[r], queries, query_factor, q.first + r * wide, odd);
        if (r < keys) copy_in(call.k, segment.key_rows[r], keys, 1, k.first + r * wide, odd);
        if (r < keys) copy_in(call.v, segment.key_rows[r], keys, 1, v.first + r * wide, odd);
        if (r < queries) copy_in(grads.output, segment.query_rows[r], queries, 1, incoming.first + r * wide, odd);
      }
      // Gradients take the places of rows that are not read any more by then.
      grad_v = v, grad_q = incoming, grad_k = k;
      all_finite = !any_set(odd);
    }
    if (masked && !all_finite) return false;
    Prefetch<S> prefetch = next_rows();
    if (next != nullptr) prefetch.add(grads.output, next->query_rows, next->queries);
    const int64_t parts = 5 * heads;
    for (int64_t h = 0; h < heads; ++h) {
      const A *query = q.of_head(h), *key = k.of_head(h), *value = v.of_head(h), *grad = incoming.of_head(h);
      const Panels<A> queries_across = across(query, q.row, queries, query_columns);
      const Panels<A> grads_across = across(grad, incoming.row, queries, grad_columns);
      product<A>(keys, dim, key, k.row, 1, queries_across, 0, weights, columns, false);
      prefetch.advance(parts);
      product<A>(keys, dim, value, v.row, 1, grads_across, 0, slopes, columns, false);
      prefetch.advance(parts);
      const A* lse = static_cast<const A*>(call.lse) + (first_head + h) * call.query_rows;
      const A* used = weights;
      if (call.dropout.active) {
        std::fill(factors, factors + matrix, A(0));
        each_factor(first_head + h, [&](int64_t query, int64_t j, A factor) { factors[j * columns + query] = factor; });
        slope<true, true>(weights, slopes, factors, dropped, lse);
        used = dropped;
      } else if (masked) {
        slope<true, false>(weights, slopes, nullptr, nullptr, lse);
      } else {
        slope<false, false>(weights, slopes, nullptr, nullptr, lse);
      }
      const Panels<A> grad_rows = panels_of(grad, incoming.row, queries, panel_memory);
      product<A>(keys, queries, used, columns, 1, grad_rows, 0, grad_v.of_head(h), grad_v.row, false);
      prefetch.advance(parts);
      const Panels<A> key_rows = panels_of(key, k.row, keys, panel_memory);
      product<A>(queries, keys, slopes, 1, columns, key_rows, 0, grad_q.of_head(h), grad_q.row, false);
      prefetch.advance(parts);
      const Panels<A> query_rows = panels_of(query, q.row, queries, panel_memory);
      product<A>(keys, queries, slopes, columns, 1, query_rows, 0, grad_k.of_head(h), grad_k.row, false);
      prefetch.advance(parts);
    }
    for (int64_t r = 0; !direct && r < std::max(queries, keys); ++r) {
      if (r < queries) copy_out(grad_q.first + r * wide, queries, query_factor, grads.q, segment.query_rows[r]);
      if (r < keys) copy_out(grad_k.first + r * wide, keys, 1, grads.k, segment.key_rows[r]);
      if (r < keys) copy_out(grad_v.first + r * wide, keys, 1, grads.v, segment.key_rows[r]);
    }
    return true;
  }

  // Scores become weights, `dropped` those that multiplied V, and dP becomes dS, times the scale.
  template <bool kMasked, bool kDropout>
  void slope(A* weights, A* slopes, const A* factors, A* dropped, const A* lse) const {
    const int64_t keys = segment.keys, columns = this->columns;
    const Lane* visible = seen.data();
    const A score_factor = this->score_factor;
    A pivots[kSmall];
    for (int64_t query = 0; query < columns; ++query) {
      const A sum = query < segment.queries ? lse[segment.query_rows[query]] : A(0);
      pivots[query] = sum == -INFINITY ? A(0) : sum;
    }
    for (int64_t c = 0; c < columns; c += lanes<A>) {
      const V pivot = load(pivots + c);
      V total{}, delta{};
      for (int64_t j = 0; j < keys; j += kTerms) {
        V sum{}, product{};
        for (int64_t at = c + j * columns; at < std::min(j + kTerms, keys) * columns; at += columns) {
          V weight = exponential(load(weights + at) * score_factor - pivot), grad = load(slopes + at);
          if constexpr (kMasked) {
            const Mask mask = masked ? mask_at(visible + at) : Mask{} - 1;
            weight = mask ? weight : V{};
            grad = mask ? grad : V{};
          }
          if constexpr (kDropout) grad *= load(factors + at);
          store(weights + at, weight);
          if constexpr (kMasked || kDropout) store(slopes + at, grad);
          sum += weight;
          product += weight * grad;
        }
        total += sum;
        delta += product;
      }
      const V share = mask_at(any + c) ? 1 / total : V{};
      delta *= share;
      // A softmax over one key is 1 whatever its score.
      const Mask single = mask_at(one + c);
      for (int64_t at = c; at < keys * columns; at += columns) {
        const V weight = load(weights + at) * share;
        if constexpr (kDropout) {
          store(dropped + at, weight * load(factors + at));
        } else {
          store(weights + at, weight);
        }
        V change = weight * (load(slopes + at) - delta);
        change = single ? V{} : change * score_factor;
        if constexpr (kMasked) {
          if (masked) change = mask_at(visible + at) ? change : V{};
        }
        store(slopes + at, change);
      }
    }
  }
};

}  // namespace
}  // namespace SPANBERT_ISA
}  // namespace spanbert
