// Attention of a document with itself, one head: a block of queries against all keys, then the weights with all values.
//
// Keys are laid out as panels by transposing squares of four-byte words, so that float32 and pairs of bfloat16 are the
// same code; values of bfloat16 lie two keys side by side, those of float32 stay where they are. Weights are summed up
// before they are rounded.
#pragma once

#include <algorithm>

#include "common/rows.h"

namespace spanbert {
namespace SPANBERT_ISA {

constexpr int64_t kQueries = 3 * kTileRows;  // of a block: whole tiles of the scores and of the results
constexpr int64_t kAttentionDepth = 256;     // keys that are summed up by themselves

constexpr int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class E>
class Attention {
  using T = typename E::Element;

 public:
  // Bytes of scratch for documents of up to so many tokens.
  static int64_t scratch_bytes(int64_t max_seqlen, int64_t head_dim) {
    const int64_t keys = panels(max_seqlen) * kTileColumns;
    return aligned(panels(max_seqlen) * panel_bytes(head_dim)) + aligned((keys + 2) * whole(head_dim) * sizeof(T)) +
           aligned(kQueries * keys * sizeof(float)) + aligned(kQueries * keys * sizeof(T)) +
           aligned(kTileRows * kMostVectors * kLanes * sizeof(float));
  }

  Attention(char* scratch, int64_t max_seqlen, int64_t head_dim, float scale)
      : head_dim_(head_dim), scale_(scale), room_(panels(max_seqlen) * kTileColumns) {
    const auto take = [&](int64_t bytes) {
      char* taken = scratch;
      scratch += aligned(bytes);
      return taken;
    };
    keys_ = take(panels(max_seqlen) * panel_bytes(head_dim));
    values_ = reinterpret_cast<T*>(take((room_ + 2) * whole(head_dim) * sizeof(T)));
    scores_ = reinterpret_cast<float*>(take(kQueries * room_ * sizeof(float)));
    weights_ = E::kElements == 1 ? reinterpret_cast<T*>(scores_)  // in place
                                 : reinterpret_cast<T*>(take(kQueries * room_ * sizeof(T)));
    result_ = reinterpret_cast<float*>(take(kTileRows * kMostVectors * kLanes * sizeof(float)));
  }

  // `query`, `key`, `value`: the head's columns in the document's first row; rows are `row` elements apart. `context`
  // gets the head's columns.
  template <class To>
  void run(const T* query, const T* key, const T* value, int64_t row, int64_t tokens, To* context,
           int64_t context_row) {
    tokens_ = tokens;
    pack_keys(key, row);
    const char* b = pack_values(value, row);
    for (int64_t first = 0; first < tokens; first += kQueries) {
      const int64_t queries = std::min(kQueries, tokens - first);
      score(query + first * row, row, queries);
      float inverse[kQueries];
      for (int64_t q = 0; q < queries; ++q) inverse[q] = weigh(q);
      gather(b, E::kElements == 1 ? row * sizeof(T) : whole(head_dim_) * kStepBytes, queries, inverse,
             context + first * context_row, context_row);
    }
  }

 private:
  static int64_t panels(int64_t tokens) { return (tokens + kTileColumns - 1) / kTileColumns; }
  static int64_t panel_bytes(int64_t head_dim) { return steps_of<E>(head_dim) * kTileColumns * kStepBytes; }

  void pack_keys(const T* key, int64_t row) {
    const int64_t steps = steps_of<E>(head_dim_);
    for (int64_t panel = 0; panel < panels(tokens_); ++panel) {
      float* to = reinterpret_cast<float*>(keys_ + panel * panel_bytes(head_dim_));
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t first = panel * kTileColumns + v * kLanes;
        for (int64_t step = 0; step < steps; step += kLanes) {
          Vector<float> block[kLanes];
          for (int r = 0; r < kLanes; ++r) block[r] = words(key, row, first + r, step);
          transpose<float>(block);
          const int64_t count = std::min<int64_t>(kLanes, steps - step);
          for (int64_t s = 0; s < count; ++s) store(to + (step + s) * kTileColumns + v * kLanes, block[s]);
        }
      }
    }
  }

  // The words of a key from `step` on, zeros behind its last column and for keys that are not there.
  Vector<float> words(const T* key, int64_t row, int64_t index, int64_t step) const {
    if (index >= tokens_) return Vector<float>{};
    const T* from = key + index * row + step * E::kElements;
    const int64_t left = head_dim_ - step * E::kElements;
    if (left >= kLanes * E::kElements) return bits_as<Vector<float>>(load(reinterpret_cast<const float*>(from)));
    T some[kLanes * E::kElements] = {};
    std::memcpy(some, from, left * sizeof(T));
    return load(reinterpret_cast<const float*>(some));
  }

