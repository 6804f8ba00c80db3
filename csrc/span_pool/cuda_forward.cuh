// Span pooling of sorted spans on a GPU: a block takes a run of spans and a tile of columns, a warp one span at a time.
//
// Tokens are cut into groups of 8. A span is some single tokens, some whole groups, some single tokens, and the sum,
// the maximum and the softmax of a group are the same for every span that holds it all: they are computed once a block
// and lie in shared memory, so that a span of w tokens costs about 7 + w/8 additions instead of w. A group holds only
// tokens of the span, and one that is not in shared memory is computed on the spot in the same order: a result depends
// on the span's own tokens and position alone, to the last bit. Single tokens come from the L1 cache: neighbours in
// the sorted order read the same ones.
#pragma once

#include "span_pool/cuda_work.h"

namespace spanbert {
namespace forward {

constexpr int kWarps = 8, kThreads = kWarps * kLanes;
constexpr int kGroup = 8;
constexpr int kStaged = 16;  // groups in shared memory

template <class S>
constexpr int kColumns = 16 / sizeof(S);  // of one thread

template <int N>
struct Winners {
  Columns<N> value;
  int token[N];  // offset from the span's, or the group's, first
};

// The first maximal token, and the first NaN before any number.
template <int N>
SPANBERT_DEVICE void keep_larger(Winners<N>& best, const Columns<N>& value, const int (&token)[N]) {
#pragma unroll
  for (int v = 0; v < N; ++v) {
    const float before = best.value.at[v];
    if (!(value.at[v] <= before) && before == before) {
      best.value.at[v] = value.at[v];
      best.token[v] = token[v];
    }
  }
}
template <int N>
SPANBERT_DEVICE void keep_larger(Winners<N>& best, const Columns<N>& value, int token) {
  int tokens[N];
#pragma unroll
  for (int v = 0; v < N; ++v) tokens[v] = token;
  keep_larger(best, value, tokens);
}
template <int N>
SPANBERT_DEVICE void start_winners(Winners<N>& best) {
  fill(best.value, -INFINITY);
#pragma unroll
  for (int v = 0; v < N; ++v) best.token[v] = 0;
}

template <int N>
SPANBERT_DEVICE void store_winners(const PoolWork& work, int64_t row, const ColumnTile& tile, const int (&token)[N]) {
  const int64_t place = row * work.columns + tile.column;
  auto* bytes = static_cast<uint8_t*>(work.winners) + place;
  auto* numbers = static_cast<int32_t*>(work.winners) + place;
  if (work.columns % N != 0) {
#pragma unroll
    for (int v = 0; v < N; ++v) {
      if (v >= tile.count) continue;
      if (work.winner_bytes == 1) {
        bytes[v] = static_cast<uint8_t>(token[v]);
      } else {
        numbers[v] = token[v];
      }
    }
    return;
  }
  if (tile.count == 0) return;
#pragma unroll
  for (int q = 0; q < N; q += 4) {
    const uint32_t four[4] = {static_cast<uint32_t>(token[q]), static_cast<uint32_t>(token[q + 1]),
                              static_cast<uint32_t>(token[q + 2]), static_cast<uint32_t>(token[q + 3])};
    if (work.winner_bytes == 1) {
      *reinterpret_cast<uint32_t*>(bytes + q) = four[0] | four[1] << 8 | four[2] << 16 | four[3] << 24;
    } else {
      store_words(numbers + q, four);
    }
  }
}

// What one thread reads and writes: its columns of any token, of any row.
template <class S>
struct Tile {
  static constexpr int N = kColumns<S>;
  using Values = Columns<N>;

  const PoolWork& work;
  const ColumnTile tile;
  const S* const hidden;
  const bool aligned_output;

  SPANBERT_DEVICE Tile(const PoolWork& work, int64_t index, bool aligned_output)
      : work(work),
        tile(column_tile<N>(index, work.columns)),
        hidden(static_cast<const S*>(work.hidden) + tile.column),
        aligned_output(aligned_output) {}

