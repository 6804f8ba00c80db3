// Attention of single rows, a warp for each row and head: for anchors, of which a tile would hold one, for float32
// and for heads wider than the matrix kernels take. The softmax and the gradients are those of cuda_forward.cuh and
// cuda_backward.cuh, in base e.
#pragma once

#include "attention/cuda_rows.h"

namespace spanbert {
namespace rows {

template <class S, int N>
__global__ void __launch_bounds__(kThreads, 4) forward(AttentionWork work) {
  auto& staged = shared_memory<Staged<N>>();
  int64_t row, head;
  if (!find_row(work, work.queries.rows, row, head)) return;
  float* query = staged.row[warp_index()][0];
  const int64_t document = work.queries.document_of(row);
  Softmax<N> softmax;
  if (document >= 0) {
    const KeepMask keep_mask(work, head);
    stage<S, N>(work, work.q, row, head, query);
    warp_barrier();
    Ranges ranges(work, true, document);
    while (ranges.next()) meet_keys<S>(work, keep_mask, query, row, head, ranges.begin, ranges.end, softmax);
  }
  const float lse = softmax.lse(), total = warp_sum(softmax.total);
  write<S>(work, work.output, row, head, softmax.sum, total == 0 ? 0.0f : work.dropout_scale / total);
  if (lane_index() == 0) work.lse[head * work.queries.rows + row] = lse;
}

// Own rows are queries, or keys, as in cuda_backward.cuh.
template <class S, int N, bool Keys>
__global__ void __launch_bounds__(kThreads, N > 4 ? 3 : 4) backward(AttentionWork work) {
  auto& staged = shared_memory<Staged<N>>();
  const Side &own_side = work.side(Keys), &seen_side = work.side(!Keys);
  const HeadRows &seen0 = Keys ? work.q : work.k, &seen1 = Keys ? work.grad_output : work.v;
  int64_t row, head;
  if (!find_row(work, own_side.rows, row, head)) return;
  float *own0 = staged.row[warp_index()][0], *own1 = staged.row[warp_index()][1];
  const int64_t document = own_side.document_of(row);
  Columns<N> sum0, sum1;
  fill(sum0, 0.0f), fill(sum1, 0.0f);
  if (document >= 0) {
    const KeepMask keep_mask(work, head);
    const float* lse = work.lse + head * work.queries.rows;
    float* delta = work.delta + head * work.queries.rows;
    float* inverse = work.inverse + head * work.queries.rows;
    stage<S, N>(work, Keys ? work.k : work.q, row, head, own0);
    stage<S, N>(work, Keys ? work.v : work.grad_output, row, head, own1);
    warp_barrier();
    const float own_lse = Keys ? 0.0f : lse[row];
    float own_delta = 0, own_inverse = 0;
    // The weight of a pair before dropout, not normalised, the slope of it, and whether dropout keeps it.
    const auto weigh = [&](int64_t other, float& slope, bool& keep) {
      keep = Keys ? keep_mask.one(other, row) : keep_mask.one(row, other);
      slope = keep ? dot<S>(work, own1, seen1, other, head) : 0.0f;
      return expf(fmaf(dot<S>(work, own0, seen0, other, head), work.scale, -(Keys ? lse[other] : own_lse)));
    };
    if (!Keys) {
      RowMass mass;
      Ranges ranges(work, true, document);
      while (ranges.next()) {
        for (int64_t key = ranges.begin + lane_index(); key < ranges.end; key += kLanes) {
          if (!work.keys.has(key)) continue;
          float slope;
          bool keep;
          const float weight = weigh(key, slope, keep);
          mass.add(weight, slope);
        }
      }
      mass.combine(kLanes);
      own_delta = mass.delta(), own_inverse = mass.inverse();
      if (lane_index() == 0) delta[row] = own_delta, inverse[row] = own_inverse;
    }
    Ranges ranges(work, !Keys, document);
    while (ranges.next()) {
      for (int64_t first = ranges.begin; first < ranges.end; first += kLanes) {
        const int64_t other = first + lane_index();
        const bool seen = other < ranges.end && seen_side.has(other);
        float weight = 0, slope = 0;
        if (seen) {
          bool keep;
          weight = weigh(other, slope, keep) * (Keys ? inverse[other] : own_inverse);
          slope = weight * (slope - (Keys ? delta[other] : own_delta));
          if (!keep) weight = 0;
        }
        const unsigned lanes = ballot(seen);
        add_rows<S>(work, seen0, first, head, lanes, slope, sum0);
        if (Keys) add_rows<S>(work, seen1, first, head, lanes, weight, sum1);
      }
    }
  }
  write<S>(work, Keys ? work.grad_k : work.grad_q, row, head, sum0, work.scale * work.dropout_scale);
  if (Keys) write<S>(work, work.grad_v, row, head, sum1, work.dropout_scale);
}

}  // namespace rows
}  // namespace spanbert
