// Gradients of attention with tensor cores: a block for each tile of rows of one document and head, 16 rows a warp.
//
// The weights are computed again (FlashAttention, Dao et al. 2022), W from the log-sum-exp and P from W:
//   W = exp(Q K' scale - lse),   P = W / mass,   dV = P' dO,   dP = dO V',   dS = P * (dP - delta),   dQ = dS K scale,
//   dK = dS' Q scale
// with mass = rowsum(W) and delta = rowsum(P * dP). A lse of 1000 is rounded by 3e-5, so W does not add up to 1, and
// where one weight is nearly 1, dS is a difference far smaller than that; delta = rowsum(dO * O) would leave the
// rounding of O in it. With dropout, the factors (0 or 1 / (1 - p)) multiply P in dV and dP in dS: 0 or 1 at once,
// 1 / (1 - p) when results are written, so that nothing is rounded between dP and its difference to delta.
//
// Both kernels are one text: a tile of own rows meets all rows that it sees or that see it, in a fixed order and
// without atomics. Own rows are queries (own: Q, dO; seen: K, V; sum: dQ), or keys (own: K, V; seen: Q, dO; sums: dK,
// dV) and the scores are transposed, but the same to the last bit, as columns are multiplied in one order: else a
// softmax over one key would have a gradient. Queries meet their keys twice, first for mass and delta, which they leave
// for the kernel of the keys. A short document that sees itself alone is one tile on either side: the block of its keys
// computes mass, delta and dQ as well, the latter from the dS that its warps leave in shared memory, and the kernel of
// the queries passes it over.
#pragma once

#include "attention/cuda_mass.h"
#include "attention/cuda_tiles.h"

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

  alignas(16) S own[2][kTileRows * kStride<S, D>];             // Q and dO, or K and V
  alignas(16) S seen[2][kTileRows * kStride<S, D>];            // K and V, or Q and dO
  alignas(16) S slopes[kTileRows * kSlopeRow];                 // dS' of a whole document
  float lse[kTileRows], delta[kTileRows], inverse[kTileRows];  // of the queries
};

// Whether a document's rows, few enough on either side, see nothing but themselves and are seen by no other.
SPANBERT_DEVICE bool whole(const AttentionWork& work, int64_t document) {
  const auto few = [&](const Side& side) { return side.end(document) - side.begin(document) <= kTileRows; };
  return work.include_self && !work.link_offsets && !work.queries.anchors && !work.keys.anchors &&
         work.cluster_last[document] - work.cluster_first[document] == 1 && few(work.queries) && few(work.keys);
}

// sums = own rows by seen rows, up to `count` of them. One product after the other: their operands are many registers.
template <class S, int D, int Chunks>
SPANBERT_DEVICE void multiply_rows(const S* own, const S* seen, int count, Sums (&sums)[Chunks]) {
#pragma unroll
  for (Sums& each : sums) clear(each);
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

SPANBERT_DEVICE float remade_weight(const AttentionWork& work, float score, float lse) {
  return exp2f(fmaf(score, work.scale, -lse) * kLog2E);
}

// Mass and delta of a warp's 16 queries, of which each lane adds to two.
struct QueryMass {
  RowMass rows[2];

  // The keys of a tile. `q` and `grad` are those of the 16 queries, `k` and `v` the tile's.
  template <class S, int D>
  SPANBERT_DEVICE void meet(const AttentionWork& work, const KeepMask& keep_mask, int64_t first_query,
                            int64_t first_key, int count, const float* lse, const S* q, const S* grad, const S* k,
                            const S* v) {
    constexpr int kRow = kStride<S, D>, kPart = kChunk<D>;
    const float of_rows[2] = {lse[sum_row(0)], lse[sum_row(2)]};
#pragma unroll 1
    for (int part = 0; part < count; part += kPart) {
      Sums scores[kPart / kStep], slopes[kPart / kStep];
      multiply_rows<S, D>(q, k + part * kRow, count - part, scores);
      multiply_rows<S, D>(grad, v + part * kRow, count - part, slopes);
#pragma unroll
      for (int j = 0; j < kPart; j += kStep) {
        if (part + j >= count) continue;
        int bits = 0;
        if (!keep_mask.all) bits = keep_mask.sixteen(first_query, first_key + part + j);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int column = sum_column(i / 4, i % 4), place = part + j + column;
          bool keep = true;
          if (!keep_mask.all) keep = shuffle(bits, sum_row(i % 4)) >> column & 1;
          if (place >= count || !work.keys.has(first_key + place)) continue;
          const float weight = remade_weight(work, scores[j / kStep].at[i / 4][i % 4], of_rows[i % 4 / 2]);
          rows[i % 4 / 2].add(weight, keep ? slopes[j / kStep].at[i / 4][i % 4] : 0.0f);
        }
      }
    }
  }

  // use(row, delta, 1 / mass), for each of the 16 by one lane.
  template <class Use>
  SPANBERT_DEVICE void finish(const Use& use) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows[r].combine(4);
      if (lane_index() % 4 == 0) use(sum_row(2 * r), rows[r].delta(), rows[r].inverse());
    }
  }
};

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
  const int64_t statistics = head * work.queries.rows;
  const int thread = static_cast<int>(threadIdx.x);
  if (!Keys && thread < piece.count) shared.lse[thread] = work.lse[statistics + piece.begin + thread];

  const int first_row = warp_index() % (kTileRows / kStep) * kStep;
  const int first_column = warp_index() / (kTileRows / kStep) * kColumns;
  const bool busy = first_row < piece.count;
  const KeepMask keep_mask(work, head);

  // use(first, count) for every tile that the own rows meet, while it is in shared memory: an only one is loaded once.
  int64_t loaded = -1;
  const auto for_tiles = [&](const auto& use) {
    Ranges ranges(work, !Keys, piece.document);
    while (ranges.next()) {
      for (int64_t first = ranges.begin; first < ranges.end; first += kTileRows) {
        const int count = ranges.end - first < kTileRows ? static_cast<int>(ranges.end - first) : kTileRows;
        if (first != loaded) {
          loaded = first;
          __syncthreads();
          load_tile<S, D, kBlock>(work, Keys ? work.q : work.k, seen_side, head, first, count, shared.seen[0]);
          load_tile<S, D, kBlock>(work, Keys ? work.grad_output : work.v, seen_side, head, first, count,
                                  shared.seen[1]);
          if (Keys && thread < count) {
            const int64_t statistic = statistics + first + thread;
            shared.lse[thread] = work.lse[statistic];
            if (!alone) shared.delta[thread] = work.delta[statistic], shared.inverse[thread] = work.inverse[statistic];
          }
          __syncthreads();
        }
        use(first, count);
      }
    }
  };

  const int own = first_row * kRow;
  if (!Keys) {
    QueryMass mass;
    for_tiles([&](int64_t first, int count) {
      if (!busy) return;
      mass.meet<S, D>(work, keep_mask, piece.begin + first_row, first, count, shared.lse + first_row,
                      shared.own[0] + own, shared.own[1] + own, shared.seen[0], shared.seen[1]);
    });
    mass.finish([&](int row, float delta, float inverse) {
      const int place = first_row + row;
      shared.delta[place] = delta, shared.inverse[place] = inverse;
      if (place >= piece.count) return;
      work.delta[statistics + piece.begin + place] = delta;
      work.inverse[statistics + piece.begin + place] = inverse;
    });
    warp_barrier();
  }

  Sums sums[2][kColumns / kStep];  // dQ, or dK and dV
