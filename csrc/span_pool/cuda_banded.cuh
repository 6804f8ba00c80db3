// Sums and means of sorted spans as matrix products, in 16 bits: a block takes 64 spans and their tokens, from the
// first to the last, through all columns. Row n of the left matrix is 1 where span n holds a token: made once, in
// shared memory, for all columns. The tokens come behind the products' back, three steps of 32 ahead of them at most.
//
// Steps begin at multiples of 16 tokens, so the order of a span's additions does not depend on the spans beside it. A
// weight of 0 does not hide Inf or NaN (0 x Inf = NaN): where a warp's result is not finite, it makes it again without
// the elements that are not, and adds those to the spans that hold them.
#pragma once

#include "common/cuda_matrix.h"
#include "span_pool/cuda_work.h"

namespace spanbert {
namespace banded {

constexpr int kWarps = 4, kThreads = kWarps * kLanes;
constexpr int kSpans = 64;    // of a block
constexpr int kTokens = 128;  // whose weights are in shared memory at a time
constexpr int kDepth = 32;    // tokens of a step
constexpr int kStages = 3;
constexpr int kChunk = 128;            // columns at a time
constexpr int kPiece = 8;              // numbers in 16 bytes
constexpr int kRows = 32, kTile = 64;  // spans and columns of a warp
constexpr int kSteps = kTokens / kDepth;

// Where a rectangle of numbers is in memory, for threads that each copy 16 bytes.
template <class S, int Rows, int Row>
SPANBERT_DEVICE void copy_rows(S (&to)[Rows][Row], const auto& source) {
  constexpr int kPieces = kChunk / kPiece;
#pragma unroll
  for (int i = 0; i < Rows * kPieces / kThreads; ++i) {
    const int index = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = index / kPieces, column = index % kPieces * kPiece;
    source(row, column, &to[row][column]);
  }
  commit_copies();
}

template <class S>
struct alignas(16) Shared {
  S weights[kSpans][kTokens + kPad<S>];
  S tokens[kStages][kDepth][kChunk + kPad<S>];
  S results[kWarps][kStep][kTile + kPad<S>];
  int start[kSpans], end[kSpans], row[kSpans];  // bounds from `low` on; the output row, -1 for none
  float inverse[kSpans];                        // 1 / width
  int low, extent;                              // the tokens of all spans: first, a multiple of 16, and how many
};

// The block's spans, by its first warp.
template <class S>
SPANBERT_DEVICE void find_spans(const PoolWork& work, int64_t first, Shared<S>& shared) {
  constexpr int kEach = kSpans / kLanes;
  Span spans[kEach];
  long long low = work.spans.tokens, high = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t number = first + i * kLanes + lane_index();
    spans[i] = number < work.spans.count ? span_at(work.spans, number) : Span{0, 0, -1};
    if (spans[i].empty()) continue;
    low = spans[i].start < low ? spans[i].start : low;
    high = spans[i].end > high ? spans[i].end : high;
  }
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    const long long other_low = shuffle_xor(low, mask), other_high = shuffle_xor(high, mask);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  low = low / kStep * kStep;
  if (lane_index() == 0) {
    shared.low = static_cast<int>(low);
    shared.extent = high > low ? static_cast<int>(high - low) : 0;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = i * kLanes + lane_index();
    const bool empty = spans[i].empty();
    shared.start[at] = empty ? 0 : static_cast<int>(spans[i].start - low);
    shared.end[at] = empty ? 0 : static_cast<int>(spans[i].end - low);
    shared.row[at] = static_cast<int>(spans[i].row);
    shared.inverse[at] = empty ? 0.0f : 1.0f / static_cast<float>(spans[i].width());
  }
}

// Weights of the tokens from `base` on, of a span and half of them each thread.
template <class S>
SPANBERT_DEVICE void weigh(Shared<S>& shared, int base) {
  static_assert(kThreads == 2 * kSpans);
  const int span = static_cast<int>(threadIdx.x) % kSpans, half = static_cast<int>(threadIdx.x) / kSpans * kTokens / 2;
  const int start = shared.start[span] - base;
  const unsigned width = static_cast<unsigned>(shared.end[span] - shared.start[span]);
  const uint32_t low = two_halves<S>(1.0f, 0.0f), high = two_halves<S>(0.0f, 1.0f);
#pragma unroll 2
  for (int token = half; token < half + kTokens / 2; token += kPiece) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned into = static_cast<unsigned>(token + 2 * i - start);
      words[i] = (into < width ? low : 0) | (into + 1 < width ? high : 0);
    }
    put_words(&shared.weights[span][token], words);
  }
}

