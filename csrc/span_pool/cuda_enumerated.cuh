// Span pooling of all spans up to a width on a GPU: a warp takes a first token and a tile of columns, and each wider
// span continues the sum, the maximum and the online softmax (Milakov and Gimelshein 2018) of the one before. Nothing
// but tokens is read, and a span costs O(1); the order of the additions is that of the span's own tokens.
#pragma once

#include "span_pool/cuda_forward.cuh"

namespace spanbert {
namespace forward {

template <class S, int Kinds>
__global__ void __launch_bounds__(kThreads) enumerated(PoolWork work, int64_t tiles, bool aligned_output) {
  constexpr int N = kColumns<S>;
  const int64_t start = blockIdx.x / tiles * kWarps + warp_index(), index = blockIdx.x % tiles;
  if (start >= work.spans.tokens) return;
  const Tile<S> tile(work, index, aligned_output);
  const int64_t first = work.spans.first[start];
  int64_t count = work.spans.first[start + 1] - first;
  count = count < work.spans.tokens - start ? count : work.spans.tokens - start;

  const bool sums = Kinds & kSums && (work.has(kMean) || work.has(kSum));
  const bool maximum = Kinds & kMaximum && work.has(kMax);
  if ((sums || maximum || work.has(kStart) || work.has(kEnd)) && count > 0) {
    const Columns<N> beginning = tile.token(start);
    Columns<N> next = beginning, sum;
    Winners<N> best;
    fill(sum, 0.0f);
    start_winners(best);
    for (int64_t i = 0; i < count; ++i) {
      const Columns<N> values = next;
      const int64_t row = first + i;
      if (i + 1 < count) next = tile.token(start + i + 1);
      if (work.has(kStart)) tile.write(row, work.offset[kStart], beginning);
      if (work.has(kEnd)) tile.write(row, work.offset[kEnd], values);
      if (sums) {
        add(sum, values);
        if (work.has(kSum)) tile.write(row, work.offset[kSum], sum);
        if (work.has(kMean)) {
          Columns<N> mean = sum;
          scale(mean, 1.0f / static_cast<float>(i + 1));
          tile.write(row, work.offset[kMean], mean);
        }
      }
      if (maximum) {
        keep_larger(best, values, static_cast<int>(i));
        tile.write(row, work.offset[kMax], best.value);
        if (work.winners) store_winners(work, row, tile.tile, best.token);
      }
    }
  }

  for (int64_t head = 0; Kinds & kSoftmax && work.has(kAttention) && head < work.heads; ++head) {
    const int64_t offset = work.offset[kAttention] + head * work.columns;
    float maximum = -INFINITY, total = 0;
    Columns<N> sum;
    fill(sum, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const float score = work.scores[(start + i) * work.heads + head];
      float rescale = 1, weight;
      if (score > maximum || score != score) {
        rescale = maximum == -INFINITY ? 0.0f : expf(maximum - score);
        weight = 1 + (score - score);  // NaN for an infinite score, as softmax has it
        maximum = score;
      } else {
        weight = score == -INFINITY ? 0.0f : expf(score - maximum);
      }
      total = total * rescale + weight;
      scale(sum, rescale);
      add(sum, weight, tile.token(start + i));
      Columns<N> mean = sum;
      scale(mean, 1.0f / total);
      if (total == 0) fill(mean, 0.0f);  // every score is -inf
      tile.write(first + i, offset, mean);
      if (work.lse && index == 0 && lane_index() == 0) {
        work.lse[(first + i) * work.heads + head] = finite_pivot(maximum) + logf(total);
      }
    }
  }

  for (int64_t i = 0; work.has(kWidth) && index == 0 && i < count; ++i) {
    write_width<S>(work, {start, start + i + 1, first + i});
  }
}

// The mean or the sum alone, in rows that are multiples of 16 bytes. Lane l knows the inverse of 32 n + l + 1.
template <class S, bool Mean>
__global__ void __launch_bounds__(kThreads) enumerated_sums(PoolWork work, int64_t tiles) {
  constexpr int N = kColumns<S>;
  const int64_t start = blockIdx.x / tiles * kWarps + warp_index(), index = blockIdx.x % tiles;
  if (start >= work.spans.tokens) return;
  const Tile<S> tile(work, index, true);
  const int64_t first = work.spans.first[start], left = work.spans.tokens - start;
  int64_t count = work.spans.first[start + 1] - first;
  count = count < left ? count : left;
  if (count <= 0) return;
  const S* from = tile.hidden + start * work.hidden_stride;
  S* to =
      static_cast<S*>(work.output) + first * work.output_columns + work.offset[Mean ? kMean : kSum] + tile.tile.column;
  Packed<S, N> next = load<N>(from, tile.tile.count, true);
  Columns<N> sum;
  fill(sum, 0.0f);
  const int last = static_cast<int>(count) - 1;
#pragma unroll 1
  for (int begin = 0; begin <= last; begin += kLanes) {
    const float inverse = Mean ? 1.0f / static_cast<float>(begin + lane_index() + 1) : 1.0f;
    const int end = last - begin < kLanes ? last - begin : kLanes - 1;
#pragma unroll 1
    for (int i = 0; i <= end; ++i) {
      const Columns<N> values = unpack(next);
      if (begin + i < last) from += work.hidden_stride;
      next = load<N>(from, tile.tile.count, true);
      add(sum, values);
      Columns<N> result = sum;
      if (Mean) scale(result, shuffle(inverse, i));
      store(to, tile.tile.count, result, true);
      to += work.output_columns;
    }
  }
}

}  // namespace forward
}  // namespace spanbert
