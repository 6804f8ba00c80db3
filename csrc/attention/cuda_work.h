// What the bindings of attention hand to their CUDA kernels: tensors, who sees whom, dropout.
#pragma once

#include "common/cuda_columns.h"
#include "common/philox.h"

namespace spanbert {

constexpr int kTileRows = 64;  // of a document, as in ops/attention/work.py

// A tensor [rows, heads, head_dim] whose last dimension is dense.
struct HeadRows {
  void* data;
  int64_t row, head;  // strides
  bool aligned;       // 16 bytes can be moved at once, also at a row's end

  template <class S>
  SPANBERT_DEVICE S* at(int64_t row_index, int64_t head_index) const {
    return static_cast<S*>(data) + row_index * row + head_index * head;
  }
};

// The documents' rows of one side, row d for document d on a side of anchors.
struct Side {
  const int64_t* first;  // [documents]
  const int64_t* last;   // [documents], the one after the last row
  int64_t documents, rows;
  bool anchors;

  SPANBERT_DEVICE int64_t begin(int64_t document) const {
    const int64_t row = first[document];
    return row < 0 ? 0 : row < rows ? row : rows;
  }
  SPANBERT_DEVICE int64_t end(int64_t document) const {
    const int64_t row = last[document];
    return row < 0 ? 0 : row < rows ? row : rows;
  }
  // Calls use(row) for the rows before the first document and behind the last, which belong to none.
  template <class Use>
  SPANBERT_DEVICE void for_rest(const Use& use) const {
    const int64_t before = begin(0), last = end(documents - 1), behind = last > before ? last : before;
    for (int64_t row = 0; row < before; ++row) use(row);
    for (int64_t row = behind; row < rows; ++row) use(row);
  }

  // Whether a row inside a range is one of a document: an empty one has no anchor.
  SPANBERT_DEVICE bool has(int64_t row) const { return !anchors || first[row] < last[row]; }

  // The document of a row, -1 for a row of none.
  SPANBERT_DEVICE int64_t document_of(int64_t row) const {
    int64_t low = row;
    if (!anchors) {
      low = 0;
      for (int64_t high = documents; high - low > 1;) {
        const int64_t middle = (low + high) / 2;
        (first[middle] <= row ? low : high) = middle;
      }
    }
    return low < documents && first[low] <= row && row < last[low] ? low : -1;
  }
};

// Rows of one document.
struct Piece {
  int64_t document, begin;
  int count;
};

struct AttentionWork {
  HeadRows q, k, v, output, grad_output;
  HeadRows grad_q, grad_k, grad_v;
  float* lse;    // [heads, query rows], natural
  float* delta;  // [heads, query rows], as `inverse` from one kernel of the backward to the other
  float* inverse;
  unsigned heads;
  int dim;
  float scale;
  const int64_t* seed;  // null: nothing is dropped
  uint32_t threshold;
  float dropout_scale;  // 1 / (1 - p)

  Side queries, keys;
  const int64_t* cluster_first;  // [documents]
  const int64_t* cluster_last;
  const int64_t* link_offsets;  // [documents + 1], or null: the whole cluster
  const int64_t* links;
  const int64_t* back_offsets;
  const int64_t* back_links;
  bool include_self;
  const int32_t* query_tiles;  // [.., 2]
  const int32_t* key_tiles;

  SPANBERT_DEVICE const Side& side(bool of_keys) const { return of_keys ? keys : queries; }

  // A tile of one side; `count` 0 where there is none.
  SPANBERT_DEVICE Piece piece(bool of_keys, int64_t tile) const {
    const int32_t* found = (of_keys ? key_tiles : query_tiles) + 2 * tile;
    const int64_t document = found[0];
    if (document < 0 || document >= queries.documents || found[1] < 0) return {-1, 0, 0};
    const int64_t begin = side(of_keys).begin(document) + found[1], left = side(of_keys).end(document) - begin;
    return {document, begin, left > kTileRows ? kTileRows : left > 0 ? static_cast<int>(left) : 0};
  }
};

// The row ranges that a document's rows meet on the other side: keys that its queries see, or queries that see its
// keys. Its own rows are left out by the ranges' bounds: subtracting them afterwards would cancel.
struct Ranges {
  const AttentionWork& work;
  const Side& side;
  const int64_t* offsets;  // into links; null: the cluster. Not `links`, which are null too where there are none.
  const int64_t* links;
  const int64_t document;
  int64_t place, stop;
  int64_t begin, end;  // of the current range

  SPANBERT_DEVICE Ranges(const AttentionWork& work, bool of_keys, int64_t document)
      : work(work),
        side(work.side(of_keys)),
        offsets(of_keys ? work.link_offsets : work.back_offsets),
        links(of_keys ? work.links : work.back_links),
        document(document),
        place(0),
        stop(work.include_self ? 1 : 2),
        begin(0),
        end(0) {
    if (!offsets) return;
    place = offsets[document], stop = offsets[document + 1];
  }

  // Goes on to the next range with rows in it.
  SPANBERT_DEVICE bool next() {
    while (place < stop) {
      const int64_t now = place++;
      if (offsets) {
        const int64_t target = links[now];
        if (target < 0 || target >= side.documents) continue;
        begin = side.begin(target), end = side.end(target);
      } else {
        const int64_t first = work.cluster_first[document], last = work.cluster_last[document];
        if (first >= last) return false;
        begin = now == 0 ? side.begin(first) : side.end(document);
        end = now == 0 && !work.include_self ? side.begin(document) : side.end(last - 1);
      }
      if (begin < end) return true;
    }
    return false;
  }
};

// Which entries dropout keeps, of one head: those of ops/philox.py.
struct KeepMask {
  bool all;
  uint64_t seed;
  uint32_t threshold, head;

  SPANBERT_DEVICE KeepMask(const AttentionWork& work, int64_t head)
      : all(work.seed == nullptr),
        seed(all ? 0 : static_cast<uint64_t>(*work.seed)),
        threshold(work.threshold),
        head(static_cast<uint32_t>(head)) {}

  SPANBERT_DEVICE bool one(int64_t query, int64_t key) const {
    if (all) return true;
    return word(words(query, key >> 2), static_cast<int>(key & 3)) >= threshold;
  }

  // For 16 queries and keys: lane l gets those of query first_query + l % 16, bit i is key first_key + i. A warp.
  SPANBERT_DEVICE int sixteen(int64_t first_query, int64_t first_key) const {
    const int shift = static_cast<int>(first_key & 3), counters = shift ? 5 : 4;
    int bits = 0;
    for (int c = lane_index() / 16; c < counters; c += 2) {
      const Words found = words(first_query + lane_index() % 16, (first_key >> 2) + c);
#pragma unroll
      for (int w = 0; w < 4; ++w) bits |= static_cast<int>(found.word[w] >= threshold) << (4 * c + w);
    }
    return (bits | shuffle_xor(bits, 16)) >> shift;
  }

  SPANBERT_DEVICE Words words(int64_t query, int64_t counter) const {
    return philox(static_cast<uint32_t>(counter), static_cast<uint32_t>(query), head, 0, seed);
  }
  SPANBERT_DEVICE static uint32_t word(const Words& words, int i) {
    const uint32_t low = i & 1 ? words.word[1] : words.word[0], high = i & 1 ? words.word[3] : words.word[2];
    return i & 2 ? high : low;
  }
};

}  // namespace spanbert