// One warp's spans and columns.
template <class S>
struct Tile {
  static constexpr int kLefts = kRows / kStep, kRights = kTile / kStep;

  const PoolWork& work;
  Shared<S>& shared;
  const int rows = warp_index() / 2 * kRows, columns = warp_index() % 2 * kTile;
  int low = 0, high = 0;
  float inverse[kLefts][2];  // of a lane's rows
  Sums sums[kLefts][kRights];

  SPANBERT_DEVICE Tile(const PoolWork& work, Shared<S>& shared) : work(work), shared(shared) {
    find_window();
#pragma unroll
    for (int m = 0; m < kLefts; ++m) {
      inverse[m][0] = shared.inverse[rows + m * kStep + sum_row(0)];
      inverse[m][1] = shared.inverse[rows + m * kStep + sum_row(2)];
    }
  }

  SPANBERT_DEVICE void start() {
#pragma unroll
    for (int i = 0; i < kLefts * kRights; ++i) clear(sums[i / kRights][i % kRights]);
  }

  // Tokens of which the warp's spans hold one, by their first and the one after their last.
  SPANBERT_DEVICE void find_window() {
    const int span = rows + lane_index();
    const bool empty = shared.end[span] <= shared.start[span];
    low = empty ? shared.extent : shared.start[span];
    high = shared.end[span];
    for (int mask = kLanes / 2; mask > 0; mask /= 2) {
      const int other_low = shuffle_xor(low, mask), other_high = shuffle_xor(high, mask);
      low = other_low < low ? other_low : low;
      high = other_high > high ? other_high : high;
    }
    low = low / kStep * kStep;
  }

  // Those of a stage, the first of which is `first`; its weights are at `place`.
  SPANBERT_DEVICE void step(int stage, int first, int place) {
    const int begin = low > first ? low - first : 0, end = high - first < kDepth ? high - first : kDepth;
#pragma unroll 1
    for (int k = begin; k < end; k += kStep) {
      Left<S> left[kLefts];
#pragma unroll
      for (int m = 0; m < kLefts; ++m) {
        left[m] = left_of_rows(&shared.weights[rows + m * kStep][place + k], kTokens + kPad<S>);
      }
#pragma unroll
      for (int n = 0; n < kRights; ++n) {
        const Right<S> right = right_of_columns(&shared.tokens[stage][k][columns + n * kStep], kChunk + kPad<S>);
#pragma unroll
        for (int m = 0; m < kLefts; ++m) multiply_add(sums[m][n], left[m], right);
      }
    }
  }

  SPANBERT_DEVICE bool finite() const {
    float zero = 0;
#pragma unroll
    for (int m = 0; m < kLefts; ++m) {
#pragma unroll
      for (int n = 0; n < kRights; ++n) {
#pragma unroll
        for (int i = 0; i < 8; ++i) zero = fmaf(sums[m][n].at[i / 4][i % 4], 0.0f, zero);
      }
    }
    return ballot(zero != 0) == 0;  // NaN is not equal to anything
  }

  // A number of a token in this chunk; the sums are wanted of those that are finite.
  SPANBERT_DEVICE float number(int chunk, int token, int column) const {
    const int64_t place = int64_t{chunk} + columns + column;
    if (token >= shared.extent || place >= work.columns) return 0;
    return to_float(static_cast<const S*>(work.hidden)[(shared.low + int64_t{token}) * work.hidden_stride + place]);
  }

  SPANBERT_DEVICE uint32_t finite_pair(int chunk, int token, int column) const {
    const float low = number(chunk, token, column), high = number(chunk, token + 1, column);
    return two_halves<S>(low - low == 0 ? low : 0.0f, high - high == 0 ? high : 0.0f);
  }

  SPANBERT_DEVICE uint32_t weight_pair(int span, int token) const {
    const int start = shared.start[rows + span], end = shared.end[rows + span];
    return two_halves<S>(start <= token && token < end, start <= token + 1 && token + 1 < end);
  }

