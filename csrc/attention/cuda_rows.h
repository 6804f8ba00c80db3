// A row of one head that a warp takes alone, and its meetings with rows of the other side: for kernels without tensor
// cores. Scores are the lanes' own, one row of the other side each; sums over rows are spread over the lanes by
// columns.
#pragma once

#include "attention/cuda_mass.h"

namespace spanbert {
namespace rows {

constexpr int kWarps = 4, kThreads = kWarps * kLanes;

// Two rows, in float32: q and the gradient of its output, or k and v.
template <int N>
struct Staged {
  float row[kWarps][2][N * kLanes];
};

// Head and row of this warp; false where there is none.
SPANBERT_DEVICE bool find_row(const AttentionWork& work, int64_t rows, int64_t& row, int64_t& head) {
  row = int64_t{blockIdx.x / work.heads} * kWarps + warp_index(), head = blockIdx.x % work.heads;
  return row < rows;
}

template <class S, int N>
SPANBERT_DEVICE void stage(const AttentionWork& work, const HeadRows& rows, int64_t row, int64_t head, float* to) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int column = i * kLanes + lane_index();
    to[column] = column < work.dim ? to_float(rows.at<S>(row, head)[column]) : 0.0f;
  }
}

// Of a staged row and one in memory; each lane its own.
template <class S>
SPANBERT_DEVICE float dot(const AttentionWork& work, const float* staged, const HeadRows& rows, int64_t row,
                          int64_t head) {
  constexpr int N = 16 / sizeof(S);
  const S* from = rows.at<S>(row, head);
  float sum = 0;
#pragma unroll 4
  for (int column = 0; column < work.dim; column += N) {
    const Columns<N> loaded = unpack(load<N>(from + column, work.dim - column, rows.aligned));
#pragma unroll
    for (int v = 0; v < N; ++v) sum = fmaf(staged[column + v], loaded.at[v], sum);
  }
  return sum;
}

// sum += factor row, for the rows whose lanes are in `lanes`, each with its lane's factor. A warp.
template <class S, int N>
SPANBERT_DEVICE void add_rows(const AttentionWork& work, const HeadRows& rows, int64_t first, int64_t head,
                              unsigned lanes, float factor, Columns<N>& sum) {
  while (lanes != 0) {
    const int lane = lowest_bit(lanes);
    lanes &= lanes - 1;
    const S* from = rows.at<S>(first + lane, head);
    const float each = shuffle(factor, lane);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int column = i * kLanes + lane_index();
      if (column < work.dim) sum.at[i] = fmaf(each, to_float(from[column]), sum.at[i]);
    }
  }
}

template <class S, int N>
SPANBERT_DEVICE void write(const AttentionWork& work, const HeadRows& rows, int64_t row, int64_t head,
                           const Columns<N>& sum, float factor) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int column = i * kLanes + lane_index();
    if (column < work.dim) from_float(sum.at[i] * factor, rows.at<S>(row, head) + column);
  }
}

// A softmax that grows: what was summed under an older maximum is rescaled.
template <int N>
struct Softmax {
  float maximum = -INFINITY, total = 0;  // `total` of this lane's rows
  Columns<N> sum;

  SPANBERT_DEVICE Softmax() { fill(sum, 0.0f); }

  // This lane's score (-inf for none) as a weight under the maximum of all.
  SPANBERT_DEVICE float weigh(float score) {
    const float largest = fmaxf(maximum, warp_maximum(score)), base = largest == -INFINITY ? 0.0f : largest;
    const float rescale = expf(maximum - base), weight = expf(score - base);
    maximum = largest;
    total = fmaf(total, rescale, weight);
    scale(sum, rescale);
    return weight;
  }
  SPANBERT_DEVICE float lse() const { return maximum + logf(warp_sum(total)); }
};

// The rows begin .. end - 1 of the keys, added to a query row's softmax.
template <class S, int N>
SPANBERT_DEVICE void meet_keys(const AttentionWork& work, const KeepMask& keep_mask, const float* query, int64_t row,
                               int64_t head, int64_t begin, int64_t end, Softmax<N>& softmax) {
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t key = first + lane_index();
    const bool seen = key < end && work.keys.has(key);
    const float score = seen ? dot<S>(work, query, work.k, key, head) * work.scale : -INFINITY;
    float weight = softmax.weigh(score);
    if (seen && !keep_mask.one(row, key)) weight = 0;
    add_rows<S>(work, work.v, first, head, ballot(seen), weight, softmax.sum);
  }
}

}  // namespace rows
}  // namespace spanbert
