// Gradients of attention with tensor cores: a block for each tile of rows of one document and head, 16 rows a warp.
//
// The weights are computed again from the log-sum-exp (FlashAttention, Dao et al. 2022):
//   P = exp(Q K' scale - lse),   dV = P' dO,   dP = dO V',   dS = P * (dP - delta),   dQ = dS K scale,   dK = dS' Q
//   scale
// with delta = rowsum(dO * O); of dropout's factors, P in dV and dP in dS get theirs. Both kernels are one text: a tile
// of own rows meets all rows that it sees or that see it, in a fixed order and without atomics. Own rows are queries
// (own: Q, dO; seen: K, V; sum: dQ), or keys (own: K, V; seen: Q, dO; sums: dK, dV) and the scores are transposed. A
// short document that sees itself alone is one tile on either side: the block of its keys computes dQ as well, from the
// dS that its warps leave in shared memory, and the kernel of the queries passes it over.
#pragma once

#include "document_attention/cuda_tiles.h"

namespace spanbert {
namespace backward {

// Of the kTileRows rows that pass through shared memory at once, those whose scores are in registers at once.
template <int D>
constexpr int kChunk = D <= 64 ? 32 : 16;

// Of the sums' columns; two warps with the same rows share them where one would run out of registers.
template <int D, bool Keys>
constexpr int kGroups = Keys && D > 64 ? 2 : 1;
template <int D, bool Keys>
constexpr int kThreads = kTileRows / kStep * kGroups<D, Keys> * kLanes;
// For the compiler: 12 warps of a multiprocessor at a time leave 168 registers a thread.
constexpr int kBoundThreads = 384;

template <class S, int D>
struct Tiles {
  static constexpr int kSlopeRow = kTileRows + kPad<S>;

