// What the pair_pool binding hands to the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/storage.h"

namespace spanbert {

enum class PairOperation : int { take, product, sum, difference, quotient, distance, feature };

// A block of the output: `operation` of two of a pair's rows, each x (0) or y (1).
struct PairPart {
  PairOperation operation;
  int left, right;
  int64_t offset;  // its first column in the output

  bool reads(int side) const {
    if (operation == PairOperation::feature) return false;
    return left == side || (operation != PairOperation::take && right == side);
  }
};

// Dense rows that pairs choose from. Index -1 is the sentinel.
struct PairRows {
  const void* rows;
  int64_t stride, columns;
  const void* sentinel;
};

struct PairPoolCall {
  Storage storage;
  PairRows side[2];             // x, y
  const int64_t* pairs;         // [N, 2], in range where they are kept
  const bool* mask;             // [N], or null; pairs that are not kept give zeros
  const void* features;         // [R, feature_columns], contiguous, or null
  const int64_t* feature_rows;  // [N]
  int64_t feature_columns;      // E
  const PairPart* parts;
  int64_t part_count;
  bool summed;   // all parts have offset 0, and are added up
  void* output;  // [N, output_columns], contiguous
  int64_t output_columns;

  bool kept(int64_t pair) const { return mask == nullptr || mask[pair]; }
};

struct PairPoolGrads {
  PairPoolCall call;   // without an output
  const void* output;  // [N, output_columns], dense rows: the gradient of the output
  int64_t output_stride;
  // Of one tensor: the pairs that read its row r are readers[begin[r] .. begin[r + 1] - 1]. Behind its rows stands the
  // sentinel.
  const int64_t* begin;
  const int64_t* readers;
  void* gradient;  // [rows, columns], contiguous
  int64_t rows, columns;
  void* sentinel;  // [columns], or null
};

// Pairs first .. last - 1.
SPANBERT_DECLARE(void pair_pool_forward(const PairPoolCall& call, int64_t first, int64_t last))
// Columns left .. right - 1 of the gradient's rows first .. last - 1: of x (side 0), y (1) or the features (2).
SPANBERT_DECLARE(void pair_pool_backward(const PairPoolGrads& grads, int side, int64_t first, int64_t last,
                                         int64_t left, int64_t right))

}  // namespace spanbert