  SPANBERT_DEVICE Values token(int64_t t) const {
    return unpack(load<N>(hidden + t * work.hidden_stride, tile.count, true));
  }
  SPANBERT_DEVICE void write(int64_t row, int64_t offset, const Values& values) const {
    S* to = static_cast<S*>(work.output) + row * work.output_columns + offset + tile.column;
    store(to, tile.count, values, aligned_output);
  }
};

// The width's row of the table; the tile of columns 0 writes it.
template <class S>
SPANBERT_DEVICE void write_width(const PoolWork& work, const Span& span) {
  S* to = static_cast<S*>(work.output) + span.row * work.output_columns + work.offset[kWidth];
  const int64_t entry = span.empty() ? -1 : work.table_row(span.row, span.width());
  for (int64_t c = lane_index(); c < work.table_columns; c += kLanes) {
    to[c] = entry < 0 ? S{} : static_cast<const S*>(work.table)[entry * work.table_columns + c];
  }
}

// Softmax over the tokens of a span: weights exp(score - pivot) / total. The pivot is the maximum, finite also where
// every score is -inf (and total 0, as softmax has it: the result is NaN).
struct Softmax {
  float pivot, total;
};

SPANBERT_DEVICE float finite_pivot(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

SPANBERT_DEVICE Softmax span_softmax(const PoolWork& work, int64_t start, int64_t end, int64_t head) {
  float maximum = -INFINITY, total = 0;
  for (int64_t t = start + lane_index(); t < end; t += kLanes)
    maximum = fmaxf(maximum, work.scores[t * work.heads + head]);
  const float pivot = finite_pivot(warp_maximum(maximum));
  for (int64_t t = start + lane_index(); t < end; t += kLanes)
    total += expf(work.scores[t * work.heads + head] - pivot);
  return {pivot, warp_sum(total)};
}

// A whole group's sum, maximum and softmax.
template <class Tile>
SPANBERT_DEVICE typename Tile::Values group_sum(const Tile& tile, int64_t group) {
  typename Tile::Values sum = tile.token(group * kGroup);
#pragma unroll
  for (int i = 1; i < kGroup; ++i) add(sum, tile.token(group * kGroup + i));
  return sum;
}

template <class Tile>
SPANBERT_DEVICE Winners<Tile::N> group_winners(const Tile& tile, int64_t group) {
  Winners<Tile::N> best;
  start_winners(best);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) keep_larger(best, tile.token(group * kGroup + i), i);
  return best;
}

template <class Tile>
SPANBERT_DEVICE typename Tile::Values group_weighted(const Tile& tile, int64_t group, int64_t head, float* maximum) {
  const int64_t mine = group * kGroup + lane_index() % kGroup;
  const float score = tile.work.scores[mine * tile.work.heads + head];
  *maximum = warp_maximum(score, kGroup);
  const float weight = expf(score - finite_pivot(*maximum));
  typename Tile::Values sum;
  fill(sum, 0.0f);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) add(sum, shuffle(weight, i), tile.token(group * kGroup + i));
  return sum;
}

// Single tokens start .. head - 1, whole groups first .. last - 1, single tokens tail .. end - 1.
struct Pieces {
  int64_t head, first, last, tail;
};

SPANBERT_DEVICE Pieces pieces_of(int64_t start, int64_t end) {
  const int64_t first = (start + kGroup - 1) / kGroup, last = end / kGroup;
  if (first >= last) return {end, 0, 0, end};
  return {first * kGroup, first, last, last * kGroup};
}

template <int N>
struct alignas(16) Staged {
  float value[kStaged][N / 4][kLanes][4];
  int winner[kStaged][N / 4][kLanes];  // four offsets of a byte
  float score[kStaged];
  int64_t first;
  int count;