  // Makes and writes the results once more: the same products of what is finite, and to that what is not.
  SPANBERT_DEVICE void write_exactly(int chunk) {
    const int g = lane_index() / 4, t = lane_index() % 4 * 2;
#pragma unroll 1
    for (int m = 0; m < kRows; m += kStep) {
#pragma unroll 1
      for (int n = 0; n < kTile; n += kStep) {
        Sums sum;
        clear(sum);
        for (int token = 0; token < shared.extent; token += kStep) {
          Left<S> left;
          Right<S> right;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            left.words[i] = weight_pair(m + g + i % 2 * 8, token + t + i / 2 * 8);
            right.words[i / 2][i % 2] = finite_pair(chunk, token + t + i % 2 * 8, n + i / 2 * 8 + g);
          }
          multiply_add(sum, left, right);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int span = rows + m + sum_row(i % 4), column = n + sum_column(i / 4, i % 4);
          float value = sum.at[i / 4][i % 4];
          for (int token = shared.start[span]; token < shared.end[span]; ++token) {
            const float x = number(chunk, token, column);
            if (x - x != 0) value += x;
          }
          const int64_t to = shared.row[span], place = int64_t{chunk} + columns + column;
          if (to < 0 || place >= work.columns) continue;
          S* row = static_cast<S*>(work.output) + to * work.output_columns + place;
          if (work.has(kMean)) from_float(value * shared.inverse[span], row + work.offset[kMean]);
          if (work.has(kSum)) from_float(value, row + work.offset[kSum]);
        }
      }
    }
  }

  // Writes a part, times a factor for each span, in rows of 16 bytes.
  SPANBERT_DEVICE void write(int chunk, int64_t offset, bool mean) {
    S(&results)[kStep][kTile + kPad<S>] = shared.results[warp_index()];
    constexpr int kPieces = kTile / kPiece;
#pragma unroll
    for (int m = 0; m < kLefts; ++m) {
      warp_barrier();
#pragma unroll
      for (int n = 0; n < kRights; ++n) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          const int row = sum_row(i % 4), half = i / 4;
          const float factor = mean ? inverse[m][i / 2 % 2] : 1.0f;
          const float (&at)[4] = sums[m][n].at[half];
          const uint32_t word = two_halves<S>(at[i % 4] * factor, at[i % 4 + 1] * factor);
          put_word(&results[row][n * kStep + sum_column(half, i % 4)], word);
        }
      }
      warp_barrier();
#pragma unroll
      for (int i = 0; i < kStep * kPieces / kLanes; ++i) {
        const int index = i * kLanes + lane_index(), row = index / kPieces, column = index % kPieces * kPiece;
        const int64_t to = shared.row[rows + m * kStep + row], place = int64_t{chunk} + columns + column;
        if (to < 0 || place >= work.columns) continue;
        uint32_t words[4];
        get_words(&results[row][column], words);
        store_words(static_cast<S*>(work.output) + to * work.output_columns + offset + place, words);
      }
    }
  }
};

// `chunks` of the columns for a block; rows of `hidden` and of the parts are multiples of 16 bytes.
template <class S>
__global__ void __launch_bounds__(kThreads, 3) forward(PoolWork work, int64_t chunks, int64_t shares) {
  auto& shared = asked_memory<Shared<S>>();
  if (warp_index() == 0) find_spans(work, blockIdx.x / shares * kSpans, shared);
  __syncthreads();
  const int first = static_cast<int>(blockIdx.x % shares * chunks) * kChunk;
  const int left = (static_cast<int>(work.columns) - first + kChunk - 1) / kChunk;
  const int own = left < chunks ? left : static_cast<int>(chunks);
  const int extent = shared.extent, steps = extent > 0 ? (extent + kDepth - 1) / kDepth : 1, all = own * steps;
  const S* const from = static_cast<const S*>(work.hidden) + shared.low * work.hidden_stride;
  // Step i: step i % steps of chunk i / steps.
  int ahead = 0, ahead_chunk = first, ahead_step = 0;
  const auto bring = [&] {
    if (ahead < all) {
      const int token = ahead_step * kDepth;
      copy_rows(shared.tokens[ahead % kStages], [&](int row, int column, S* to) {
        const bool there = token + row < extent && ahead_chunk + column < work.columns;
        copy_words(to, there ? from + (token + row) * work.hidden_stride + ahead_chunk + column : from, there);
      });
      if (++ahead_step == steps) ahead_step = 0, ahead_chunk += kChunk;
    } else {
      commit_copies();
    }
    ++ahead;
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) bring();

  Tile<S> tile(work, shared);
  int i = 0;
  for (int chunk = first; chunk < first + own * kChunk; chunk += kChunk) {
    tile.start();
    for (int step = 0; step < steps; ++step, ++i) {
      wait_for_copies<kStages - 2>();
      __syncthreads();
      // Once for all columns, where they fit.
      if (step % kSteps == 0 && (steps > kSteps || chunk == first)) {
        weigh(shared, step * kDepth);
        __syncthreads();
      }
      bring();
      tile.step(i % kStages, step * kDepth, step % kSteps * kDepth);
    }
    if (!tile.finite()) {
      tile.write_exactly(chunk);
      continue;
    }
#pragma unroll 1
    for (int part = kMean; part <= kSum; ++part) {
      if (work.offset[part] >= 0) tile.write(chunk, work.offset[part], part == kMean);
    }
  }
}

}  // namespace banded
}  // namespace spanbert
