// The backward on a CPU: cpu_kernels.cpp says how it works. Only for kernel files.
#pragma once

#include <memory>

#include "common/sums.h"
#include "span_pool/cpu_softmax.h"
#include "span_pool/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

constexpr int64_t kAhead = 2;  // spans

template <class S>
struct Backward {
  using A = typename Accumulator<S>::type;
  using V = Vector<A>;

  const SpanPoolCall& call;
  const SpanPoolGrads& grads;
  const int64_t tile, left, width, pad;  // the tile's columns are left .. left + width - 1
  A* const grad_hidden;
  // Rows of the tile, each `pad` long.
  std::unique_ptr<A[]> linear{new A[pad]}, linear_before{new A[pad]};
  LongSums<A> starts{1, pad}, ends{1, pad};  // of long groups
  std::unique_ptr<A[]> weighted{call.has(kAttention) ? new A[pad] : nullptr};
  std::unique_ptr<A[]> dots;  // of each span of a group: its gradient times what it pooled, slice by slice
  std::unique_ptr<A[]> maxima{call.has(kMax) ? new A[pad] : nullptr};
  std::unique_ptr<A[]> gathered{call.has(kMax) ? new A[pad] : nullptr};
  typedef int8_t Bytes __attribute__((vector_size(lanes<A>)));
  std::unique_ptr<int8_t[]> changed{call.has(kMax) ? new int8_t[call.max_width * pad] : nullptr};
  std::unique_ptr<RunningSoftmax<A>[]> softmax{call.has(kAttention) ? new RunningSoftmax<A>[call.max_width] : nullptr};

  Backward(const SpanPoolCall& call, const SpanPoolGrads& grads, int64_t tile)
      : call(call),
        grads(grads),
        tile(tile),
        left(tile * grads.tile_columns),
        width(call.columns - left < grads.tile_columns ? call.columns - left : grads.tile_columns),
        pad(padded<A>(grads.tile_columns)),
        grad_hidden(static_cast<A*>(grads.hidden) + left) {}

  const S* token(int64_t t) const { return static_cast<const S*>(call.hidden) + t * call.hidden_stride + left; }
  A* grad_token(int64_t t) const { return grad_hidden + t * call.columns; }
  const S* grad_row(int64_t row, int64_t offset) const {
    return static_cast<const S*>(grads.output) + row * grads.output_stride + offset + left;
  }

  // A tile's share of a row is a few cache lines, and the next row is pages away: too far for the processor to foresee.
  void prefetch(const SpanGroups& groups, int64_t i, int64_t offset) const {
    if (i < 0) return;
    const char* row = reinterpret_cast<const char*>(grad_row(groups.row(i), offset));
    for (int64_t byte = 0; byte < width * static_cast<int64_t>(sizeof(S)); byte += 64) __builtin_prefetch(row + byte);
  }

  // f(column, lanes in use) for every vector of the tile.
  template <class F>
  void each(const F& f) const {
    between(0, width, f);
  }
  template <class F>
  static void between(int64_t begin, int64_t end, const F& f) {
    for (int64_t c = begin; c < end; c += lanes<A>) f(c, static_cast<int>(end - c < lanes<A> ? end - c : lanes<A>));
  }
  // f(slice, first column, end) for every slice of the tile.
  template <class F>
  void each_slice(const F& f) const {
    for (int64_t slice = 0, begin = 0; begin < width; ++slice, begin += kSliceColumns) {
      f(slice, begin, width - begin < kSliceColumns ? width : begin + kSliceColumns);
    }
  }

  template <class From>
  void add(A* to, const From* grad) const {
    each([&](int64_t c, int n) { store_up_to(to + c, load_up_to(to + c, n) + load_up_to(grad + c, n), n); });
  }
  void clear(A* row) const {
    each([&](int64_t c, int) { store(row + c, V{}); });
  }
  void hand_over(LongSums<A>& sums, int64_t t) const {
    add(grad_token(t), sums.sum(0));
    sums.clear(0);
  }

