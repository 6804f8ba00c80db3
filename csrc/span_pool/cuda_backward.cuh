// The gradient of span pooling on a GPU, without atomics: a warp takes 8 tokens and a tile of columns and goes through
// the sorted spans that can hold one of them, reach[t] : first[t + 8], always in that order. Nothing is shared between
// warps.
//
// A span that holds all 8 tokens gives each the same: for sum and mean its g (or g / width), and for the softmax
//   p_nt g_n = exp(s_t - m) * exp(m - m_n) / z_n g_n,    m the maximum of the 8 scores, m_n and z_n those of the span,
// so that it is added once for the group (no factor exceeds 1), and to the tokens at the end. With A_t the sum of
// p_nt g_n over the spans that hold t, the scores' gradient is
//   d s_t = sum of p_nt (g_n . x_t - g_n . out_n) = A_t . x_t - B_t,    B_t the sum of p_nt (g_n . out_n),
// summed over the tiles of columns in order. The maximum's and the ends' gradients go to one token of the group, whose
// index is a number at run time: those sums are in shared memory, where each thread has its own columns.
#pragma once

#include "span_pool/cuda_forward.cuh"

namespace spanbert {
namespace backward {

constexpr int kWarps = 4, kThreads = kWarps * kLanes;
constexpr int kGroup = 8;
constexpr int kColumns = 4;  // of one thread
constexpr int kBatch = 4;    // spans whose gradients are on their way from memory together

using Values = Columns<kColumns>;

struct PoolGrads {
  const void* output;  // gradient of the output, dense rows
  int64_t output_stride;
  bool aligned;          // whether the rows of its parts can be read 4 columns at a time
  bool aligned_hidden;   // the same for writing
  void* hidden;          // [T, H], contiguous
  float* scores;         // [tiles, T, heads]
  const float* pivot;    // [N, heads]: the maximum of a span's scores
  const float* inverse;  // [N, heads]: one over the sum of exp(score - pivot), 0 where every score is -inf
  const float* dot;      // [N, heads]: g_n . out_n
};

struct Shared {
  float sums[kWarps][kGroup][kColumns][kLanes];
};

// One warp's tokens and columns.
template <class S>
struct Group {
  using PackedValues = Packed<S, kColumns>;

  const PoolWork& work;
  const PoolGrads& grads;
  const int64_t begin;  // the first token
  const int size;       // tokens: 8, fewer at the end
  const ColumnTile tile;
  float (&sums)[kGroup][kColumns][kLanes];

  SPANBERT_DEVICE PackedValues grad(const SeenSpan& span, int64_t offset) const {
    const S* row = static_cast<const S*>(grads.output) + span.row * grads.output_stride;
    return load<kColumns>(row + offset + tile.column, tile.count, grads.aligned);
  }

  SPANBERT_DEVICE void add_to(int i, const Values& values) const {
#pragma unroll
    for (int v = 0; v < kColumns; ++v) sums[i][v][lane_index()] += values.at[v];
  }

  struct Pair {
    PackedValues first, second;
  };

  // Adds to every token what its own spans and those that hold the whole group gave.
  SPANBERT_DEVICE void sum_and_mean() const {
    Values own[kGroup], whole;
    fill(whole, 0.0f);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) fill(own[i], 0.0f);
    for_spans<kBatch>(
        work.spans, begin, begin + size,
        [&](const SeenSpan& span) {
          return Pair{work.has(kMean) ? grad(span, work.offset[kMean]) : PackedValues{},
                      work.has(kSum) ? grad(span, work.offset[kSum]) : PackedValues{}};
        },
        [&](const SeenSpan& span, const Pair& pair) {
          Values values = unpack(pair.second);
          add(values, 1.0f / static_cast<float>(span.high - span.low), unpack(pair.first));
          if (span.low <= 0 && span.high >= size) return add(whole, values);
#pragma unroll
          for (int i = 0; i < kGroup; ++i) {
            if (span.holds(i)) add(own[i], values);
          }
        });
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      add(own[i], whole);
      add_to(i, own[i]);
    }
  }

  SPANBERT_DEVICE void ends() const {
    for_spans<kBatch>(
        work.spans, begin, begin + size,
        [&](const SeenSpan& span) {
          return Pair{starts_here(span) ? grad(span, work.offset[kStart]) : PackedValues{},
                      ends_here(span) ? grad(span, work.offset[kEnd]) : PackedValues{}};
        },
        [&](const SeenSpan& span, const Pair& pair) {
          if (starts_here(span)) add_to(span.low, unpack(pair.first));
          if (ends_here(span)) add_to(span.high - 1, unpack(pair.second));
        });
  }
  SPANBERT_DEVICE bool starts_here(const SeenSpan& span) const { return work.has(kStart) && span.low >= 0; }
  SPANBERT_DEVICE bool ends_here(const SeenSpan& span) const { return work.has(kEnd) && span.high <= size; }

  // The winners as they lie in memory: four bytes, or four numbers.
  struct Won {
    PackedValues grad;
    uint32_t winners[kColumns];
  };

