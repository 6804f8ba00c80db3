// Kernels that go document by document over what a query sees, a warp for each row and head: the documents' weights in
// a joint softmax, and attention with a softmax of its own for each document, averaged. Its backward is that of
// attention/cuda_backward.cuh, with a mass and a delta for each document, and in base e.
#pragma once

#include "attention/cuda_rows.h"

namespace spanbert {
namespace documents {

using rows::add_rows;
using rows::dot;
using rows::find_row;
using rows::kThreads;
using rows::meet_keys;
using rows::Softmax;
using rows::stage;
using rows::Staged;
using rows::write;

struct DocumentsWork {
  AttentionWork attention;
  int64_t places;             // documents of the largest cluster
  float* weights;             // [query rows, heads, places]
  const int64_t* slots;       // [links], PairStatistics.slots, or null
  const int64_t* back_slots;  // [links]
  int64_t size;               // statistics of a head
  float* lse;                 // [heads, size]
  float* delta;               // [heads, size]
  float* inverse;             // [heads, size]: 1 / mass
  float* share;               // [heads, query rows]: 1 / documents seen

  // Where the statistics of a query row and a document are, `slot` being those of row 0: within the head's.
  SPANBERT_DEVICE int64_t statistic(int64_t slot, int64_t row, int64_t head) const {
    const int64_t place = slot + row, last = size - 1;
    return head * size + (place < 0 ? 0 : place < last ? place : last);
  }
};

// The documents with keys that a document's queries see, and their places in its cluster.
struct Seen {
  const DocumentsWork& work;
  const int64_t document;
  int64_t now, stop;
  int64_t place, begin, end;  // of the current document: its keys
  int64_t slot;               // in pairs: where the statistics of query row 0 would be

  SPANBERT_DEVICE Seen(const DocumentsWork& work, int64_t document)
      : work(work), document(document), now(0), stop(0), place(0), begin(0), end(0), slot(0) {
    const AttentionWork& attention = work.attention;
    if (document < 0) return;
    now = attention.link_offsets ? attention.link_offsets[document] : attention.cluster_first[document];
    stop = attention.link_offsets ? attention.link_offsets[document + 1] : attention.cluster_last[document];
  }