  // Sum, mean and the ends: from the widest span down, `linear` holds the suffix sum, in a long group that of the last
  // spans, and `linear_before` that of those before.
  void walk_linear(int64_t group) {
    const SpanGroups& groups = call.groups;
    const int64_t start = groups.start[group];
    const bool inner = call.has(kMean) || call.has(kSum);
    if (inner) clear(linear.get());
    int64_t i = groups.first[group + 1] - 1;
    const int64_t begin = groups.first[group], widest = i;
    const bool many = widest - begin >= kSumBlock;
    if (many) clear(linear_before.get());
    for (int64_t t = groups.end(group, i) - 1; i >= begin || (inner && t >= start); --t) {
      const bool repeated = i - kSumBlock >= begin && groups.end(group, i - kSumBlock) - 1 == t;
      for (; i >= begin && groups.end(group, i) - 1 == t; --i) {
        const int64_t row = groups.row(i);
        for (const Part part : {kStart, kEnd, kSum, kMean}) {
          if (call.has(part)) prefetch(groups, i - kAhead, call.offset[part]);
        }
        if (call.has(kStart)) add(many ? starts.next(0) : grad_token(start), grad_row(row, call.offset[kStart]));
        if (call.has(kEnd)) add(repeated ? ends.next(0) : grad_token(t), grad_row(row, call.offset[kEnd]));
        if (inner && i < widest && (widest - i) % kSumBlock == 0) {
          add(linear_before.get(), linear.get());
          clear(linear.get());
        }
        if (call.has(kSum)) add(linear.get(), grad_row(row, call.offset[kSum]));
        if (call.has(kMean)) {
          const S* grad = grad_row(row, call.offset[kMean]);
          const A part_of_width = 1 / static_cast<A>(t + 1 - start);
          each([&](int64_t c, int n) {
            store(linear.get() + c, load(linear.get() + c) + load_up_to(grad + c, n) * part_of_width);
          });
        }
      }
      if (repeated && call.has(kEnd)) hand_over(ends, t);
      if (inner) {
        add(grad_token(t), linear.get());
        if (many) add(grad_token(t), linear_before.get());
      } else if (i >= begin) {
        t = groups.end(group, i);  // nothing to do between two ends
      }
    }
    if (many && call.has(kStart)) hand_over(starts, start);
  }

  // The forward of one head again, unrounded: the softmax up to every token, and the `dots`.
  void weigh(int64_t group, int64_t k, int64_t offset) {
    const SpanGroups& groups = call.groups;
    const int64_t start = groups.start[group], begin = groups.first[group], next_group = groups.first[group + 1];
    const int64_t stop = groups.end(group, next_group - 1);
    A* const state = weighted.get();
    each([&](int64_t c, int) { store(state + c, V{}); });
    RunningSoftmax<A> running;
    int64_t i = begin;
    for (int64_t t = start; t < stop; ++t) {
      A rescale, weight;
      running.add(static_cast<const A*>(call.scores)[t * call.heads + k], &rescale, &weight);
      softmax[t - start] = running;
      const S* x = token(t);
      each([&](int64_t c, int n) { store(state + c, load(state + c) * rescale + weight * load_up_to(x + c, n)); });
      for (; i < next_group && groups.end(group, i) - 1 == t; ++i) {
        if (i + kAhead < next_group) prefetch(groups, i + kAhead, offset);
        const S* grad = grad_row(groups.row(i), offset);
        each_slice([&](int64_t slice, int64_t low, int64_t high) {
          V dot{};
          between(low, high, [&](int64_t c, int n) { dot += load_up_to(grad + c, n) * load(state + c); });
          dots[(i - begin) * kSlicesPerTile + slice] = sum_of<A>(dot) * running.scale();
        });
      }
    }
  }

  void walk_attention(int64_t group) {
    const SpanGroups& groups = call.groups;
    const int64_t start = groups.start[group], begin = groups.first[group], heads = call.heads;
    const int64_t stop = groups.end(group, groups.first[group + 1] - 1);
    const A* scores = static_cast<const A*>(call.scores);
    A* grad_scores = static_cast<A*>(grads.scores) + left / kSliceColumns * call.tokens * heads;
    for (int64_t k = 0; k < heads; ++k) {
      const int64_t offset = call.offset[kAttention] + k * call.columns;
      weigh(group, k, offset);
      if (softmax[stop - 1 - start].scale() == 0) continue;  // no span has anything to weigh
      A* sums = linear.get();
      each([&](int64_t c, int) { store(sums + c, V{}); });
      A pivot = softmax[stop - 1 - start].maximum, gathered_dots[kSlicesPerTile] = {};
      int64_t i = groups.first[group + 1] - 1;
      for (int64_t t = stop - 1; t >= start; --t) {
        for (; i >= begin && groups.end(group, i) - 1 == t; --i) {
          const A narrower = softmax[t - start].maximum, scale = softmax[t - start].scale();
          if (scale == 0) continue;
          const A rescale = narrower == pivot ? A(1) : std::exp(narrower - pivot);
          pivot = narrower;
          const S* grad = grad_row(groups.row(i), offset);
          const A* const own_dots = dots.get() + (i - begin) * kSlicesPerTile;
          each_slice([&](int64_t slice, int64_t low, int64_t high) {
            between(low, high, [&](int64_t c, int n) {
              store(sums + c, load(sums + c) * rescale + load_up_to(grad + c, n) * scale);
            });
            gathered_dots[slice] = gathered_dots[slice] * rescale + own_dots[slice] * scale;
          });
        }
        const A weight = std::exp(scores[t * heads + k] - pivot);
        A* to = grad_token(t);
        const S* x = token(t);
        each_slice([&](int64_t slice, int64_t low, int64_t high) {
          V dot{};
          between(low, high, [&](int64_t c, int n) {
            const V sum = load(sums + c);
            store_up_to(to + c, load_up_to(to + c, n) + weight * sum, n);
            dot += sum * load_up_to(x + c, n);
          });
          grad_scores[(slice * call.tokens + t) * heads + k] += weight * (sum_of<A>(dot) - gathered_dots[slice]);
        });
      }
    }
  }