  SPANBERT_DEVICE bool holds(int64_t group) const { return group >= first && group < first + count; }
  SPANBERT_DEVICE void put(int slot, const Columns<N>& columns) {
#pragma unroll
    for (int v = 0; v < N; ++v) value[slot][v / 4][lane_index()][v % 4] = columns.at[v];
  }
  SPANBERT_DEVICE Columns<N> get(int64_t group) const {
    Columns<N> columns;
#pragma unroll
    for (int v = 0; v < N; ++v) columns.at[v] = value[group - first][v / 4][lane_index()][v % 4];
    return columns;
  }
  SPANBERT_DEVICE void put(int slot, const Winners<N>& best) {
    put(slot, best.value);
#pragma unroll
    for (int q = 0; q < N / 4; ++q) {
      const int* token = best.token + 4 * q;
      winner[slot][q][lane_index()] = token[0] | token[1] << 8 | token[2] << 16 | token[3] << 24;
    }
  }
  SPANBERT_DEVICE Winners<N> get_winners(int64_t group) const {
    Winners<N> best{get(group), {}};
#pragma unroll
    for (int v = 0; v < N; ++v) best.token[v] = winner[group - first][v / 4][lane_index()] >> (8 * (v % 4)) & 255;
    return best;
  }
};

// Which groups are worth computing for all spans of a block: those of its first tokens, unless the spans' widths come
// to little more than the tokens to be read for it. One warp decides.
template <int N>
SPANBERT_DEVICE void choose_groups(const PoolWork& work, int64_t begin, int64_t stop, Staged<N>& staged) {
  long long low = work.spans.tokens, high = 0, widths = 0;
  for (int64_t i = begin + lane_index(); i < stop; i += kLanes) {
    const Span span = span_at(work.spans, i);
    if (span.empty()) continue;
    low = span.start < low ? span.start : low;
    high = span.end > high ? span.end : high;
    widths += span.width();
  }
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    const long long other_low = shuffle_xor(low, mask), other_high = shuffle_xor(high, mask);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
    widths += shuffle_xor(widths, mask);
  }
  if (lane_index() > 0) return;
  const Pieces pieces = pieces_of(low, high);
  const int64_t count = pieces.last - pieces.first < kStaged ? pieces.last - pieces.first : kStaged;
  staged.first = pieces.first;
  staged.count = count > 0 && widths > 2 * kGroup * count ? static_cast<int>(count) : 0;
}

// What a kernel reduces, besides copying ends and widths: one for each kind alone, with few registers, and one for any
// mix, which writes all parts of a row.
constexpr int kSums = 1, kMaximum = 2, kSoftmax = 4, kEverything = 7;

// Of a multiprocessor at a time: as many as registers allow without local memory.
constexpr int least_blocks(int kinds) { return kinds == kSums ? 3 : 2; }