  SPANBERT_DEVICE bool next() {
    const AttentionWork& attention = work.attention;
    while (now < stop) {
      const int64_t item = now++, target = attention.link_offsets ? attention.links[item] : item;
      if (target < 0 || target >= attention.keys.documents) continue;
      if (!attention.link_offsets && target == document && !attention.include_self) continue;
      place = target - attention.cluster_first[document];
      begin = attention.keys.begin(target), end = attention.keys.end(target);
      slot = work.slots ? work.slots[item] : place * attention.queries.rows;
      if (begin < end && 0 <= place && (work.weights == nullptr || place < work.places)) return true;
    }
    return false;
  }
};

// A value for each place: every one by the lane that its place names, so that what comes later overwrites.
SPANBERT_DEVICE void set_all(float* of_places, int64_t places, float value) {
  for (int64_t place = lane_index(); place < places; place += kLanes) of_places[place] = value;
}
SPANBERT_DEVICE void set(float* of_places, int64_t place, float value) {
  if (place % kLanes == lane_index()) of_places[place] = value;
}

template <class S, int N>
__global__ void __launch_bounds__(kThreads, 3) weights(DocumentsWork work) {
  const AttentionWork& attention = work.attention;
  auto& staged = shared_memory<Staged<N>>();
  int64_t row, head;
  if (!find_row(attention, attention.queries.rows, row, head)) return;
  float* query = staged.row[warp_index()][0];
  float* to = work.weights + (row * attention.heads + head) * work.places;
  set_all(to, work.places, 0.0f);
  const int64_t document = attention.queries.document_of(row);
  if (document < 0) return;
  stage<S, N>(attention, attention.q, row, head, query);
  warp_barrier();
  const float lse = attention.lse[head * attention.queries.rows + row];
  Seen seen(work, document);
  while (seen.next()) {
    float mass = 0;
    for (int64_t key = seen.begin + lane_index(); key < seen.end; key += kLanes) {
      mass += expf(dot<S>(attention, query, attention.k, key, head) * attention.scale - lse);
    }
    set(to, seen.place, warp_sum(mass));
  }
}

template <class S, int N>
__global__ void __launch_bounds__(kThreads, 3) pairwise_forward(DocumentsWork work) {
  const AttentionWork& attention = work.attention;
  auto& staged = shared_memory<Staged<N>>();
  int64_t row, head;
  if (!find_row(attention, attention.queries.rows, row, head)) return;
  float* query = staged.row[warp_index()][0];
  const int64_t document = attention.queries.document_of(row);
  const KeepMask keep_mask(attention, head);
  if (document >= 0) stage<S, N>(attention, attention.q, row, head, query);
  warp_barrier();
  Columns<N> sum;
  fill(sum, 0.0f);
  int count = 0;
  Seen seen(work, document);
  while (seen.next()) {
    Softmax<N> softmax;
    meet_keys<S>(attention, keep_mask, query, row, head, seen.begin, seen.end, softmax);
    const float lse = softmax.lse();
    if (lane_index() == 0) work.lse[work.statistic(seen.slot, row, head)] = lse;
    add(sum, 1.0f / warp_sum(softmax.total), softmax.sum);
    ++count;
  }
  const float share = count > 0 ? 1.0f / static_cast<float>(count) : 0.0f;
  write<S>(attention, attention.output, row, head, sum, share * attention.dropout_scale);
}

template <class S, int N>
__global__ void __launch_bounds__(kThreads, 3) pairwise_backward_queries(DocumentsWork work) {
  const AttentionWork& attention = work.attention;
  auto& staged = shared_memory<Staged<N>>();
  int64_t row, head;
  if (!find_row(attention, attention.queries.rows, row, head)) return;
  float *query = staged.row[warp_index()][0], *grad = staged.row[warp_index()][1];
  const int64_t document = attention.queries.document_of(row);
  const KeepMask keep_mask(attention, head);
  if (document >= 0) {
    stage<S, N>(attention, attention.q, row, head, query);
    stage<S, N>(attention, attention.grad_output, row, head, grad);
  }
  warp_barrier();
  // Of a key, which must be one: its weight, not normalised, and the slope of its weight.
  float lse = 0;
  const auto weigh = [&](int64_t key, float& slope) {
    slope = keep_mask.one(row, key) ? dot<S>(attention, grad, attention.v, key, head) : 0.0f;
    return expf(fmaf(dot<S>(attention, query, attention.k, key, head), attention.scale, -lse));
  };
  Columns<N> sum;
  fill(sum, 0.0f);
  int count = 0;
  Seen seen(work, document);
  while (seen.next()) {
    const int64_t statistic = work.statistic(seen.slot, row, head);
    lse = work.lse[statistic];
    RowMass mass;
    for (int64_t key = seen.begin + lane_index(); key < seen.end; key += kLanes) {
      float slope;
      const float weight = weigh(key, slope);
      mass.add(weight, slope);
    }
    mass.combine(kLanes);
    const float delta = mass.delta(), inverse = mass.inverse();
    if (lane_index() == 0) work.delta[statistic] = delta, work.inverse[statistic] = inverse;
    for (int64_t first = seen.begin; first < seen.end; first += kLanes) {
      const bool inside = first + lane_index() < seen.end;
      float slope = 0, weight = 0;
      if (inside) weight = weigh(first + lane_index(), slope);
      add_rows<S>(attention, attention.k, first, head, ballot(inside), weight * inverse * (slope - delta), sum);
    }
    ++count;
  }
  const float share = count > 0 ? 1.0f / static_cast<float>(count) : 0.0f;
  if (lane_index() == 0) work.share[head * attention.queries.rows + row] = share;
  write<S>(attention, attention.grad_q, row, head, sum, share * attention.scale * attention.dropout_scale);
}

template <class S, int N>
__global__ void __launch_bounds__(kThreads, 3) pairwise_backward_keys(DocumentsWork work) {
  const AttentionWork& attention = work.attention;
  auto& staged = shared_memory<Staged<N>>();
  int64_t row, head;
  if (!find_row(attention, attention.keys.rows, row, head)) return;
  float *key = staged.row[warp_index()][0], *value = staged.row[warp_index()][1];
  const int64_t document = attention.keys.document_of(row);
  Columns<N> sum_key, sum_value;
  fill(sum_key, 0.0f), fill(sum_value, 0.0f);
  if (document >= 0) {
    const int64_t place = document - attention.cluster_first[document];
    const KeepMask keep_mask(attention, head);
    stage<S, N>(attention, attention.k, row, head, key);
    stage<S, N>(attention, attention.v, row, head, value);
    warp_barrier();
    Ranges ranges(attention, false, document);
    while (ranges.next()) {
      const int64_t slot = work.back_slots ? work.back_slots[ranges.place - 1] : place * attention.queries.rows;
      for (int64_t first = ranges.begin; first < ranges.end; first += kLanes) {
        const int64_t query = first + lane_index();
        const bool seen = query < ranges.end && attention.queries.has(query);
        float weight = 0, slope = 0;
        if (seen) {
          const float score = dot<S>(attention, key, attention.q, query, head);
          const bool keep = keep_mask.one(query, row);
          const float share = work.share[head * attention.queries.rows + query];
          const int64_t statistic = work.statistic(slot, query, head);
          weight = expf(fmaf(score, attention.scale, -work.lse[statistic])) * work.inverse[statistic] * share;
          slope = keep ? dot<S>(attention, value, attention.grad_output, query, head) : 0.0f;
          slope = weight * (slope - work.delta[statistic]);
          if (!keep) weight = 0;
        }
        const unsigned lanes = ballot(seen);
        add_rows<S>(attention, attention.q, first, head, lanes, slope, sum_key);
        add_rows<S>(attention, attention.grad_output, first, head, lanes, weight, sum_value);
      }
    }
  }
  write<S>(attention, attention.grad_k, row, head, sum_key, attention.scale * attention.dropout_scale);
  write<S>(attention, attention.grad_v, row, head, sum_value, attention.dropout_scale);
}

}  // namespace documents
}  // namespace spanbert
