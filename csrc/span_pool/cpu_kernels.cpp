// Span pooling on a CPU.
//
// Spans come sorted by first token, then by width. Spans that start together are nested, so each continues the running
// sum, maximum and online softmax (Milakov and Gimelshein 2018) of the one before: a token is read once per group
// instead of once per span, and all spans up to a width cost O(1) a span. The order of the additions is that of the
// span's own tokens, so a result does not depend on which other spans are there.
//
// The backward walks a group from its widest span down. A token receives the sum of the gradients of the spans that
// reach it, a suffix sum that grows as the walk goes left:
//   d hidden[t] = sum of g_n over spans n with end_n > t                    (sum; mean with 1/width)
//   d hidden[t] = sum of exp(s_t - m_n) / z_n g_n = exp(s_t - m) A, A = sum of exp(m - m_n) / z_n g_n      (attention)
//   d s[t]      = exp(s_t - m) (A . x_t - B),                       B = sum of exp(m - m_n) / z_n (g_n . out_n)
// where m_n and z_n are a softmax's maximum and sum, and m is the maximum of the narrowest span passed so far. Wider
// spans have larger ones, so no factor exceeds 1; log-sum-exps would do, but their rounding would be in every weight.
// The maximum's gradient goes to the first maximal token: the forward is run again and what has gathered for a token is
// handed over when a larger one replaces it. Every column tile is one task, so no two tasks write to the same place.

#include <memory>

#include "common/vector.h"
#include "span_pool/kernels.h"

namespace spanbert {
namespace SPANBERT_LEVEL {
namespace {

constexpr int kBlock = 4;  // vectors of one column block: independent chains that hide the latencies

template <class A>
int64_t padded(int64_t columns) {
  return (columns + lanes<A> - 1) / lanes<A> * lanes<A>;
}

// Online softmax over the tokens of a group, one head: for each token the factor on what was accumulated before it and
// its own weight, both relative to the running maximum.
template <class A>
struct RunningSoftmax {
  A maximum = -INFINITY, total = 0;

  void add(A score, A* rescale, A* weight) {
    if (score > maximum || score != score) {
      *rescale = maximum == -INFINITY ? A(0) : std::exp(maximum - score);
      *weight = 1 + (score - score);  // NaN for an infinite score, as softmax has it
      maximum = score;
    } else {
      *rescale = 1;
      *weight = score == -INFINITY ? A(0) : std::exp(score - maximum);
    }
    total = total * *rescale + *weight;
  }
};

template <class S>
struct Forward {
  using A = typename Accumulator<S>::type;
  using V = Vector<A>;

  const SpanPoolCall& call;
  int64_t pad = padded<A>(call.columns);
  std::unique_ptr<A[]> sums{call.has(kMean) || call.has(kSum) ? new A[pad] : nullptr};
  std::unique_ptr<A[]> maxima{call.has(kMax) ? new A[pad] : nullptr};
  std::unique_ptr<A[]> weighted{call.has(kAttention) ? new A[pad * call.heads] : nullptr};
  std::unique_ptr<RunningSoftmax<A>[]> softmax{call.has(kAttention) ? new RunningSoftmax<A>[call.heads] : nullptr};
  std::unique_ptr<A[]> factors{call.has(kAttention) ? new A[2 * call.heads * call.max_width] : nullptr};

  explicit Forward(const SpanPoolCall& call) : call(call) {}

  const S* token(int64_t t) const { return static_cast<const S*>(call.hidden) + t * call.hidden_stride; }

