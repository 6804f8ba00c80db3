// Spans over projected tokens on a CPU: the walks that span_linear and span_score share.
//
// With a linear layer's blocks applied to the tokens beforehand, P_b = hidden W_b^T, a span's pre-activation is
//   bias + P_start[start] + P_end[end - 1] + P_width[width] + sum of P_sum + mean of P_mean
//        + sum over heads of softmax-weighted P_attention.
// Spans come grouped by first token and nested (span_pool/groups.h): each continues the running sums of the one before,
// so that a span costs a handful of additions a column. A block of columns is carried through all spans of a group,
// and through the groups one after the other, with its rows of P in the nearest cache.
//
// The backward walks a block of columns the same way for the pre-activations of a batch of groups, a tile wide, has the
// loss make them their gradients g_n, then walks back from the widest span of each group and hands every token a suffix
// sum of them, as span_pool's backward does, with P in the place of hidden; B of a score's gradient needs g_n . out_n
// of the pooled part alone, which the way there has at hand.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>

#include "common/sums.h"
#include "span_linear/factors.h"

namespace spanbert {
namespace SPANBERT_ISA {

// For what stands in the innermost loops: called, it would pass its vectors through memory.
#define SPANBERT_INLINE __attribute__((always_inline))

// Calls f(std::integral_constant<int, N>, column, lanes in use of each vector) for the blocks of N vectors that make up
// `columns` columns: independent chains that hide the latencies.
template <class A, class F>
inline void each_block(int64_t columns, const F& f) {
  constexpr int N = kProjectedTile / lanes<A>;
  int64_t c = 0;
  for (; c + kProjectedTile <= columns; c += kProjectedTile) f(std::integral_constant<int, N>(), c, lanes<A>);
  for (; c < columns; c += lanes<A>) {
    f(std::integral_constant<int, 1>(), c, static_cast<int>(columns - c < lanes<A> ? columns - c : lanes<A>));
  }
}

template <class A>
struct ForwardWalk {
  using V = Vector<A>;
  static constexpr int kVectors = kProjectedTile / lanes<A>;

  const ProjectedCall& call;
  const Factors<A>& factors;
  const std::unique_ptr<V[]> states{new V[kVectors * (call.heads + 1)]};  // running sums of the heads and the mean
  const std::unique_ptr<V[]> outs{new V[kVectors * call.heads]};

  ForwardWalk(const ProjectedCall& call, const Factors<A>& factors) : call(call), factors(factors) {}

  const A* block(Part part, int64_t head = 0) const {
    if (!call.has(part)) return nullptr;
    return static_cast<const A*>(call.projected) + (call.block[part] + head) * call.columns;
  }