  const char* pack_values(const T* value, int64_t row) {
    if constexpr (E::kElements == 1) return reinterpret_cast<const char*>(value);
    const int64_t columns = whole(head_dim_);
    for (int64_t pair = 0; 2 * pair < tokens_; ++pair) {
      const T* even = value + 2 * pair * row;
      const T* odd = 2 * pair + 1 < tokens_ ? even + row : nullptr;
      T* to = values_ + pair * columns * 2;
      for (int64_t c = 0; c < columns; c += kLanes) interleave_pair(even, odd, c, to + 2 * c);
    }
    return reinterpret_cast<const char*>(values_);
  }

  void interleave_pair(const T* even, const T* odd, int64_t c, T* to) const {
    typedef Simd<float>::Bits Bits;
    const int count = static_cast<int>(std::min<int64_t>(kLanes, head_dim_ - c));
    // A bfloat16 is the upper half of the float that it is read as.
    const Bits low = bits_as<Bits>(load_up_to(even + c, count)) >> 16;
    const Bits high = odd ? bits_as<Bits>(load_up_to(odd + c, count)) : Bits{};
    const Bits both = low | high;
    std::memcpy(to, &both, sizeof(both));
  }

  void score(const T* query, int64_t row, int64_t queries) const {
    const int64_t a_row = row * sizeof(T), steps = steps_of<E>(head_dim_);
    for (int64_t panel = 0; panel < panels(tokens_); ++panel) {
      const char* b = keys_ + panel * panel_bytes(head_dim_);
      for (int64_t q = 0; q < queries; q += kTileRows) {
        const auto rows = std::min<int64_t>(kTileRows, queries - q);
        kTiles<E>[kTileVectors - 1][rows](reinterpret_cast<const char*>(query + q* row), a_row, b,
                                          kTileColumns* kStepBytes, steps, scores_ + q* room_ + panel* kTileColumns,
                                          room_, false, {});
      }
    }
  }

  // Scores of a query become weights; returns 1 / their sum.
  float weigh(int64_t q) const {
    float* scores = scores_ + q * room_;
    const int64_t keys = panels(tokens_) * kTileColumns;
    for (int64_t k = tokens_; k < keys; ++k) scores[k] = -INFINITY;
    Vector<float> most = broadcast(-INFINITY);
    for (int64_t k = 0; k < keys; k += kLanes) most = larger(most, load(scores + k));
    const Vector<float> largest = broadcast(largest_of<float>(most) * scale_);
    Vector<float> sum{};
    for (int64_t k = 0; k < keys; k += kLanes) {
      const Vector<float> weight = exponential(load(scores + k) * scale_ - largest);
      sum += weight;
      round_to(weights_ + q * room_ + k, weight);
    }
    return 1.0f / sum_of<float>(sum);
  }

  template <class To>
  void gather(const char* values, int64_t b_step, int64_t queries, const float* inverse, To* context,
              int64_t context_row) const {
    const int64_t steps = steps_of<E>(tokens_), a_row = room_ * sizeof(T);
    for (int64_t column = 0; column < head_dim_; column += kMostVectors * kLanes) {
      const auto vectors =
          static_cast<int>(std::min<int64_t>(kMostVectors, (head_dim_ - column + kLanes - 1) / kLanes));
      const int64_t most_rows = rows_of_tile(vectors);
      for (int64_t q = 0; q < queries; q += most_rows) {
        const int64_t rows = std::min(most_rows, queries - q);
        for (int64_t step = 0; step < steps; step += kAttentionDepth) {
          kTiles<E>[vectors - 1][rows](reinterpret_cast<const char*>(weights_ + q* room_) + step* kStepBytes, a_row,
                                       values + step* b_step + column* kStepBytes, b_step,
                                       std::min(kAttentionDepth, steps - step), result_, kMostVectors* kLanes, step > 0,
                                       {});
        }
        for (int64_t r = 0; r < rows; ++r) {
          for (int v = 0; v < vectors; ++v) {
            const int64_t c = column + v * kLanes;
            const Vector<float> x = load(result_ + r * kMostVectors * kLanes + v * kLanes) * inverse[q + r];
            if (c + kLanes <= head_dim_) {
              round_to(context + (q + r) * context_row + c, x);
            } else {
              store(context + (q + r) * context_row + c, x, static_cast<int>(head_dim_ - c));
            }
          }
        }
      }
    }
  }

  int64_t head_dim_;
  float scale_;
  int64_t room_, tokens_ = 0;
  char* keys_;
  T* values_;
  float* scores_;
  T* weights_;
  float* result_;
};

}  // namespace SPANBERT_ISA
}  // namespace spanbert
