// What the binding of attention by distance hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "attention/call.h"

namespace spanbert {

// A multiple of the columns of a panel, of each instruction set.
constexpr int64_t kTableAlignment = 64;
// What a table of distances has on both sides beyond the longest document: blocks are read in whole vectors.
constexpr int64_t kDistanceMargin = 16;

// One side of a pair, the query's or the key's, whose products with the rows of a table are added to the scores: for
// the keys' table those of the queries, and the other way round. The rows are packed as columns, in an order in which
// mostly they ascend with the distance of the other from this one; the pointers are to distance 0.
struct DistanceSide {
  const int32_t* column;
  const uint8_t *ascending, *equal;  // so many columns from here on follow each other, or are the same
  int64_t
      shift;  // a row's column is shift + row or, where they are in reverse, shift - row; without a place if outside
  bool reversed;
  Rows table;  // no data: absent

  int64_t column_of(int64_t row) const { return reversed ? shift - row : shift + row; }
};

struct DistanceCall {
  AttentionCall attention;
  int64_t window;   // keys that a query sees before and behind it
  int64_t rows;     // of the tables
  int64_t columns;  // of a packed table
  int64_t most;     // the largest distance that has a place in the tables of distances
  DistanceSide keys, queries;
  const int64_t* index;  // the row of each distance, to distance 0; nullptr where there are no tables
  Rows bias;             // [rows, heads]; no data: absent
  void* packed;          // of all heads, as `PackedTables` says

  int64_t wide() const { return (attention.head_dim + 15) / 16 * 16; }
  // Numbers in `packed` for a head: both tables twice, and the bias by distance.
  int64_t packed_numbers() const { return 2 * columns * (attention.head_dim + wide()) + distances(); }
  // Numbers for the gradients of a head's tables: both, and the bias by distance.
  int64_t sum_numbers() const { return 2 * columns * wide() + distances(); }
  int64_t distances() const { return bias.data != nullptr ? 2 * most + 1 : 0; }
};

// Queries `first` .. last - 1 of the document whose rows are begin .. begin + tokens - 1.
struct DistanceTask {
  int64_t begin, tokens, first, last;
};

// The rows of a task, and its head.
struct DistanceNext {
  int64_t begin = 0, rows = 0, head = 0;
};

struct DistanceGrads {
  AttentionGrads attention;
  Rows bias, keys, queries;
  void* sums;  // of the tables, for each part of the work and each head
  int64_t parts;
};

}  // namespace spanbert