  // The spans of a group, narrowest first, at N vectors of columns from c on. Calls
  // finish(span of the group, pre-activations [N], pooled heads [heads, N]).
  template <int N, bool OneHead, class Finish>
  void group(int64_t group, int64_t c, int count, const Finish& finish) const {
    const int used = N == 1 ? count : lanes<A>;
    const auto read = [&](const A* row, int v) SPANBERT_INLINE { return load_up_to(row + v * lanes<A>, used); };
    const int64_t start = call.groups.start[group], heads = call.heads, stride = call.projected_stride;
    const int64_t spans = call.groups.first[group + 1] - call.groups.first[group];
    const auto* own = factors.spans_of(call.groups, group);
    const auto* pool = factors.pools_of(call.groups, group);
    const auto* step = factors.steps_of(group);
    const auto column = [&](const A* from) { return from ? from + c : nullptr; };
    const A* const end = column(block(kEnd));
    const A* const sum = column(block(kSum));
    const A* const mean = column(block(kMean));
    const A* const attention = column(block(kAttention));
    const A* const table = column(static_cast<const A*>(call.table));
    const A* const addend = column(static_cast<const A*>(call.addend));
    const int64_t table_stride = call.table_stride, addend_stride = call.addend_stride, columns = call.columns;
    V* const head_states = states.get();
    V* const means = head_states + N * heads;
    V* const head_outs = outs.get();
    V base[N], one[N] = {};
    for (int v = 0; v < N; ++v) base[v] = call.bias ? read(static_cast<const A*>(call.bias) + c, v) : V{};
    if (const A* from = column(block(kStart))) {
      for (int v = 0; v < N; ++v) base[v] += read(from + start * stride, v);
    }
    for (int64_t k = 0; k < N * (heads + 1); ++k) head_states[k] = V{};
    int64_t t = start;
    for (int64_t i = 0; i < spans; ++i, pool += heads) {
      for (; t < own[i].end; ++t, step += heads) {
        if (sum) {
          for (int v = 0; v < N; ++v) base[v] += read(sum + t * stride, v);
        }
        if (mean) {
          for (int v = 0; v < N; ++v) means[v] += read(mean + t * stride, v);
        }
        if constexpr (OneHead) {
          const A rescale = step->rescale, weight = step->weight;
          for (int v = 0; v < N; ++v) one[v] = one[v] * rescale + weight * read(attention + t * stride, v);
        } else {
          for (int64_t k = 0; k < heads; ++k) {
            const A rescale = step[k].rescale, weight = step[k].weight;
            const A* row = attention + t * stride + k * columns;
            V* state = head_states + k * N;
            for (int v = 0; v < N; ++v) state[v] = state[v] * rescale + weight * read(row, v);
          }
        }
      }
      V pre[N], one_out[N];
      for (int v = 0; v < N; ++v) pre[v] = base[v];
      if (end) {
        for (int v = 0; v < N; ++v) pre[v] += read(end + (t - 1) * stride, v);
      }
      if (table) {
        for (int v = 0; v < N; ++v) pre[v] += read(table + own[i].table_row * table_stride, v);
      }
      if (mean) {
        for (int v = 0; v < N; ++v) pre[v] += means[v] * own[i].inverse_width;
      }
      if constexpr (OneHead) {
        const A inverse_total = pool->inverse_total;
        for (int v = 0; v < N; ++v) {
          one_out[v] = inverse_total == 0 ? V{} : one[v] * inverse_total;
          pre[v] += one_out[v];
        }
      } else {
        for (int64_t k = 0; k < heads; ++k) {
          const A inverse_total = pool[k].inverse_total;
          for (int v = 0; v < N; ++v) {
            head_outs[k * N + v] = inverse_total == 0 ? V{} : head_states[k * N + v] * inverse_total;
            pre[v] += head_outs[k * N + v];
          }
        }
      }
      if (addend) {
        for (int v = 0; v < N; ++v) pre[v] += read(addend + own[i].row * addend_stride, v);
      }
      finish(i, pre, OneHead ? one_out : head_outs);
    }
  }

  // The same for spans without tokens, `spans` of them from `first` on.
  template <int N, class Finish>
  void empty(int64_t c, int count, int64_t first, int64_t spans, const Finish& finish) const {
    const int used = N == 1 ? count : lanes<A>;
    for (int64_t i = 0; i < spans; ++i) {
      V pre[N] = {};
      if (call.bias) {
        const A* from = static_cast<const A*>(call.bias) + c;
        for (int v = 0; v < N; ++v) pre[v] += load_up_to(from + v * lanes<A>, used);
      }
      if (call.addend) {
        const A* from = static_cast<const A*>(call.addend) + call.empty[first + i] * call.addend_stride + c;
        for (int v = 0; v < N; ++v) pre[v] += load_up_to(from + v * lanes<A>, used);
      }
      finish(i, pre);
    }
  }

  // finish(column, lanes in use, span, pre-activations) for all columns of the factors' groups (`span` counts from
  // their first one), or of the spans without tokens where there is no group (`span` counts these).
  template <class Finish>
  void run(const Finish& finish) const {
    each_block<A>(call.columns, [&](auto n, int64_t c, int count) {
      if (factors.first == factors.last) {
        empty<n>(c, count, 0, call.empties, [&](int64_t i, const V(&pre)[n]) { finish(c, count, i, pre); });
      }
      for (int64_t g = factors.first; g < factors.last; ++g) {
        const int64_t shift = call.groups.first[g] - factors.first_span;
        const auto own = [&](int64_t i, const V(&pre)[n], const V*)
                             SPANBERT_INLINE { finish(c, count, shift + i, pre); };
        if (call.heads == 1) {
          group<n, true>(g, c, count, own);
        } else {
          group<n, false>(g, c, count, own);
        }
      }
    });
  }
};

// Of spans without tokens.
constexpr int64_t kNoDocument = -1;

// Spans whose pre-activations the backward has at a time, more only where a group has more.
constexpr int64_t kBatch = 32;

// Spans of a group whose gradients are added one behind the other: see LongSums.
constexpr int64_t kLongGroup = 256;

// Rows that are asked for ahead, of a group.
constexpr int64_t kNextRows = 8;

// One tile of columns of the backward. `Loss` makes pre-activations, rows of kProjectedTile, their gradients:
//   loss.document(first token) tells what must not be mixed in a batch (first tokens ascend),
//   loss.gradients(document, position of the first span, spans, row_of(i) in the output, rows).
// Positions count the spans in their order, those without tokens after the others.
template <class A, class Loss>
struct BackwardWalk {
  using V = Vector<A>;