  // Columns of the block at c: adds tokens from .. end - 1 to the running values (afresh with `fresh`) and writes the
  // parts of a span of `width` tokens.
  template <int N>
  void block(int64_t c, int count, int64_t from, int64_t end, bool fresh, A width, S* out) {
    const int last = N == 1 ? count : lanes<A>;
    const auto column = [&](int v) { return c + v * lanes<A>; };
    V state[N];
    if (sums) {
      for (int v = 0; v < N; ++v) state[v] = fresh ? V{} : load(sums.get() + column(v));
      for (int64_t t = from; t < end; ++t) {
        for (int v = 0; v < N; ++v) state[v] += load_up_to(token(t) + column(v), last);
      }
      for (int v = 0; v < N; ++v) {
        store(sums.get() + column(v), state[v]);
        if (call.has(kSum)) store_up_to(out + call.offset[kSum] + column(v), state[v], last);
        if (call.has(kMean)) store_up_to(out + call.offset[kMean] + column(v), state[v] / width, last);
      }
    }
    if (maxima) {
      for (int v = 0; v < N; ++v) state[v] = fresh ? broadcast<A>(-INFINITY) : load(maxima.get() + column(v));
      for (int64_t t = from; t < end; ++t) {
        for (int v = 0; v < N; ++v) state[v] = larger(state[v], load_up_to(token(t) + column(v), last));
      }
      for (int v = 0; v < N; ++v) {
        store(maxima.get() + column(v), state[v]);
        store_up_to(out + call.offset[kMax] + column(v), state[v], last);
      }
    }
    for (int64_t k = 0; weighted && k < call.heads; ++k) {
      A* memory = weighted.get() + k * pad;
      const A* factor = factors.get() + 2 * k * call.max_width;
      for (int v = 0; v < N; ++v) state[v] = fresh ? V{} : load(memory + column(v));
      for (int64_t t = from; t < end; ++t, factor += 2) {
        for (int v = 0; v < N; ++v) {
          state[v] = state[v] * factor[0] + factor[1] * load_up_to(token(t) + column(v), last);
        }
      }
      const A total = softmax[k].total;
      for (int v = 0; v < N; ++v) {
        store(memory + column(v), state[v]);
        store_up_to(out + call.offset[kAttention] + k * call.columns + column(v), state[v] / total, last);
      }
    }
  }

  void span(int64_t start, int64_t from, int64_t end, int64_t row) {
    const bool fresh = from == start;
    S* out = static_cast<S*>(call.output) + row * call.output_columns;
    for (int64_t k = 0; softmax && k < call.heads; ++k) {
      if (fresh) softmax[k] = {};
      A* factor = factors.get() + 2 * k * call.max_width;
      for (int64_t t = from; t < end; ++t, factor += 2) {
        softmax[k].add(static_cast<const A*>(call.scores)[t * call.heads + k], factor, factor + 1);
      }
    }
    if (sums || maxima || softmax) {
      int64_t c = 0;
      const A width = static_cast<A>(end - start);
      for (; c + kBlock * lanes<A> <= call.columns; c += kBlock * lanes<A>) {
        block<kBlock>(c, lanes<A>, from, end, fresh, width, out);
      }
      for (; c < call.columns; c += lanes<A>) {
        const int count = static_cast<int>(call.columns - c < lanes<A> ? call.columns - c : lanes<A>);
        block<1>(c, count, from, end, fresh, width, out);
      }
    }
    if (call.has(kStart)) std::memcpy(out + call.offset[kStart], token(start), call.columns * sizeof(S));
    if (call.has(kEnd)) std::memcpy(out + call.offset[kEnd], token(end - 1), call.columns * sizeof(S));
    if (call.has(kWidth)) {
      const S* entry = static_cast<const S*>(call.table) + call.table_row(row, end - start) * call.table_columns;
      std::memcpy(out + call.offset[kWidth], entry, call.table_columns * sizeof(S));
    }
  }

  void run(int64_t first, int64_t last) {
    const SpanGroups& groups = call.groups;
    int64_t low = 0, high = groups.count;  // the group that holds span `first`
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (groups.first[middle] <= first ? low : high) = middle;
    }
    int64_t group = low, reached = groups.start[group];
    for (int64_t i = first; i < last; ++i) {
      if (i == groups.first[group + 1]) reached = groups.start[++group];
      const int64_t end = groups.end(group, i);
      span(groups.start[group], reached, end, groups.row(i));
      reached = end;
    }
  }
};

template <class S>
struct Backward {
  using A = typename Accumulator<S>::type;
  using V = Vector<A>;

  const SpanPoolCall& call;
  const SpanPoolGrads& grads;
  const int64_t tile, left, width, pad;  // the tile's columns are left .. left + width - 1
  A* const grad_hidden;
  // Rows of the tile, each `pad` long.
  std::unique_ptr<A[]> linear{new A[pad]};
  std::unique_ptr<A[]> pooled{call.has(kAttention) ? new A[pad * call.heads] : nullptr};
  std::unique_ptr<A[]> maxima{call.has(kMax) ? new A[pad] : nullptr};
  std::unique_ptr<A[]> gathered{call.has(kMax) ? new A[pad] : nullptr};
  std::unique_ptr<int64_t[]> winner{call.has(kMax) ? new int64_t[pad] : nullptr};
  std::unique_ptr<RunningSoftmax<A>[]> softmax{call.has(kAttention) ? new RunningSoftmax<A>[call.max_width] : nullptr};