  SPANBERT_DEVICE Won won_by(const SeenSpan& span) const {
    Won won{grad(span, work.offset[kMax]), {}};
    const int64_t place = span.row * work.columns + tile.column;
    const auto* bytes = static_cast<const uint8_t*>(work.winners) + place;
    const auto* numbers = static_cast<const int32_t*>(work.winners) + place;
    if (work.columns % kColumns == 0) {
      if (work.winner_bytes == 1) {
        won.winners[0] = *reinterpret_cast<const uint32_t*>(bytes);
      } else {
        load_words(numbers, won.winners);
      }
      return won;
    }
#pragma unroll
    for (int v = 0; v < kColumns; ++v) {
      if (v >= tile.count) continue;
      if (work.winner_bytes == 1) {
        won.winners[0] |= static_cast<uint32_t>(bytes[v]) << (8 * v);
      } else {
        won.winners[v] = static_cast<uint32_t>(numbers[v]);
      }
    }
    return won;
  }

  SPANBERT_DEVICE void maximum() const {
    for_spans<kBatch>(
        work.spans, begin, begin + size, [&](const SeenSpan& span) { return won_by(span); },
        [&](const SeenSpan& span, const Won& won) {
          const Values values = unpack(won.grad);
#pragma unroll
          for (int v = 0; v < kColumns; ++v) {
            const uint32_t token = work.winner_bytes == 1 ? won.winners[0] >> (8 * v) & 255 : won.winners[v];
            const uint32_t i = static_cast<uint32_t>(span.low) + token;
            if (i < static_cast<uint32_t>(size)) sums[i][v][lane_index()] += values.at[v];
          }
        });
  }

  struct Weighed {
    PackedValues grad;
    float pivot, inverse, dot;
  };

  SPANBERT_DEVICE void attention(int64_t head, int64_t index) const {
    // Lane l stands for token l % 8.
    const int token = lane_index() % kGroup;
    const float score = token < size ? work.scores[(begin + token) * work.heads + head] : -INFINITY;
    const float maximum = warp_maximum(score, kGroup);
    const int64_t offset = work.offset[kAttention] + head * work.columns;
    Values own[kGroup], whole;
    fill(whole, 0.0f);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) fill(own[i], 0.0f);
    float dots = 0, whole_dots = 0;
    unsigned held = 0;  // tokens that a span holds: one that none holds may be anything, NaN too
    bool any_whole = false;
    for_spans<kBatch>(
        work.spans, begin, begin + size,
        [&](const SeenSpan& span) {
          const int64_t place = span.row * work.heads + head;
          return Weighed{grad(span, offset), grads.pivot[place], grads.inverse[place], grads.dot[place]};
        },
        [&](const SeenSpan& span, const Weighed& weighed) {
          if (weighed.inverse == 0) return;
          const Values values = unpack(weighed.grad);
          if (span.low <= 0 && span.high >= size) {
            const float factor = expf(maximum - weighed.pivot) * weighed.inverse;
            add(whole, factor, values);
            whole_dots = fmaf(factor, weighed.dot, whole_dots);
            any_whole = true;
            return;
          }
          const float weight = span.holds(token) ? expf(score - weighed.pivot) * weighed.inverse : 0.0f;
          if (span.holds(token)) dots = fmaf(weight, weighed.dot, dots);
#pragma unroll
          for (int i = 0; i < kGroup; ++i) {
            if (!span.holds(i)) continue;
            held |= 1u << i;
            add(own[i], shuffle(weight, i), values);
          }
        });
    if (any_whole) {
      held = (1u << kGroup) - 1;
      const float weight = expf(score - forward::finite_pivot(maximum));
      dots = fmaf(weight, whole_dots, dots);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) add(own[i], shuffle(weight, i), whole);
    }
    float mine = 0;
    for (int i = 0; i < size; ++i) {
      if (!(held >> i & 1)) continue;
      Values values;
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        if (j == i) values = own[j];
      }
      const S* row = static_cast<const S*>(work.hidden) + (begin + i) * work.hidden_stride;
      const Values hidden = unpack(load<kColumns>(row + tile.column, tile.count, true));
      float product = 0;