  const ProjectedCall& call;
  const Factors<A>& factors;
  const ProjectedGrads& grads;
  Loss& loss;
  const int64_t tile, left, width;  // the tile's columns are left .. left + width - 1
  const ForwardWalk<A> way_there{call, factors};
  const int64_t room = std::max(factors.widest_group, kBatch);
  // Of the spans of a batch.
  const std::unique_ptr<A[]> gradients{new A[room * kProjectedTile]()};
  const std::unique_ptr<A[]> pooled{new A[room * call.heads * kProjectedTile]()};
  const std::unique_ptr<V[]> dots{new V[room * call.heads]};  // lanes to be added up, as of scores
  const std::unique_ptr<V[]> scores{new V[call.tokens * call.heads + 1]};
  // Of the tile: what all spans add up to.
  LongSums<A> bias{1, kProjectedTile}, table{call.table_rows, kProjectedTile};

  BackwardWalk(const ProjectedCall& call, const Factors<A>& factors, const ProjectedGrads& grads, Loss& loss,
               int64_t tile)
      : call(call),
        factors(factors),
        grads(grads),
        loss(loss),
        tile(tile),
        left(tile * kProjectedTile),
        width(call.columns - left < kProjectedTile ? call.columns - left : kProjectedTile) {}

  A* grad_block(Part part, int64_t head = 0) const {
    if (!call.has(part)) return nullptr;
    return static_cast<A*>(grads.projected) + (call.block[part] + head) * call.columns + left;
  }

  template <int N>
  [[gnu::always_inline]] static void add(A* to, const V* values, int used) {
    for (int v = 0; v < N; ++v) {
      A* here = to + v * lanes<A>;
      store_up_to(here, load_up_to(here, used) + values[v], used);
    }
  }
  template <int N>
  [[gnu::always_inline]] static void add(A* to, const V (&values)[N], const V (&before)[N], int used) {
    V both[N];
    for (int v = 0; v < N; ++v) both[v] = values[v] + before[v];
    add<N>(to, both, used);
  }
  template <int N>
  static void settle(V (&values)[N], V (&before)[N]) {
    for (int v = 0; v < N; ++v) {
      before[v] += values[v];
      values[v] = V{};
    }
  }

  // The pre-activations of a group, and its pooled heads; `place` is that of its first span in the batch.
  template <int N, bool OneHead>
  void there(int64_t group, int64_t place, int64_t c, int count) const {
    const int64_t heads = OneHead ? 1 : call.heads;
    A* const to = gradients.get() + place * kProjectedTile + c;
    A* const heads_to = pooled.get() + place * heads * kProjectedTile + c;
    way_there.template group<N, OneHead>(group, left + c, count,
                                         [&](int64_t i, const V(&pre)[N], const V* outs) SPANBERT_INLINE {
                                           for (int v = 0; v < N; ++v)
                                             store(to + i * kProjectedTile + v * lanes<A>, pre[v]);
                                           for (int64_t k = 0; k < heads; ++k) {
                                             A* head = heads_to + (i * heads + k) * kProjectedTile;
                                             for (int v = 0; v < N; ++v) store(head + v * lanes<A>, outs[k * N + v]);
                                           }
                                         });
  }

  // What each pooled head times the gradient of its span adds up to.
  void multiply_heads(int64_t spans) const {
    for (int64_t i = 0; i < spans; ++i) {
      for (int64_t k = i * call.heads; k < (i + 1) * call.heads; ++k) {
        const A *grad = gradients.get() + i * kProjectedTile, *head = pooled.get() + k * kProjectedTile;
        V dot{};
        for (int64_t c = 0; c < width; c += lanes<A>) dot += load(grad + c) * load(head + c);
        dots[k] = dot;
      }
    }
  }