  Backward(const SpanPoolCall& call, const SpanPoolGrads& grads, int64_t tile)
      : call(call),
        grads(grads),
        tile(tile),
        left(tile * kTileColumns),
        width(call.columns - left < kTileColumns ? call.columns - left : kTileColumns),
        pad(padded<A>(kTileColumns)),
        grad_hidden(static_cast<A*>(grads.hidden) + left) {}

  const S* token(int64_t t) const { return static_cast<const S*>(call.hidden) + t * call.hidden_stride + left; }
  A* grad_token(int64_t t) const { return grad_hidden + t * call.columns; }
  const S* grad_row(int64_t row, int64_t offset) const {
    return static_cast<const S*>(grads.output) + row * grads.output_stride + offset + left;
  }

  // f(column, lanes in use) for every vector of the tile.
  template <class F>
  void each(const F& f) const {
    for (int64_t c = 0; c < width; c += lanes<A>) f(c, static_cast<int>(width - c < lanes<A> ? width - c : lanes<A>));
  }

  void add_to_token(int64_t t, const S* grad) const {
    A* to = grad_token(t);
    each([&](int64_t c, int n) { store_up_to(to + c, load_up_to(to + c, n) + load_up_to(grad + c, n), n); });
  }

  // Sum, mean and the ends: from the widest span down, `linear` holds the suffix sum.
  void walk_linear(int64_t group) {
    const SpanGroups& groups = call.groups;
    const int64_t start = groups.start[group];
    const bool inner = call.has(kMean) || call.has(kSum);
    if (inner) each([&](int64_t c, int) { store(linear.get() + c, V{}); });
    int64_t i = groups.first[group + 1] - 1;
    const int64_t begin = groups.first[group];
    for (int64_t t = groups.end(group, i) - 1; i >= begin || (inner && t >= start); --t) {
      for (; i >= begin && groups.end(group, i) - 1 == t; --i) {
        const int64_t row = groups.row(i);
        if (call.has(kStart)) add_to_token(start, grad_row(row, call.offset[kStart]));
        if (call.has(kEnd)) add_to_token(t, grad_row(row, call.offset[kEnd]));
        if (call.has(kSum)) {
          const S* grad = grad_row(row, call.offset[kSum]);
          each([&](int64_t c, int n) { store(linear.get() + c, load(linear.get() + c) + load_up_to(grad + c, n)); });
        }
        if (call.has(kMean)) {
          const S* grad = grad_row(row, call.offset[kMean]);
          const A tokens = static_cast<A>(t + 1 - start);
          each([&](int64_t c, int n) {
            store(linear.get() + c, load(linear.get() + c) + load_up_to(grad + c, n) / tokens);
          });
        }
      }
      if (inner) {
        A* to = grad_token(t);
        each([&](int64_t c, int n) { store_up_to(to + c, load_up_to(to + c, n) + load(linear.get() + c), n); });
      } else if (i >= begin) {
        t = groups.end(group, i);  // nothing to do between two ends
      }
    }
  }

  void walk_attention(int64_t group) {
    const SpanGroups& groups = call.groups;
    const int64_t start = groups.start[group], begin = groups.first[group], heads = call.heads;
    const int64_t stop = groups.end(group, groups.first[group + 1] - 1);
    const A* scores = static_cast<const A*>(call.scores);
    A* grad_scores = static_cast<A*>(grads.scores) + tile * call.tokens * heads;
    for (int64_t k = 0; k < heads; ++k) {
      RunningSoftmax<A> running;
      for (int64_t t = start; t < stop; ++t) {
        A rescale, weight;
        running.add(scores[t * heads + k], &rescale, &weight);
        softmax[t - start] = running;
      }
      A* sums = pooled.get() + k * pad;
      each([&](int64_t c, int) { store(sums + c, V{}); });
      A pivot = running.maximum, dots = 0;
      int64_t i = groups.first[group + 1] - 1;
      for (int64_t t = stop - 1; t >= start; --t) {
        for (; i >= begin && groups.end(group, i) - 1 == t; --i) {
          const int64_t row = groups.row(i), offset = call.offset[kAttention] + k * call.columns;
          const auto [narrower, total] = softmax[t - start];
          const A rescale = narrower == pivot ? A(1) : std::exp(narrower - pivot);
          pivot = narrower;
          const S* grad = grad_row(row, offset);
          const S* out = static_cast<const S*>(call.output) + row * call.output_columns + offset + left;
          V dot{};
          each([&](int64_t c, int n) {
            const V g = load_up_to(grad + c, n);
            store(sums + c, load(sums + c) * rescale + g / total);
            dot += g * load_up_to(out + c, n);
          });
          dots = dots * rescale + sum_of<A>(dot) / total;
        }
        const A weight = std::exp(scores[t * heads + k] - pivot);
        A* to = grad_token(t);
        const S* x = token(t);
        V dot{};
        each([&](int64_t c, int n) {
          const V sum = load(sums + c);
          store_up_to(to + c, load_up_to(to + c, n) + weight * sum, n);
          dot += sum * load_up_to(x + c, n);
        });
        grad_scores[t * heads + k] += weight * (sum_of<A>(dot) - dots);
      }
    }
  }