#pragma unroll
      for (int v = 0; v < kColumns; ++v) product = v < tile.count ? fmaf(values.at[v], hidden.at[v], product) : product;
      product = warp_sum(product);
      if (token == i) mine = index == 0 ? product - dots : product;
      add_to(i, values);
    }
    if (lane_index() < size) grads.scores[(index * work.spans.tokens + begin + token) * work.heads + head] = mine;
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads) tokens(PoolWork work, PoolGrads grads, int64_t tiles) {
  auto& shared = shared_memory<Shared>();
  const int64_t begin = (blockIdx.x / tiles * kWarps + warp_index()) * kGroup, index = blockIdx.x % tiles;
  if (begin >= work.spans.tokens) return;
  const int size = work.spans.tokens - begin < kGroup ? static_cast<int>(work.spans.tokens - begin) : kGroup;
  const Group<S> group{work, grads, begin, size, column_tile<kColumns>(index, work.columns), shared.sums[warp_index()]};
  Values values;
  fill(values, 0.0f);
  for (int i = 0; i < kGroup; ++i) {
#pragma unroll
    for (int v = 0; v < kColumns; ++v) group.sums[i][v][lane_index()] = 0;
  }
  if (work.has(kStart) || work.has(kEnd)) group.ends();
  if (work.has(kMax)) group.maximum();
  if (work.has(kMean) || work.has(kSum)) group.sum_and_mean();
  for (int64_t head = 0; work.has(kAttention) && head < work.heads; ++head) group.attention(head, index);
  for (int i = 0; i < size; ++i) {
#pragma unroll
    for (int v = 0; v < kColumns; ++v) values.at[v] = group.sums[i][v][lane_index()];
    store(static_cast<S*>(grads.hidden) + (begin + i) * work.columns + group.tile.column, group.tile.count, values,
          grads.aligned_hidden);
  }
}

// For every span and head: maximum and sum of its softmax, and g . out, out before it was rounded. A warp each.
template <class S>
__global__ void __launch_bounds__(kThreads)
    softmaxes(PoolWork work, PoolGrads grads, float* pivot, float* inverse, float* dot) {
  const int64_t i = blockIdx.x * int64_t{kWarps} + warp_index();
  if (i >= work.spans.count * work.heads) return;
  const Span span = span_at(work.spans, i / work.heads);
  const int64_t head = i % work.heads, offset = work.offset[kAttention] + head * work.columns;
  if (span.row < 0 || span.empty()) return;
  const forward::Softmax softmax = forward::span_softmax(work, span.start, span.end, head);
  const S* grad = static_cast<const S*>(grads.output) + span.row * grads.output_stride + offset;
  const S* hidden = static_cast<const S*>(work.hidden);
  float product = 0;
  for (int64_t index = 0; index * kLanes * kColumns < work.columns; ++index) {
    const ColumnTile tile = column_tile<kColumns>(index, work.columns);
    const Values a = unpack(load<kColumns>(grad + tile.column, tile.count, grads.aligned));
    Values b;
    fill(b, 0.0f);
#pragma unroll 2
    for (int64_t t = span.start; t < span.end; ++t) {
      const float weight = expf(work.scores[t * work.heads + head] - softmax.pivot);
      add(b, weight, unpack(load<kColumns>(hidden + t * work.hidden_stride + tile.column, tile.count, true)));
    }
#pragma unroll
    for (int v = 0; v < kColumns; ++v) product = v < tile.count ? fmaf(a.at[v], b.at[v], product) : product;
  }
  const float one_over_total = softmax.total == 0 ? 0.0f : 1.0f / softmax.total;
  product = warp_sum(product) * one_over_total;
  if (lane_index() > 0) return;
  const int64_t place = span.row * work.heads + head;
  pivot[place] = softmax.pivot;
  inverse[place] = one_over_total;
  dot[place] = product;
}

// The width table: a warp takes a run of spans, one row of the table and 32 columns. [runs, table_rows, table_columns]
template <class S>
__global__ void __launch_bounds__(kThreads)
    table_rows(PoolWork work, PoolGrads grads, int64_t run, int64_t runs, float* partial) {
  const int64_t tiles = (work.table_columns + kLanes - 1) / kLanes;
  const int64_t task = blockIdx.x * int64_t{kWarps} + warp_index();
  if (task >= runs * work.table_rows * tiles) return;
  const int64_t part = task / (work.table_rows * tiles), entry = task / tiles % work.table_rows;
  const int64_t column = task % tiles * kLanes + lane_index();
  const bool inside = column < work.table_columns;
  const int64_t stop = (part + 1) * run < work.spans.count ? (part + 1) * run : work.spans.count;
  float sum = 0;
  for (int64_t base = part * run; base < stop; base += kLanes) {
    int row = 0;
    bool seen = false;
    if (base + lane_index() < stop) {
      const Span span = span_at(work.spans, base + lane_index());
      row = static_cast<int>(span.row);
      seen = span.row >= 0 && !span.empty() && work.table_row(span.row, span.width()) == entry;
    }
    for (unsigned left = ballot(seen); left != 0; left &= left - 1) {
      const int64_t from = shuffle(row, lowest_bit(left));
      const S* grad = static_cast<const S*>(grads.output) + from * grads.output_stride + work.offset[kWidth];
      if (inside) sum += to_float(grad[column]);
    }
  }
  if (inside) partial[(part * work.table_rows + entry) * work.table_columns + column] = sum;
}

// [parts, count] summed over the parts, in order.
template <class S>
__global__ void __launch_bounds__(256) sum_parts(const float* partial, int64_t parts, int64_t count, S* total) {
  const int64_t i = blockIdx.x * int64_t{256} + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += partial[part * count + i];
  from_float(sum, total + i);
}

}  // namespace backward
}  // namespace spanbert