#pragma unroll
  for (int c = 0; c < kColumns / kStep; ++c) clear(sums[0][c]), clear(sums[1][c]);
  for_tiles([&](int64_t first, int count) {
    if (Keys && alone) {
      if (warp_index() < kTileRows / kStep && first_row < count) {
        QueryMass mass;
        mass.meet<S, D>(work, keep_mask, first + first_row, piece.begin, piece.count, shared.lse + first_row,
                        shared.seen[0] + own, shared.seen[1] + own, shared.own[0], shared.own[1]);
        mass.finish([&](int row, float delta, float inverse) {
          shared.delta[first_row + row] = delta, shared.inverse[first_row + row] = inverse;
        });
      }
      __syncthreads();
    }
    if (!busy) return;

#pragma unroll 1
    for (int part = 0; part < count; part += kPart) {
      Sums scores[kPart / kStep], slopes[kPart / kStep];
      multiply_rows<S, D>(shared.own[0] + own, shared.seen[0] + part * kRow, count - part, scores);
      multiply_rows<S, D>(shared.own[1] + own, shared.seen[1] + part * kRow, count - part, slopes);

#pragma unroll
      for (int j = 0; j < kPart; j += kStep) {
        if (part + j >= count) continue;
        Sums &weights = scores[j / kStep], &slope = slopes[j / kStep];
        const int64_t own_row = piece.begin + first_row, seen_row = first + part + j;
        int bits = 0;
        if (!keep_mask.all) bits = Keys ? keep_mask.sixteen(seen_row, own_row) : keep_mask.sixteen(own_row, seen_row);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int row = sum_row(i), column = sum_column(half, i), place = part + j + column;
            const int query = Keys ? place : first_row + row;
            bool keep = true;
            if (!keep_mask.all) keep = shuffle(bits, Keys ? column : row) >> (Keys ? row : column) & 1;
            const bool visible = first_row + row < piece.count && place < count && seen_side.has(first + place);
            float& weight = weights.at[half][i];
            weight = visible ? remade_weight(work, weight, shared.lse[query]) * shared.inverse[query] : 0.0f;
            const float masked_slope = keep ? slope.at[half][i] : 0.0f;
            slope.at[half][i] = visible ? weight * (masked_slope - shared.delta[query]) : 0.0f;
            if (!keep) weight = 0;
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
  });

  __syncthreads();
  const float factor = work.scale * work.dropout_scale;
  if (!Keys) {
    if (busy) {
      write<S, D, kColumns>(work, work.grad_q, head, piece, first_row, first_column, sums[0], factor, shared.own[0]);
    }
    return;
  }
  if (busy) {
    write<S, D, kColumns>(work, work.grad_v, head, piece, first_row, first_column, sums[1], work.dropout_scale,
                          shared.own[1]);
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
      write<S, D, kColumns>(work, work.grad_q, head, piece, first_row, first_column, sum, factor, shared.seen[0]);
    }
  }
  if (busy) {
    write<S, D, kColumns>(work, work.grad_k, head, piece, first_row, first_column, sums[0], factor, shared.own[0]);
  }
}

}  // namespace backward
}  // namespace spanbert
