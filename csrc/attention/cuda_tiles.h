// Tiles of rows in shared memory, as the matrix kernels of attention use them.
#pragma once

#include "attention/cuda_work.h"
#include "common/cuda_matrix.h"

namespace spanbert {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <class S, int D>
constexpr int kStride = D + kPad<S>;

// Rows `first` .. of a tensor, zeros in the last product's rows behind them, in rows of no document and in columns from
// head_dim to D: what a document does not see may hold Inf or NaN. All threads of the block together.
template <class S, int D, int Threads>
SPANBERT_DEVICE void load_tile(const AttentionWork& work, const HeadRows& rows, const Side& side, int64_t head,
                               int64_t first, int count, S* tile) {
  constexpr int N = 16 / sizeof(S), kUnits = D / N;
  // Loads on their way from memory together, as registers allow.
  [[maybe_unused]] constexpr int kTogether = D > 96 ? 2 : 4;
  const int padded = (count + kStep - 1) / kStep * kStep;
#pragma unroll kTogether
  for (int i = static_cast<int>(threadIdx.x); i < padded * kUnits; i += Threads) {
    const int row = i / kUnits, column = i % kUnits * N;
    Packed<S, N> packed{};
    if (row < count && column < work.dim && side.has(first + row)) {
      packed = load<N>(rows.at<S>(first + row, head) + column, work.dim - column, rows.aligned);
    }
    uint32_t* to = reinterpret_cast<uint32_t*>(tile + row * kStride<S, D> + column);
    // Not store_words: shared memory is read again.
#pragma unroll
    for (int w = 0; w < Packed<S, N>::kWords; ++w) to[w] = packed.words[w];
  }
}

// Rows of a tile to a tensor's rows `first` .., columns `begin` to `end` of D. A warp.
template <class S, int D>
SPANBERT_DEVICE void store_rows(const AttentionWork& work, const HeadRows& rows, int64_t head, int64_t first, int count,
                                int begin, int end, const S* tile) {
  constexpr int N = 16 / sizeof(S);
  const int units = (end - begin) / N;
  for (int i = lane_index(); i < count * units; i += kLanes) {
    const int row = i / units, column = begin + i % units * N, left = work.dim - column;
    if (left <= 0) continue;
    Packed<S, N> packed;
    const uint32_t* from = reinterpret_cast<const uint32_t*>(tile + row * kStride<S, D> + column);
#pragma unroll
    for (int w = 0; w < Packed<S, N>::kWords; ++w) packed.words[w] = from[w];
    S* to = rows.at<S>(first + row, head) + column;
    if (rows.aligned) {
      store_words(to, packed.words);
    } else {
      store(to, left < N ? left : N, unpack(packed), false);
    }
  }
}

// Zeros in the rows of no document around the documents: a few, or none. The threads of a block.
template <class S, int Threads>
SPANBERT_DEVICE void clear_rest(const AttentionWork& work, const HeadRows& rows, const Side& side, int64_t head) {
  side.for_rest([&](int64_t row) {
    S* to = rows.at<S>(row, head);
    for (int c = static_cast<int>(threadIdx.x); c < work.dim; c += Threads) from_float(0.0f, to + c);
  });
}

}  // namespace spanbert