template <class S, int Kinds>
__global__ void __launch_bounds__(kThreads, least_blocks(Kinds))
    sorted(PoolWork work, int64_t run, int64_t tiles, bool aligned_output) {
  constexpr int N = kColumns<S>;
  auto& staged = shared_memory<Staged<N>>();
  const int64_t begin = blockIdx.x / tiles * run, index = blockIdx.x % tiles;
  const int64_t stop = begin + run < work.spans.count ? begin + run : work.spans.count;
  const Tile<S> tile(work, index, aligned_output);
  const int warp = warp_index();
  if (warp == 0) choose_groups(work, begin, stop, staged);
  __syncthreads();
  const int groups = staged.count;

  if (Kinds & kSums && (work.has(kMean) || work.has(kSum))) {
    for (int slot = warp; slot < groups; slot += kWarps) staged.put(slot, group_sum(tile, staged.first + slot));
    __syncthreads();
    for (int64_t i = begin + warp; i < stop; i += kWarps) {
      const Span span = span_at(work.spans, i);
      if (span.row < 0) continue;
      const Pieces pieces = pieces_of(span.start, span.end);
      Columns<N> sum;
      fill(sum, 0.0f);
#pragma unroll 4
      for (int64_t t = span.start; t < pieces.head; ++t) add(sum, tile.token(t));
      for (int64_t g = pieces.first; g < pieces.last; ++g)
        add(sum, staged.holds(g) ? staged.get(g) : group_sum(tile, g));
#pragma unroll 4
      for (int64_t t = pieces.tail; t < span.end; ++t) add(sum, tile.token(t));
      if (work.has(kSum)) tile.write(span.row, work.offset[kSum], sum);
      if (work.has(kMean)) {
        scale(sum, span.empty() ? 0.0f : 1.0f / static_cast<float>(span.width()));
        tile.write(span.row, work.offset[kMean], sum);
      }
    }
    __syncthreads();
  }

  if (Kinds & kMaximum && work.has(kMax)) {
    for (int slot = warp; slot < groups; slot += kWarps) staged.put(slot, group_winners(tile, staged.first + slot));
    __syncthreads();
    for (int64_t i = begin + warp; i < stop; i += kWarps) {
      const Span span = span_at(work.spans, i);
      if (span.row < 0) continue;
      const Pieces pieces = pieces_of(span.start, span.end);
      Winners<N> best;
      start_winners(best);
#pragma unroll 4
      for (int64_t t = span.start; t < pieces.head; ++t)
        keep_larger(best, tile.token(t), static_cast<int>(t - span.start));
      for (int64_t g = pieces.first; g < pieces.last; ++g) {
        Winners<N> group = staged.holds(g) ? staged.get_winners(g) : group_winners(tile, g);
#pragma unroll
        for (int v = 0; v < N; ++v) group.token[v] += static_cast<int>(g * kGroup - span.start);
        keep_larger(best, group.value, group.token);
      }
#pragma unroll 4
      for (int64_t t = pieces.tail; t < span.end; ++t)
        keep_larger(best, tile.token(t), static_cast<int>(t - span.start));
      if (span.empty()) fill(best.value, 0.0f);
      tile.write(span.row, work.offset[kMax], best.value);
      if (work.winners) store_winners(work, span.row, tile.tile, best.token);
    }
    __syncthreads();
  }

  for (int64_t head = 0; Kinds & kSoftmax && work.has(kAttention) && head < work.heads; ++head) {
    for (int slot = warp; slot < groups; slot += kWarps) {
      float maximum;
      staged.put(slot, group_weighted(tile, staged.first + slot, head, &maximum));
      if (lane_index() == 0) staged.score[slot] = maximum;
    }
    __syncthreads();
    for (int64_t i = begin + warp; i < stop; i += kWarps) {
      const Span span = span_at(work.spans, i);
      if (span.row < 0) continue;
      const Pieces pieces = pieces_of(span.start, span.end);
      const Softmax softmax = span_softmax(work, span.start, span.end, head);
      // Of the single tokens, at most 7 before and 7 behind the groups, each lane weighs one.
      const int before = static_cast<int>(pieces.head - span.start), behind = static_cast<int>(span.end - pieces.tail);
      const int lane = lane_index();
      const int64_t mine = lane < before ? span.start + lane : pieces.tail + lane - before;
      float weight = 0;
      if (lane < before + behind) weight = expf(work.scores[mine * work.heads + head] - softmax.pivot);
      Columns<N> sum;
      fill(sum, 0.0f);
#pragma unroll 4
      for (int j = 0; j < before; ++j) add(sum, shuffle(weight, j), tile.token(span.start + j));
      for (int64_t g = pieces.first; g < pieces.last; ++g) {
        float maximum;
        Columns<N> values;
        if (staged.holds(g)) {
          maximum = staged.score[g - staged.first];
          values = staged.get(g);
        } else {
          values = group_weighted(tile, g, head, &maximum);
        }
        add(sum, expf(maximum - softmax.pivot), values);
      }
#pragma unroll 4
      for (int j = 0; j < behind; ++j) add(sum, shuffle(weight, before + j), tile.token(pieces.tail + j));
      scale(sum, 1.0f / softmax.total);
      if (softmax.total == 0) fill(sum, 0.0f);  // no token, or every score is -inf
      tile.write(span.row, work.offset[kAttention] + head * work.columns, sum);
      if (work.lse && index == 0 && lane == 0) {
        work.lse[span.row * work.heads + head] = softmax.pivot + logf(softmax.total);
      }
    }
    __syncthreads();
  }

  for (int64_t i = begin + warp; i < stop; i += kWarps) {
    const Span span = span_at(work.spans, i);
    if (span.row < 0) continue;
    Columns<N> zeros;
    fill(zeros, 0.0f);
    if (work.has(kStart)) tile.write(span.row, work.offset[kStart], span.empty() ? zeros : tile.token(span.start));
    if (work.has(kEnd)) tile.write(span.row, work.offset[kEnd], span.empty() ? zeros : tile.token(span.end - 1));
    if (work.has(kWidth) && index == 0) write_width<S>(work, span);
  }
}

}  // namespace forward
}  // namespace spanbert