  // Where the rows are, in `projected` and in its gradient, that a group comes to after those before it: of its first
  // token and of its last. Returns their number.
  int64_t next_rows(int64_t group, const A** reads, A** writes) const {
    const SpanGroups& groups = call.groups;
    const int64_t last = groups.end(group, groups.first[group + 1] - 1) - 1;
    int64_t count = 0;
    for (const Part part : {kStart, kEnd, kSum, kMean, kAttention}) {
      if (!call.has(part)) continue;
      const int64_t token = part == kStart ? groups.start[group] : last;
      for (int64_t k = 0; k < (part == kAttention ? call.heads : 1) && count < kNextRows; ++k, ++count) {
        reads[count] = way_there.block(part, k) + token * call.projected_stride + left;
        writes[count] = grad_block(part, k) + token * call.blocks * call.columns;
      }
    }
    return count;
  }

  // From the widest span down, all parts but the attention.
  template <int N>
  void back(int64_t group, int64_t place, int64_t c, int count) {
    const int used = N == 1 ? count : lanes<A>;
    const int64_t start = call.groups.start[group], stride = call.blocks * call.columns;
    const auto* own = factors.spans_of(call.groups, group);
    const auto column = [&](A* to) { return to ? to + c : nullptr; };
    A* const end = column(grad_block(kEnd));
    A* const sum = column(grad_block(kSum));
    A* const mean = column(grad_block(kMean));
    const A* const from = gradients.get() + place * kProjectedTile + c;
    // Of the last kLongGroup spans, and of those before.
    V sums[N] = {}, means[N] = {}, sums_before[N] = {}, means_before[N] = {};
    const int64_t widest = call.groups.first[group + 1] - call.groups.first[group] - 1;
    int64_t i = widest;
    for (int64_t t = own[i].end - 1; t >= start; --t) {
      V ends[N] = {};
      const bool any = i >= 0 && own[i].end - 1 == t;
      for (; i >= 0 && own[i].end - 1 == t; --i) {
        if (i < widest && (widest - i) % kLongGroup == 0) {
          if (grads.bias) add<N>(bias.next(0) + c, sums, used);
          if (end) add<N>(end + t * stride, ends, used);
          settle(sums, sums_before);
          settle(means, means_before);
          for (int v = 0; v < N; ++v) ends[v] = V{};
        }
        V g[N];
        for (int v = 0; v < N; ++v) {
          g[v] = load(from + i * kProjectedTile + v * lanes<A>);
          sums[v] += g[v];
          ends[v] += g[v];
        }
        if (call.table) add<N>(table.next(own[i].table_row) + c, g, used);
        if (mean) {
          for (int v = 0; v < N; ++v) means[v] += g[v] * own[i].inverse_width;
        }
      }
      if (end && any) add<N>(end + t * stride, ends, used);
      if (sum) add<N>(sum + t * stride, sums, sums_before, used);
      if (mean) add<N>(mean + t * stride, means, means_before, used);
      if (!sum && !mean) {
        if (i < 0) break;
        t = own[i].end;  // nothing to do between two ends
      }
    }
    if (A* to = column(grad_block(kStart))) add<N>(to + start * stride, sums, sums_before, used);
    if (grads.bias) add<N>(bias.next(0) + c, sums, used);
  }

  // What was added up for all spans goes to the whole gradients.
  void hand_over() {
    const auto add_row = [&](const A* from, void* all, int64_t row) {
      A* to = static_cast<A*>(all) + row * call.columns + left;
      for (int64_t c = 0; c < width; ++c) to[c] += from[c];
    };
    if (grads.bias) add_row(bias.sum(0), grads.bias, 0);
    for (int64_t row = 0; row < call.table_rows; ++row) add_row(table.sum(row), grads.table, row);
  }

  template <int N>
  void back_attention(int64_t group, int64_t place, int64_t head, int64_t c, int count) const {
    const int used = N == 1 ? count : lanes<A>;
    const int64_t start = call.groups.start[group], heads = call.heads;
    const int64_t stride = call.projected_stride, grad_stride = call.blocks * call.columns;
    const auto* own = factors.spans_of(call.groups, group);
    const auto* pool = factors.pools_of(call.groups, group) + head;
    const auto* step = factors.steps_of(group) + head;
    const A* const rows = way_there.block(kAttention, head) + left + c;
    A* const to = grad_block(kAttention, head) + c;
    V* const grad_scores = scores.get() + head;
    const A* const from = gradients.get() + place * kProjectedTile + c;
    const V* const own_dots = dots.get() + place * heads + head;
    V gathered[N] = {};
    V dot{};
    int64_t i = call.groups.first[group + 1] - call.groups.first[group] - 1;
    if (pool[i * heads].inverse_total == 0) return;  // no span has anything to weigh
    for (int64_t t = own[i].end - 1; t >= start; --t) {
      for (; i >= 0 && own[i].end - 1 == t; --i) {
        if (pool[i * heads].inverse_total == 0) continue;
        const A release = pool[i * heads].release, inverse_total = pool[i * heads].inverse_total;
        for (int v = 0; v < N; ++v) {
          gathered[v] = gathered[v] * release + load(from + i * kProjectedTile + v * lanes<A>) * inverse_total;
        }
        if (c == 0) dot = dot * release + own_dots[i * heads] * inverse_total;  // of the whole tile
      }
      const A weight = step[(t - start) * heads].gathered;
      V product{}, weighted[N];
      for (int v = 0; v < N; ++v) {
        weighted[v] = gathered[v] * weight;
        product += gathered[v] * load_up_to(rows + t * stride + v * lanes<A>, used);
      }
      add<N>(to + t * grad_stride, weighted, used);
      grad_scores[t * heads] += weight * (product - dot);
    }
  }

