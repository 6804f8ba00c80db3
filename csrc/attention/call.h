// What the bindings of both attentions hand to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "common/storage.h"

namespace spanbert {

// A tensor [rows, heads, head_dim] whose last dimension is dense.
struct Rows {
  void* data;
  int64_t row, head;  // strides
};

struct Range {
  int64_t begin, end;
};

// What is computed on its own: documents that see some of the same keys. Its queries and its keys are counted from 0
// here; the tables say which rows of the tensors they are. What a document sees are ranges of those keys, ascending,
// apart and not empty.
struct Segment {
  int64_t documents, queries, keys;
  const int64_t* query_first;  // [documents + 1], the queries of each document
  const int64_t* query_rows;   // [queries]
  const int64_t* key_rows;     // [keys]
  const int64_t* range_first;  // [documents + 1], the ranges of each document
  const Range* ranges;
  bool nearly_all;      // each document sees all keys but for its own
  bool sparse = false;  // of one document, and others have some of its keys, too
};

// Of queries and of keys in a small segment, which the kernels of small.h take.
constexpr int64_t kSmall = 128;
inline bool is_small(const Segment& segment) { return segment.queries <= kSmall && segment.keys <= kSmall; }

// The documents whose keys a segment has: the first key of each and, last, their number; and their places in the
// cluster.
struct KeyDocuments {
  const int64_t* first;   // [count + 1]
  const int64_t* places;  // [count]
  int64_t count;
};

// Rows of a tensor that follow each other.
struct RowRange {
  int64_t first, count;
};

struct AttentionCall {
  Storage storage;
  int64_t query_rows, heads, head_dim;
  double scale;
  Dropout dropout;
  Rows q, k, v;
  Rows output;  // of a forward
  void* lse;    // [heads, query_rows], accumulator type
};

struct AttentionGrads {
  Rows output, q, k, v;
};

}  // namespace spanbert
