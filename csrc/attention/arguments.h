// What the raw operators of attention take beside queries, keys and values.
#pragma once

#include "common/arguments.h"

namespace spanbert {

// ops/attention/work.py: AttentionWork
struct AttentionArguments {
  Tensor documents;
  OptionalTensor link_offsets, links, back_offsets, back_links, query_tiles, key_tiles;
  int64_t max_seqlen = 0, tiles = -1, tiles_over_64 = -1, tiles_over_128 = -1, pairs_over_128 = -1;
  bool include_self = false, anchor_queries = false, anchor_keys = false, clustered = false;

  auto fields() {
    return std::tie(documents, link_offsets, links, back_offsets, back_links, query_tiles, key_tiles, max_seqlen, tiles,
                    tiles_over_64, tiles_over_128, pairs_over_128, include_self, anchor_queries, anchor_keys,
                    clustered);
  }
};

// ops/attention/relative.py: DistanceTerms
struct DistanceArguments {
  int64_t window = -1;
  OptionalTensor index, bias, keys, queries;

  auto fields() { return std::tie(window, index, bias, keys, queries); }
};

// ops/attention/work.py: PairStatistics. A softmax for each pair of documents: where the statistics of a pair lie,
// `[heads, size]`. Query row r with the document at place p of its cluster: p * query rows + r; with links those of
// link l: slots[l] + r.
struct PairArguments {
  OptionalTensor slots, back_slots;
  int64_t size = 0;

  auto fields() { return std::tie(slots, back_slots, size); }
};

}  // namespace spanbert