  // As a span grows by token t, some columns get t as their maximum: `changed` says which. From the widest span down
  // the gradients gather until the token that their maximum came with.
  void walk_max(int64_t group) {
    const SpanGroups& groups = call.groups;
    const int64_t start = groups.start[group], begin = groups.first[group];
    int64_t i = groups.first[group + 1] - 1;
    const int64_t stop = groups.end(group, i);
    each([&](int64_t c, int n) {
      store(maxima.get() + c, load_up_to(token(start) + c, n));
      store(gathered.get() + c, V{});
    });
    for (int64_t t = start + 1; t < stop; ++t) {
      const S* x = token(t);
      int8_t* const row = changed.get() + (t - start) * pad;
      each([&](int64_t c, int n) {
        const V value = load_up_to(x + c, n), before = load(maxima.get() + c);
        const auto replaced = ((value > before) | (value != value)) & (before == before);
        const Bytes bytes = __builtin_convertvector(replaced, Bytes);
        std::memcpy(row + c, &bytes, sizeof(bytes));
        store(maxima.get() + c, replaced ? value : before);
      });
    }
    for (int64_t t = stop - 1; t >= start; --t) {
      for (; i >= begin && groups.end(group, i) - 1 == t; --i) {
        if (i - kAhead >= begin) prefetch(groups, i - kAhead, call.offset[kMax]);
        const S* grad = grad_row(groups.row(i), call.offset[kMax]);
        each([&](int64_t c, int n) { store(gathered.get() + c, load(gathered.get() + c) + load_up_to(grad + c, n)); });
      }
      A* const to = grad_token(t);
      const int8_t* const row = changed.get() + (t - start) * pad;
      each([&](int64_t c, int n) {
        const V sum = load(gathered.get() + c);
        Bytes bytes;
        std::memcpy(&bytes, row + c, sizeof(bytes));
        const auto own =
            t == start ? typename Simd<A>::Mask{} == 0 : __builtin_convertvector(bytes, typename Simd<A>::Mask) != 0;
        store_up_to(to + c, load_up_to(to + c, n) + (own ? sum : V{}), n);
        store(gathered.get() + c, own ? V{} : sum);
      });
    }
  }

  void walk_table(A* grad_table) const {
    const SpanGroups& groups = call.groups;
    LongSums<A> sums(call.table_rows, call.table_columns);
    for (int64_t group = 0; group < groups.count; ++group) {
      for (int64_t i = groups.first[group]; i < groups.first[group + 1]; ++i) {
        const int64_t row = groups.row(i);
        const S* grad = static_cast<const S*>(grads.output) + row * grads.output_stride + call.offset[kWidth];
        A* to = sums.next(call.table_row(row, groups.end(group, i) - groups.start[group]));
        for (int64_t c = 0; c < call.table_columns; ++c) to[c] += to_accumulator(grad[c]);
      }
    }
    for (int64_t row = 0; row < call.table_rows; ++row) {
      std::copy_n(sums.sum(row), call.table_columns, grad_table + row * call.table_columns);
    }
  }

  void run(int64_t first, int64_t last) {
    const bool any_linear = call.has(kStart) || call.has(kEnd) || call.has(kMean) || call.has(kSum);
    if (call.has(kAttention)) {
      int64_t most = 0;  // spans of a group
      for (int64_t group = first; group < last; ++group) {
        const int64_t own = call.groups.first[group + 1] - call.groups.first[group];
        most = most < own ? own : most;
      }
      dots.reset(new A[most * kSlicesPerTile]);
    }
    for (int64_t group = first; group < last; ++group) {
      if (any_linear) walk_linear(group);
      if (call.has(kAttention)) walk_attention(group);
      if (call.has(kMax)) walk_max(group);
    }
  }
};

}  // namespace
}  // namespace SPANBERT_ISA
}  // namespace spanbert
