// Attention of a tile of query rows with tensor cores: a block for each tile of one document and head, 16 rows a warp.
//
// Online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022): keys and values pass through shared
// memory in tiles, each row keeps the maximum so far, and what was summed under an older one is rescaled. Exponents are
// in base 2. A document of up to one tile of keys is never rescaled. float32 goes row by row: split in two for tensor
// cores, its operands do not fit the registers.
#pragma once

#include "attention/cuda_tiles.h"

namespace spanbert {
namespace forward {

constexpr int kWarps = kTileRows / kStep, kThreads = kWarps * kLanes;

// Keys of a tile: fewer where registers or shared memory would not do.
template <class S, int D>
constexpr int kKeys = D > 96 ? 32 : 64;

template <class S, int D>
struct Tiles {
  alignas(16) S queries[kTileRows * kStride<S, D>];
  alignas(16) S keys[kKeys<S, D> * kStride<S, D>];
  alignas(16) S values[kKeys<S, D> * kStride<S, D>];
};

template <class S, int D>
__global__ void __launch_bounds__(kThreads, 3) tiles(AttentionWork work) {
  constexpr int kRow = kStride<S, D>, kBlock = kKeys<S, D>;
  const unsigned head = blockIdx.x % work.heads;
  if (blockIdx.x < work.heads) {
    clear_rest<S, kThreads>(work, work.output, work.queries, head);
    work.queries.for_rest([&](int64_t row) {
      if (threadIdx.x == 0) work.lse[head * work.queries.rows + row] = -INFINITY;
    });
  }
  const Piece piece = work.piece(false, blockIdx.x / work.heads);
  if (piece.count == 0) return;
  auto& shared = asked_memory<Tiles<S, D>>();
  load_tile<S, D, kThreads>(work, work.q, work.queries, head, piece.begin, piece.count, shared.queries);

  const int first_row = warp_index() * kStep;
  const bool busy = first_row < piece.count;
  S* own = shared.queries + first_row * kRow;
  const KeepMask keep_mask(work, head);
  float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};  // the maximum in base 2
  Sums output[D / kStep];
#pragma unroll
  for (Sums& sums : output) clear(sums);

  Ranges ranges(work, true, piece.document);
  while (ranges.next()) {
    for (int64_t first = ranges.begin; first < ranges.end; first += kBlock) {
      const int count = ranges.end - first < kBlock ? static_cast<int>(ranges.end - first) : kBlock;
      __syncthreads();
      load_tile<S, D, kThreads>(work, work.k, work.keys, head, first, count, shared.keys);
      load_tile<S, D, kThreads>(work, work.v, work.keys, head, first, count, shared.values);
      __syncthreads();
      if (!busy) continue;

      Sums scores[kBlock / kStep];
#pragma unroll
      for (Sums& sums : scores) clear(sums);
#pragma unroll
      for (int k = 0; k < D; k += kStep) {
        const Left<S> left = left_of_rows(own + k, kRow);
#pragma unroll
        for (int j = 0; j < kBlock; j += kStep) {
          if (j < count) multiply_add(scores[j / kStep], left, right_of_rows(shared.keys + j * kRow + k, kRow));
        }
      }

      float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int j = 0; j < kBlock; j += kStep) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& score = scores[j / kStep].at[half][i];
            const int column = j + sum_column(half, i);
            score = column < count && work.keys.has(first + column) ? score * work.scale : -INFINITY;
            largest[i / 2] = fmaxf(largest[i / 2], score);
          }
        }
      }
      float base[2], rescale[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float highest = fmaxf(maximum[r], row_maximum(largest[r]) * kLog2E);
        base[r] = highest == -INFINITY ? 0.0f : highest;  // no key yet
        rescale[r] = exp2f(maximum[r] - base[r]);
        maximum[r] = highest;
        total[r] *= rescale[r];
      }
#pragma unroll
      for (Sums& sums : output) {
#pragma unroll
        for (int i = 0; i < 8; ++i) sums.at[i / 4][i % 4] *= rescale[i % 4 / 2];
      }
#pragma unroll
      for (int j = 0; j < kBlock; j += kStep) {
        if (j >= count) continue;
        Sums& weights = scores[j / kStep];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& weight = weights.at[half][i];
            weight = exp2f(fmaf(weight, kLog2E, -base[i / 2]));
            total[i / 2] += weight;
          }
        }
        if (!keep_mask.all) {
          const int bits = keep_mask.sixteen(piece.begin + first_row, first + j);
          const int keep[2] = {shuffle(bits, sum_row(0)), shuffle(bits, sum_row(2))};
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            if (!(keep[i % 4 / 2] >> sum_column(i / 4, i) & 1)) weights.at[i / 4][i % 4] = 0;
          }
        }
        const Left<S> left = left_of_sums<S>(weights);
#pragma unroll
        for (int column = 0; column < D; column += kStep) {
          multiply_add(output[column / kStep], left, right_of_columns(shared.values + j * kRow + column, kRow));
        }
      }
    }
  }

  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] = row_sum(total[r]);
    inverse[r] = total[r] == 0 ? 0.0f : work.dropout_scale / total[r];
    const int row = first_row + sum_row(2 * r);
    if (lane_index() % 4 == 0 && row < piece.count) {
      work.lse[head * work.queries.rows + piece.begin + row] = fmaf(maximum[r], kLn2, logf(total[r]));
    }
  }
  __syncthreads();
  if (!busy) return;
#pragma unroll
  for (int column = 0; column < D; column += kStep) {
    Sums& sums = output[column / kStep];
#pragma unroll
    for (int i = 0; i < 8; ++i) sums.at[i / 4][i % 4] *= inverse[i % 4 / 2];
    put(sums, 1.0f, own + column, kRow);
  }
  warp_barrier();
  const int rows = piece.count - first_row < kStep ? piece.count - first_row : kStep;
  store_rows<S, D>(work, work.output, head, piece.begin + first_row, rows, 0, D, own);
}

}  // namespace forward
}  // namespace spanbert
