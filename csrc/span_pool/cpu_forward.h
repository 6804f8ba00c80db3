// The forward on a CPU: cpu_kernels.cpp says how it works. Only for kernel files.
#pragma once

#include <memory>

#include "common/vector.h"
#include "span_pool/cpu_softmax.h"
#include "span_pool/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

constexpr int kBlock = 4;  // vectors of one column block: independent chains that hide the latencies

// How sums and maxima are put together.
template <class A>
struct Addition {
  static constexpr Part whole = kSum, scaled = kMean;
  static Vector<A> join(Vector<A> first, Vector<A> second) { return first + second; }
};
template <class A>
struct Maximum {
  static constexpr Part whole = kMax, scaled = kParts;
  static Vector<A> join(Vector<A> first, Vector<A> second) { return larger(first, second); }
};

constexpr int64_t kTokenBlock = 16;
constexpr int64_t kWindow = 16 * kTokenBlock;  // tokens
constexpr int64_t kWindowColumns = 128;        // both buffers of a window stay in a core's own cache

template <class S>
struct Forward {
  using A = typename Accumulator<S>::type;
  using V = Vector<A>;

  const SpanPoolCall& call;
  int64_t pad = padded<A>(call.columns);
  const bool nested = call.groups.ends == nullptr;  // every group's widths are 1, 2, 3, ...
  const bool any_sum = call.has(kMean) || call.has(kSum);
  std::unique_ptr<A[]> sums{any_sum && nested ? new A[pad] : nullptr};
  std::unique_ptr<A[]> maxima{call.has(kMax) && nested ? new A[pad] : nullptr};
  // Running values of each token block of a window, from its first token on and up to its last: [kWindow, columns].
  std::unique_ptr<A[]> from_first{!nested && (any_sum || call.has(kMax)) ? new A[kWindow * kWindowColumns] : nullptr};
  std::unique_ptr<A[]> to_last{from_first ? new A[kWindow * kWindowColumns] : nullptr};
  std::unique_ptr<A[]> weighted{call.has(kAttention) ? new A[pad * call.heads] : nullptr};
  std::unique_ptr<RunningSoftmax<A>[]> softmax{call.has(kAttention) ? new RunningSoftmax<A>[call.heads] : nullptr};
  std::unique_ptr<A[]> factors{call.has(kAttention) ? new A[2 * call.heads * call.max_width] : nullptr};

  const bool streams = can_stream();

  explicit Forward(const SpanPoolCall& call) : call(call) {}

  bool can_stream() const {
    if (kStreamBytes == 0 || !call.output_exceeds_caches) return false;
    uint64_t places = reinterpret_cast<uintptr_t>(call.output) | call.output_columns * sizeof(S);
    for (const int64_t offset : call.offset) places |= offset < 0 ? 0 : offset * sizeof(S);
    return places % (kStreamBytes ? kStreamBytes : 1) == 0;
  }

  void write(S* to, V x, int count) const {
    if (streams && count == lanes<A>) return stream(to, x);
    store_up_to(to, x, count);
  }

  void copy(S* to, const S* from, int64_t columns) const {
    if (columns == 0) return;  // and perhaps no memory either
    if (!streams) {
      std::memcpy(to, from, columns * sizeof(S));
      return;
    }
    int64_t c = 0;
    for (; c + lanes<A> <= columns; c += lanes<A>) stream_bits(to + c, from + c, lanes<A> * sizeof(S));
    std::memcpy(to + c, from + c, (columns - c) * sizeof(S));
  }

  const S* token(int64_t t) const { return static_cast<const S*>(call.hidden) + t * call.hidden_stride; }