  // The groups of the factors; the spans without tokens where there is none.
  void run() {
    if (factors.first == factors.last) return run_empty();
    const int64_t count = call.tokens * call.heads;
    for (int64_t i = 0; i < count; ++i) scores[i] = V{};
    const SpanGroups& groups = call.groups;
    for (int64_t group = factors.first, stop; group < factors.last; group = stop) {
      const int64_t position = groups.first[group], document = loss.document(groups.start[group]);
      for (stop = group + 1; stop < factors.last; ++stop) {
        if (groups.first[stop + 1] - position > kBatch || loss.document(groups.start[stop]) != document) break;
      }
      // In a tile each row is a piece of its own somewhere in memory. Here, as GCC sees no effect in a function that
      // only prefetches.
      for (int64_t g = stop, end = std::min(2 * stop - group, factors.last); g < end; ++g) {
        const A* reads[kNextRows];
        A* writes[kNextRows];
        for (int64_t k = next_rows(g, reads, writes); k-- > 0;) {
          __builtin_prefetch(reads[k]);
          __builtin_prefetch(reads[k] + kProjectedTile - 1);
          __builtin_prefetch(writes[k], 1);
          __builtin_prefetch(writes[k] + kProjectedTile - 1, 1);
        }
      }
      const auto each = [&](const auto& f) {
        for (int64_t g = group; g < stop; ++g) {
          each_block<A>(width, [&](auto n, int64_t c, int used) { f(n, g, groups.first[g] - position, c, used); });
        }
      };
      each([&](auto n, int64_t g, int64_t place, int64_t c, int used) {
        call.heads == 1 ? there<n, true>(g, place, c, used) : there<n, false>(g, place, c, used);
      });
      const int64_t spans = groups.first[stop] - position;
      const auto* own = factors.spans_of(groups, group);
      loss.gradients(document, position, spans, [&](int64_t i) { return own[i].row; }, gradients.get());
      multiply_heads(spans);
      each([&](auto n, int64_t g, int64_t place, int64_t c, int used) {
        back<n>(g, place, c, used);
        for (int64_t k = 0; k < call.heads; ++k) back_attention<n>(g, place, k, c, used);
      });
    }
    A* const grad_scores = static_cast<A*>(grads.scores) + tile * count;
    for (int64_t i = 0; i < count; ++i) grad_scores[i] += sum_of<A>(scores[i]);
    hand_over();
  }

  void run_empty() {
    const int64_t position = call.groups.first[call.groups.count];
    for (int64_t first = 0; first < call.empties; first += kBatch) {
      const int64_t spans = std::min(kBatch, call.empties - first);
      A* const rows = gradients.get();
      each_block<A>(width, [&](auto n, int64_t c, int count) {
        way_there.template empty<n>(left + c, count, first, spans, [&](int64_t i, const V(&pre)[n]) {
          for (int v = 0; v < n; ++v) store(rows + i * kProjectedTile + c + v * lanes<A>, pre[v]);
        });
      });
      const int64_t* own = call.empty + first;
      loss.gradients(kNoDocument, position + first, spans, [&](int64_t i) { return own[i]; }, rows);
      each_block<A>(width, [&](auto n, int64_t c, int count) {
        V sums[n] = {};
        for (int64_t i = 0; i < spans; ++i) {
          for (int v = 0; v < n; ++v) sums[v] += load(rows + i * kProjectedTile + c + v * lanes<A>);
        }
        if (grads.bias) add<n>(bias.next(0) + c, sums, n == 1 ? count : lanes<A>);
      });
    }
    hand_over();
  }
};

}  // namespace SPANBERT_ISA
}  // namespace spanbert
