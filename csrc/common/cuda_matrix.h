// Products of small matrices by the tensor cores: 16 x 16 by 16 x 16 for each warp, summed in float32.
//
// Lane 4 g + t of a warp holds of a result's 16 x 8 half the rows g and g + 8, columns 2 t and 2 t + 1 (PTX ISA,
// "mma.m16n8k16"). float32 operands are split into a high and a low part of 11 bits each and multiplied three times
// (3xTF32); as tensor cores cut off what does not fit, the sums are carried outside of them (Ootomo and Yokota 2022,
// "Recovering single precision accuracy from Tensor Cores").
#pragma once

#include "common/cuda_threads.h"

namespace spanbert {

constexpr int kStep = 16;  // rows, columns and depth of a product

// A matrix in shared memory: rows so far apart that the lanes of a warp find theirs in different banks.
template <class S>
constexpr int kPad = 16 / static_cast<int>(sizeof(S));

// Two halves of a result, columns 0 .. 7 and 8 .. 15.
struct Sums {
  float at[2][4];  // rows g, g, g + 8, g + 8; columns 2 t, 2 t + 1, 2 t, 2 t + 1
};

SPANBERT_DEVICE int sum_row(int i) { return lane_index() / 4 + i / 2 * 8; }
SPANBERT_DEVICE int sum_column(int half, int i) { return half * 8 + lane_index() % 4 * 2 + i % 2; }

template <class S>
struct Left {
  uint32_t words[4];
};
template <class S>
struct Right {
  uint32_t words[2][2];  // of each half of the result's columns
};
// Two products of depth 8. Which numbers of the depth come first does not matter, if they do on both sides.
template <>
struct Left<float> {
  uint32_t high[2][4], low[2][4];
};
template <>
struct Right<float> {
  uint32_t high[2][2][2], low[2][2][2];  // [half][product]
};

SPANBERT_DEVICE void split(float x, uint32_t& high, uint32_t& low) {
  high = to_tf32(x);
  low = to_tf32(x - bits_to_float(high));
}

template <class S>
SPANBERT_DEVICE uint32_t two_halves(float low, float high) {
  S a, b;
  from_float(low, &a);
  from_float(high, &b);
  return a.bits | static_cast<uint32_t>(b.bits) << 16;
}

// A row of each of four 8 x 8 matrices: those of rows 0 .. 7 and 8 .. 15 first, or those of columns.
template <class S>
SPANBERT_DEVICE const S* rows_first(const S* matrix, int stride) {
  return matrix + lane_index() % 16 * stride + lane_index() / 16 * 8;
}
template <class S>
SPANBERT_DEVICE const S* columns_first(const S* matrix, int stride) {
  return matrix + (lane_index() / 16 * 8 + lane_index() % 8) * stride + lane_index() / 8 % 2 * 8;
}

// left[m][k] = matrix[m][k], for a right side of `right_of_rows`.
template <class S>
SPANBERT_DEVICE Left<S> left_of_rows(const S* matrix, int stride) {
  Left<S> left;
  if constexpr (sizeof(S) == 4) {
#pragma unroll
    for (int p = 0; p < 2; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = lane_index() / 4 + i % 2 * 8, column = 8 * p + lane_index() % 4 + i / 2 * 4;
        split(matrix[row * stride + column], left.high[p][i], left.low[p][i]);
      }
    }
  } else {
    load_matrices(rows_first(matrix, stride), left.words);
  }
  return left;
}

// right[k][n] = matrix[n][k].
template <class S>
SPANBERT_DEVICE Right<S> right_of_rows(const S* matrix, int stride) {
  Right<S> right;
  if constexpr (sizeof(S) == 4) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 8 * half + lane_index() / 4, column = 4 * i + lane_index() % 4;
        split(matrix[row * stride + column], right.high[half][i / 2][i % 2], right.low[half][i / 2][i % 2]);
      }
    }
  } else {
    uint32_t words[4];
    load_matrices(columns_first(matrix, stride), words);
#pragma unroll
    for (int i = 0; i < 4; ++i) right.words[i / 2][i % 2] = words[i];
  }
  return right;
}