  void walk_max(int64_t group) {
    const SpanGroups& groups = call.groups;
    const int64_t start = groups.start[group];
    each([&](int64_t c, int) {
      store(maxima.get() + c, broadcast<A>(-INFINITY));
      store(gathered.get() + c, V{});
    });
    for (int64_t c = 0; c < width; ++c) winner[c] = start;
    int64_t t = start;
    for (int64_t i = groups.first[group]; i < groups.first[group + 1]; ++i) {
      for (const int64_t end = groups.end(group, i); t < end; ++t) {
        const S* x = token(t);
        each([&](int64_t c, int n) {
          const V value = load_up_to(x + c, n), before = load(maxima.get() + c);
          const auto replaced = ((value > before) | (value != value)) & (before == before);
          typename Simd<A>::Mask any = replaced;
          bool some = false;
          for (int v = 0; v < lanes<A>; ++v) some |= any[v] != 0;
          if (!some) return;
          for (int v = 0; v < n; ++v) {
            if (!any[v]) continue;
            grad_token(winner[c + v])[c + v] += gathered[c + v];
            gathered[c + v] = 0;
            winner[c + v] = t;
          }
          store(maxima.get() + c, replaced ? value : before);
        });
      }
      const S* grad = grad_row(groups.row(i), call.offset[kMax]);
      each([&](int64_t c, int n) { store(gathered.get() + c, load(gathered.get() + c) + load_up_to(grad + c, n)); });
    }
    for (int64_t c = 0; c < width; ++c) grad_token(winner[c])[c] += gathered[c];
  }

  void walk_table(A* grad_table) const {
    const SpanGroups& groups = call.groups;
    for (int64_t group = 0; group < groups.count; ++group) {
      for (int64_t i = groups.first[group]; i < groups.first[group + 1]; ++i) {
        const int64_t row = groups.row(i);
        const S* grad = static_cast<const S*>(grads.output) + row * grads.output_stride + call.offset[kWidth];
        A* to = grad_table + call.table_row(row, groups.end(group, i) - groups.start[group]) * call.table_columns;
        for (int64_t c = 0; c < call.table_columns; ++c) to[c] += to_accumulator(grad[c]);
      }
    }
  }

  void run(int64_t first, int64_t last) {
    const bool any_linear = call.has(kStart) || call.has(kEnd) || call.has(kMean) || call.has(kSum);
    for (int64_t group = first; group < last; ++group) {
      if (any_linear) walk_linear(group);
      if (call.has(kAttention)) walk_attention(group);
      if (call.has(kMax)) walk_max(group);
    }
  }
};

}  // namespace

void span_pool_forward(const SpanPoolCall& call, int64_t first, int64_t last) {
  with_storage(call.storage, [&](auto s) { Forward<decltype(s)>(call).run(first, last); });
}

void span_pool_backward(const SpanPoolCall& call, const SpanPoolGrads& grads, int64_t tile, int64_t first,
                        int64_t last) {
  with_storage(call.storage, [&](auto s) { Backward<decltype(s)>(call, grads, tile).run(first, last); });
}

void span_pool_table_backward(const SpanPoolCall& call, const SpanPoolGrads& grads) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    Backward<S>(call, grads, 0).walk_table(static_cast<typename Accumulator<S>::type*>(grads.table));
  });
}

}  // namespace SPANBERT_LEVEL
}  // namespace spanbert
