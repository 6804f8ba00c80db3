// Products of small matrices by the tensor cores: 16 x 16 by 16 x 16 for each warp, summed in float32.
//
// Lane 4 g + t of a warp holds of a result's 16 x 8 half the rows g and g + 8, columns 2 t and 2 t + 1 (PTX ISA,
// "mma.m16n8k16"). Numbers are of 16 bits.
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

// left[m][k] = matrix[m][k].
template <class S>
SPANBERT_DEVICE Left<S> left_of_rows(const S* matrix, int stride) {
  Left<S> left;
  load_matrices(rows_first(matrix, stride), left.words);
  return left;
}

// right[k][n] = matrix[n][k].
template <class S>
SPANBERT_DEVICE Right<S> right_of_rows(const S* matrix, int stride) {
  Right<S> right;
  uint32_t words[4];
  load_matrices(columns_first(matrix, stride), words);
#pragma unroll
  for (int i = 0; i < 4; ++i) right.words[i / 2][i % 2] = words[i];
  return right;
}

// right[k][n] = matrix[k][n].
template <class S>
SPANBERT_DEVICE Right<S> right_of_columns(const S* matrix, int stride) {
  Right<S> right;
  uint32_t words[4];
  load_matrices_transposed(rows_first(matrix, stride), words);
#pragma unroll
  for (int i = 0; i < 4; ++i) right.words[i / 2][i % 2] = words[i];
  return right;
}

// left[m][k] = matrix[k][m].
template <class S>
SPANBERT_DEVICE Left<S> left_of_columns(const S* matrix, int stride) {
  Left<S> left;
  load_matrices_transposed(columns_first(matrix, stride), left.words);
  return left;
}

// A result, rounded to S, is a left side as it lies.
template <class S>
SPANBERT_DEVICE Left<S> left_of_sums(const Sums& sums) {
  Left<S> left;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float (&at)[4] = sums.at[half];
    left.words[2 * half] = two_halves<S>(at[0], at[1]);
    left.words[2 * half + 1] = two_halves<S>(at[2], at[3]);
  }
  return left;
}

// sums += left right.
template <class S>
SPANBERT_DEVICE void multiply_add(Sums& sums, const Left<S>& left, const Right<S>& right) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    multiply_halves(sums.at[half], left.words, right.words[half], S{});
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