  // Columns of the block at c: adds tokens from .. end - 1 to the running values (afresh with `fresh`) and writes the
  // parts of a span of `width` tokens.
  template <int N>
  void block(int64_t c, int count, int64_t from, int64_t end, bool fresh, A part_of_width, S* out) {
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
        if (call.has(kSum)) write(out + call.offset[kSum] + column(v), state[v], last);
        if (call.has(kMean)) write(out + call.offset[kMean] + column(v), state[v] * part_of_width, last);
      }
    }
    if (maxima) {
      for (int v = 0; v < N; ++v) state[v] = fresh ? broadcast<A>(-INFINITY) : load(maxima.get() + column(v));
      for (int64_t t = from; t < end; ++t) {
        for (int v = 0; v < N; ++v) state[v] = larger(state[v], load_up_to(token(t) + column(v), last));
      }
      for (int v = 0; v < N; ++v) {
        store(maxima.get() + column(v), state[v]);
        write(out + call.offset[kMax] + column(v), state[v], last);
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
      const A scale = softmax[k].scale();
      for (int v = 0; v < N; ++v) {
        store(memory + column(v), state[v]);
        const V pooled = scale == 0 ? V{} : state[v] * scale;
        write(out + call.offset[kAttention] + k * call.columns + column(v), pooled, last);
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
      const A part_of_width = 1 / static_cast<A>(end - start);
      for (; c + kBlock * lanes<A> <= call.columns; c += kBlock * lanes<A>) {
        block<kBlock>(c, lanes<A>, from, end, fresh, part_of_width, out);
      }
      for (; c < call.columns; c += lanes<A>) {
        const int count = static_cast<int>(call.columns - c < lanes<A> ? call.columns - c : lanes<A>);
        block<1>(c, count, from, end, fresh, part_of_width, out);
      }
    }
    if (call.has(kStart)) copy(out + call.offset[kStart], token(start), call.columns);
    if (call.has(kEnd)) copy(out + call.offset[kEnd], token(end - 1), call.columns);
    if (call.has(kWidth)) {
      const S* entry = static_cast<const S*>(call.table) + call.table_row(row, end - start) * call.table_columns;
      copy(out + call.offset[kWidth], entry, call.table_columns);
    }
  }

  // Columns left .. left + width - 1 of the token blocks between `begin` (a block's first token) and `stop`.
  template <class Op>
  void fill_window(int64_t begin, int64_t stop, int64_t left, int64_t width) const {
    for (int64_t block = begin; block < stop; block += kTokenBlock) {
      const int64_t end = block + kTokenBlock < call.tokens ? block + kTokenBlock : call.tokens;
      for (int64_t c = 0; c < width; c += lanes<A>) {
        const int count = static_cast<int>(width - c < lanes<A> ? width - c : lanes<A>);
        A* up = from_first.get() + (block - begin) * kWindowColumns + c;
        A* down = to_last.get() + (block - begin) * kWindowColumns + c;
        V tokens[kTokenBlock];
        for (int64_t t = block; t < end; ++t) tokens[t - block] = load_up_to(token(t) + left + c, count);
        V running = tokens[0];
        store(up, running);
        for (int64_t t = 1; t < end - block; ++t)
          store(up + t * kWindowColumns, running = Op::join(running, tokens[t]));
        running = tokens[end - block - 1];
        store(down + (end - block - 1) * kWindowColumns, running);
        for (int64_t t = end - block - 2; t >= 0; --t) {
          store(down + t * kWindowColumns, running = Op::join(tokens[t], running));
        }
      }
    }
  }

  // The same value as join_blocks gives, from the tokens: the order of the joins is that of the windows.
  template <class Op, int N>
  void join_tokens(int64_t start, int64_t end, int64_t left, int64_t c, int count, S* out) const {
    const int last = N == 1 ? count : lanes<A>;
    V value[N], part[N];
    const auto load_token = [&](V(&to)[N], int64_t t) {
      for (int v = 0; v < N; ++v) to[v] = load_up_to(token(t) + left + c + v * lanes<A>, last);
    };
    const auto join = [&](const V(&first)[N], const V(&second)[N], V(&to)[N]) {
      for (int v = 0; v < N; ++v) to[v] = Op::join(first[v], second[v]);
    };
    V next[N];
    const int64_t last_block = (end - 1) / kTokenBlock * kTokenBlock;
    const bool in_order = start >= last_block || end - start > kWindow - kTokenBlock;
    load_token(value, in_order ? start : (start / kTokenBlock + 1) * kTokenBlock - 1);
    if (in_order) {
      for (int64_t t = start + 1; t < end; ++t) load_token(next, t), join(value, next, value);
    } else {
      for (int64_t t = (start / kTokenBlock + 1) * kTokenBlock - 2; t >= start; --t) {
        load_token(next, t), join(next, value, value);
      }
      for (int64_t block = (start / kTokenBlock + 1) * kTokenBlock; block < last_block; block += kTokenBlock) {
        load_token(part, block + kTokenBlock - 1);
        for (int64_t t = block + kTokenBlock - 2; t >= block; --t) load_token(next, t), join(next, part, part);
        join(value, part, value);
      }
      load_token(part, last_block);
      for (int64_t t = last_block + 1; t < end; ++t) load_token(next, t), join(part, next, part);
      join(value, part, value);
    }
    write_joined<Op, N>(value, start, end, left + c, last, out);
  }

  // One span's columns from the window that starts at `begin`.
  template <class Op, int N>
  void join_blocks(int64_t begin, int64_t start, int64_t end, int64_t left, int64_t c, int count, S* out) const {
    const int64_t last_block = (end - 1) / kTokenBlock * kTokenBlock;
    if (start >= last_block || end - start > kWindow - kTokenBlock) {
      return join_tokens<Op, N>(start, end, left, c, count, out);
    }
    V value[N];
    const auto join = [&](const A* other) {
      for (int v = 0; v < N; ++v) value[v] = Op::join(value[v], load(other + c + v * lanes<A>));
    };
    const A* rest = to_last.get() + (start - begin) * kWindowColumns + c;
    for (int v = 0; v < N; ++v) value[v] = load(rest + v * lanes<A>);
    for (int64_t block = (start / kTokenBlock + 1) * kTokenBlock; block < last_block; block += kTokenBlock) {
      join(to_last.get() + (block - begin) * kWindowColumns);
    }
    join(from_first.get() + (end - 1 - begin) * kWindowColumns);
    write_joined<Op, N>(value, start, end, left + c, N == 1 ? count : lanes<A>, out);
  }

  template <class Op, int N>
  void write_joined(const V (&value)[N], int64_t start, int64_t end, int64_t to, int count, S* out) const {
    for (int v = 0; v < N; ++v, to += lanes<A>) {
      if (call.has(Op::whole)) write(out + call.offset[Op::whole] + to, value[v], count);
      if constexpr (Op::scaled != kParts) {
        if (call.has(Op::scaled)) {
          write(out + call.offset[Op::scaled] + to, value[v] * (1 / static_cast<A>(end - start)), count);
        }
      }
    }
  }

  // Sums or maxima of spans first .. last - 1, group by group from `group` on.
  template <class Op>
  void run_windows(int64_t first, int64_t last, int64_t group) const {
    const SpanGroups& groups = call.groups;
    for (int64_t i = first; i < last;) {
      const int64_t begin = groups.start[group] / kTokenBlock * kTokenBlock;
      int64_t stop = begin, next_group = group, next = i, read = 0;
      for (; next < last; ++next) {
        if (next == groups.first[next_group + 1]) ++next_group;
        const int64_t end = groups.end(next_group, next);
        if (end - groups.start[next_group] > kWindow - kTokenBlock) continue;  // read token by token
        if (end > begin + kWindow) break;
        stop = end > stop ? end : stop;
        read += end - groups.start[next_group];
      }
      const bool sparse = read <= 2 * (stop - begin);  // a window's token is read once and written twice
      const int64_t columns = sparse ? call.columns : kWindowColumns;
      for (int64_t left = 0; left < call.columns; left += columns) {
        const int64_t width = call.columns - left < columns ? call.columns - left : columns;
        if (!sparse) fill_window<Op>(begin, stop, left, width);
        int64_t in = group;
        for (int64_t span = i; span < next; ++span) {
          if (span == groups.first[in + 1]) ++in;
          const int64_t start = groups.start[in], end = groups.ends[span];
          S* out = static_cast<S*>(call.output) + groups.row(span) * call.output_columns;
          int64_t c = 0;
          for (; c + kBlock * lanes<A> <= width; c += kBlock * lanes<A>) {
            sparse ? join_tokens<Op, kBlock>(start, end, left, c, lanes<A>, out)
                   : join_blocks<Op, kBlock>(begin, start, end, left, c, lanes<A>, out);
          }
          for (; c < width; c += lanes<A>) {
            const int count = static_cast<int>(width - c < lanes<A> ? width - c : lanes<A>);
            sparse ? join_tokens<Op, 1>(start, end, left, c, count, out)
                   : join_blocks<Op, 1>(begin, start, end, left, c, count, out);
          }
        }
      }
      i = next;
      group = next_group;
    }
  }

  void run(int64_t first, int64_t last) {
    const SpanGroups& groups = call.groups;
    int64_t low = 0, high = groups.count;  // the group that holds span `first`
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (groups.first[middle] <= first ? low : high) = middle;
    }
    if (!nested && any_sum) run_windows<Addition<A>>(first, last, low);
    if (!nested && call.has(kMax)) run_windows<Maximum<A>>(first, last, low);
    if (nested || call.has(kAttention) || call.has(kStart) || call.has(kEnd) || call.has(kWidth)) {
      run_groups(first, last, low);
    }
    if (streams) streamed();
  }

  void run_groups(int64_t first, int64_t last, int64_t group) {
    const SpanGroups& groups = call.groups;
    int64_t reached = groups.start[group];
    for (int64_t i = first; i < last; ++i) {
      if (i == groups.first[group + 1]) reached = groups.start[++group];
      const int64_t end = groups.end(group, i);
      span(groups.start[group], reached, end, groups.row(i));
      reached = end;
    }
  }
};

}  // namespace
}  // namespace SPANBERT_ISA
}  // namespace spanbert