// right[k][n] = matrix[k][n], for a left side of `left_of_sums` or `left_of_columns`: there, a product of depth 8 has
// the numbers 0 2 4 6 1 3 5 7 in float32.
template <class S>
SPANBERT_DEVICE Right<S> right_of_columns(const S* matrix, int stride) {
  Right<S> right;
  if constexpr (sizeof(S) == 4) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = i / 2 * 8 + lane_index() % 4 * 2 + i % 2, column = 8 * half + lane_index() / 4;
        split(matrix[row * stride + column], right.high[half][i / 2][i % 2], right.low[half][i / 2][i % 2]);
      }
    }
  } else {
    uint32_t words[4];
    load_matrices_transposed(rows_first(matrix, stride), words);
#pragma unroll
    for (int i = 0; i < 4; ++i) right.words[i / 2][i % 2] = words[i];
  }
  return right;
}

// left[m][k] = matrix[k][m].
template <class S>
SPANBERT_DEVICE Left<S> left_of_columns(const S* matrix, int stride) {
  Left<S> left;
  if constexpr (sizeof(S) == 4) {
#pragma unroll
    for (int p = 0; p < 2; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 8 * p + lane_index() % 4 * 2 + i / 2, column = lane_index() / 4 + i % 2 * 8;
        split(matrix[row * stride + column], left.high[p][i], left.low[p][i]);
      }
    }
  } else {
    load_matrices_transposed(columns_first(matrix, stride), left.words);
  }
  return left;
}

// A result, rounded to S, is a left side as it lies.
template <class S>
SPANBERT_DEVICE Left<S> left_of_sums(const Sums& sums) {
  Left<S> left;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float (&at)[4] = sums.at[half];
    if constexpr (sizeof(S) == 4) {
      split(at[0], left.high[half][0], left.low[half][0]);
      split(at[2], left.high[half][1], left.low[half][1]);
      split(at[1], left.high[half][2], left.low[half][2]);
      split(at[3], left.high[half][3], left.low[half][3]);
    } else {
      left.words[2 * half] = two_halves<S>(at[0], at[1]);
      left.words[2 * half + 1] = two_halves<S>(at[2], at[3]);
    }
  }
  return left;
}

// sums += left right.
template <class S>
SPANBERT_DEVICE void multiply_add(Sums& sums, const Left<S>& left, const Right<S>& right) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if constexpr (sizeof(S) == 4) {
      // The small terms, then each depth of 8 of the large ones.
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        float product[4] = {0, 0, 0, 0};
        if (part > 0) multiply_tf32(product, left.high[part - 1], right.high[half][part - 1]);
#pragma unroll
        for (int p = 0; p < 2 && part == 0; ++p) {
          multiply_tf32(product, left.low[p], right.high[half][p]);
          multiply_tf32(product, left.high[p], right.low[half][p]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.at[half][i] += product[i];
      }
    } else {
      multiply_halves(sums.at[half], left.words, right.words[half], S{});
    }
  }
}

SPANBERT_DEVICE void clear(Sums& sums) {
#pragma unroll
  for (int i = 0; i < 8; ++i) sums.at[i / 4][i % 4] = 0;
}

// The sums times a factor, as 16 x 16 numbers in shared memory.
template <class S>
SPANBERT_DEVICE void put(const Sums& sums, float factor, S* matrix, int stride) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      from_float(sums.at[half][i] * factor, matrix + sum_row(i) * stride + sum_column(half, i));
    }
  }
}

// Over the four lanes that hold a row.
SPANBERT_DEVICE float row_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}
SPANBERT_DEVICE float row_maximum(float value) {
  value = fmaxf(value, shuffle_xor(value, 1));
  return fmaxf(value, shuffle_xor(value, 2));
}

}  // namespace spanbert