  alignas(16) S own[2][kTileRows * kStride<S, D>];   // Q and dO, or K and V
  alignas(16) S seen[2][kTileRows * kStride<S, D>];  // K and V, or Q and dO
  alignas(16) S slopes[kTileRows * kSlopeRow];       // dS' of a whole document
  float lse[kTileRows], delta[kTileRows];            // of the queries
};

// Whether a document's rows, few enough on either side, see nothing but themselves and are seen by no other.
SPANBERT_DEVICE bool whole(const AttentionWork& work, int64_t document) {
  const auto few = [&](const Side& side) { return side.end(document) - side.begin(document) <= kTileRows; };
  return work.include_self && !work.link_offsets && !work.queries.anchors && !work.keys.anchors &&
         work.cluster_last[document] - work.cluster_first[document] == 1 && few(work.queries) && few(work.keys);
}

// delta of the queries `first` .., whose dO is a tile. A block.
template <class S, int D, int Threads>
SPANBERT_DEVICE void compute_delta(const AttentionWork& work, int64_t head, int64_t first, int count, const S* tile,
                                   float* delta) {
  constexpr int N = 16 / sizeof(S);
  for (int base = warp_index() * 8; base < kTileRows; base += Threads / kLanes * 8) {
    const int row = base + lane_index() / 4;
    float sum = 0;
    for (int column = lane_index() % 4 * N; column < work.dim && row < count; column += 4 * N) {
      const Columns<N> output =
          unpack(load<N>(work.output.at<S>(first + row, head) + column, work.dim - column, work.output.aligned));
#pragma unroll
      for (int v = 0; v < N; ++v) sum = fmaf(output.at[v], to_float(tile[row * kStride<S, D> + column + v]), sum);
    }
    sum = row_sum(sum);
    if (lane_index() % 4 == 0) delta[row] = sum;
  }
}

// sums += own rows by seen rows, up to `count` of them. One product after the other: their operands are many registers.
template <class S, int D, int Chunks>
SPANBERT_DEVICE void multiply_rows(const S* own, const S* seen, int count, Sums (&sums)[Chunks]) {
#pragma unroll
  for (int k = 0; k < D; k += kStep) {
    const Left<S> left = left_of_rows(own + k, kStride<S, D>);
#pragma unroll
    for (int j = 0; j < Chunks; ++j) {
      if (j * kStep < count) {
        multiply_add(sums[j], left, right_of_rows(seen + j * kStep * kStride<S, D> + k, kStride<S, D>));
      }
    }
  }
}

// sums += factors, rounded to S, by 16 seen rows.
template <class S, int D, int Chunks>
SPANBERT_DEVICE void add_product(const Sums& factors, const S* seen, Sums (&sums)[Chunks]) {
  const Left<S> left = left_of_sums<S>(factors);
#pragma unroll
  for (int c = 0; c < Chunks; ++c) multiply_add(sums[c], left, right_of_columns(seen + c * kStep, kStride<S, D>));
}

// A result of the own rows, put where an own tile was.
template <class S, int D, int Columns>
SPANBERT_DEVICE void write(const AttentionWork& work, const HeadRows& rows, int64_t head, const Piece& piece,
                           int first_row, int first_column, const Sums (&sums)[Columns / kStep], float factor,
                           S* tile) {
  S* own = tile + first_row * kStride<S, D>;
#pragma unroll
  for (int c = 0; c < Columns; c += kStep) put(sums[c / kStep], factor, own + first_column + c, kStride<S, D>);
  warp_barrier();
  const int count = piece.count - first_row < kStep ? piece.count - first_row : kStep;
  store_rows<S, D>(work, rows, head, piece.begin + first_row, count, first_column, first_column + Columns, own);
}

template <class S, int D, bool Keys>
__global__ void __launch_bounds__(kBoundThreads, 1) tiles(AttentionWork work) {
  constexpr int kRow = kStride<S, D>, kPart = kChunk<D>, kBlock = kThreads<D, Keys>;
  constexpr int kColumns = D / kGroups<D, Keys>;
  const unsigned head = blockIdx.x % work.heads;
  const Side &own_side = work.side(Keys), &seen_side = work.side(!Keys);
  if (blockIdx.x < work.heads) {
    clear_rest<S, kBlock>(work, Keys ? work.grad_k : work.grad_q, own_side, head);
    if (Keys) clear_rest<S, kBlock>(work, work.grad_v, own_side, head);
  }
  const Piece piece = work.piece(Keys, blockIdx.x / work.heads);
  if (piece.count == 0) return;
  const bool alone = whole(work, piece.document);
  if (!Keys && alone) return;

  auto& shared = asked_memory<Tiles<S, D>>();
  load_tile<S, D, kBlock>(work, Keys ? work.k : work.q, own_side, head, piece.begin, piece.count, shared.own[0]);
  load_tile<S, D, kBlock>(work, Keys ? work.v : work.grad_output, own_side, head, piece.begin, piece.count,
                          shared.own[1]);
  float* lse = work.lse + head * work.queries.rows;
  float* delta = work.delta + head * work.queries.rows;
  const int thread = static_cast<int>(threadIdx.x);
  if (!Keys) {
    __syncthreads();
    compute_delta<S, D, kBlock>(work, head, piece.begin, piece.count, shared.own[1], shared.delta);
    __syncthreads();
    if (thread < piece.count) {
      shared.lse[thread] = lse[piece.begin + thread];
      delta[piece.begin + thread] = shared.delta[thread];
    }
  }

  const int first_row = warp_index() % (kTileRows / kStep) * kStep;
  const int first_column = warp_index() / (kTileRows / kStep) * kColumns;
  const bool busy = first_row < piece.count;
  const Keep keep(work, head);
  Sums sums[2][kColumns / kStep];  // dQ, or dK and dV
#pragma unroll
  for (int c = 0; c < kColumns / kStep; ++c) clear(sums[0][c]), clear(sums[1][c]);

  Ranges ranges(work, !Keys, piece.document);
  while (ranges.next()) {
    for (int64_t first = ranges.begin; first < ranges.end; first += kTileRows) {
      const int count = ranges.end - first < kTileRows ? static_cast<int>(ranges.end - first) : kTileRows;
      __syncthreads();
      load_tile<S, D, kBlock>(work, Keys ? work.q : work.k, seen_side, head, first, count, shared.seen[0]);
      load_tile<S, D, kBlock>(work, Keys ? work.grad_output : work.v, seen_side, head, first, count, shared.seen[1]);
      if (Keys && thread < count) {
        shared.lse[thread] = lse[first + thread];
        if (!alone) shared.delta[thread] = delta[first + thread];
      }
      __syncthreads();
      if (Keys && alone) {
        compute_delta<S, D, kBlock>(work, head, first, count, shared.seen[1], shared.delta);
        __syncthreads();
      }
      if (!busy) continue;

#pragma unroll 1
      for (int part = 0; part < count; part += kPart) {
        Sums scores[kPart / kStep], slopes[kPart / kStep];
#pragma unroll
        for (int j = 0; j < kPart / kStep; ++j) clear(scores[j]), clear(slopes[j]);
        multiply_rows<S, D>(shared.own[0] + first_row * kRow, shared.seen[0] + part * kRow, count - part, scores);
        multiply_rows<S, D>(shared.own[1] + first_row * kRow, shared.seen[1] + part * kRow, count - part, slopes);

#pragma unroll
        for (int j = 0; j < kPart; j += kStep) {
          if (part + j >= count) continue;
          Sums &weights = scores[j / kStep], &slope = slopes[j / kStep];
          const int64_t own_row = piece.begin + first_row, seen_row = first + part + j;
          int bits = 0;
          if (!keep.all) bits = Keys ? keep.sixteen(seen_row, own_row) : keep.sixteen(own_row, seen_row);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int row = sum_row(i), column = sum_column(half, i), place = part + j + column;
              const int query = Keys ? place : first_row + row;
              bool kept = true;
              if (!keep.all) kept = shuffle(bits, Keys ? column : row) >> (Keys ? row : column) & 1;
              const bool visible = first_row + row < piece.count && place < count && seen_side.has(first + place);
              float& weight = weights.at[half][i];
              weight = visible ? exp2f(fmaf(weight, work.scale, -shared.lse[query]) * kLog2E) : 0.0f;
              const float kept_slope = kept ? slope.at[half][i] * work.kept : 0.0f;
              slope.at[half][i] = visible ? weight * (kept_slope - shared.delta[query]) : 0.0f;
              if (!kept) weight = 0;
            }
          }
          if (Keys && alone && first_column == 0) {
            put(slope, 1.0f, shared.slopes + first_row * Tiles<S, D>::kSlopeRow + part + j, Tiles<S, D>::kSlopeRow);
          }
          const int from = (part + j) * kRow + first_column;
          add_product<S, D>(slope, shared.seen[0] + from, sums[0]);
          if (Keys) add_product<S, D>(weights, shared.seen[1] + from, sums[1]);
        }
      }
    }
  }

  __syncthreads();
  if (!Keys) {
    if (busy) {
      write<S, D, kColumns>(work, work.grad_q, head, piece, first_row, first_column, sums[0], work.scale,
                            shared.own[0]);
    }
    return;
  }
  if (busy) {
    write<S, D, kColumns>(work, work.grad_v, head, piece, first_row, first_column, sums[1], work.kept, shared.own[1]);
  }
  if (alone) {
    Sums sum[kColumns / kStep];
#pragma unroll
    for (Sums& each : sum) clear(each);
#pragma unroll
    for (int k = 0; k < kTileRows; k += kStep) {
      if (!busy || k >= piece.count) continue;
      const Left<S> left =
          left_of_columns(shared.slopes + k * Tiles<S, D>::kSlopeRow + first_row, Tiles<S, D>::kSlopeRow);
#pragma unroll
      for (int c = 0; c < kColumns; c += kStep) {
        multiply_add(sum[c / kStep], left, right_of_columns(shared.own[0] + k * kRow + first_column + c, kRow));
      }
    }
    __syncthreads();
    // The queries of a document alone are as many as its keys.
    if (busy) {
      write<S, D, kColumns>(work, work.grad_q, head, piece, first_row, first_column, sum, work.scale, shared.seen[0]);
    }
  }
  if (busy) {
    write<S, D, kColumns>(work, work.grad_k, head, piece, first_row, first_column, sums[0], work.scale, shared.own[0]);
  }
}

}  // namespace backward
}  // namespace spanbert
