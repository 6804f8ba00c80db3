// Attention of a document with itself, one head: a block of queries against all keys, then the weights with all values.
//
// Keys are laid out as panels by transposing squares of four-byte words, so that float32 and pairs of bfloat16 are the
// same code; values of bfloat16 lie two keys side by side, those of float32 stay where they are. Weights are summed up
// before they are rounded.
#pragma once

#include <algorithm>

#include "common/rows.h"
#include "encoder_stack/bump.h"
#include "encoder_stack/distances.h"
#include "encoder_stack/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {

constexpr int64_t kAttentionDepth = 256;  // keys that are summed up by themselves

template <class E>
class Attention {
  using T = typename E::Element;

 public:
  // For documents of up to so many tokens. Without `scratch` it only says how much of it there must be.
  Attention(char* scratch, int64_t max_seqlen, const char* region, const Step& step)
      : head_dim_(step.head_dim),
        window_(step.window < 0 ? max_seqlen : std::min(step.window, max_seqlen)),
        scale_(static_cast<float>(step.constant)),
        bump_{scratch},
        room_(most_keys(max_seqlen, kQueries)),
        distances_(bump_, region, step, room_, most_keys(max_seqlen, kManyQueries)) {
    keys_ = bump_.take<char>(whole_panels(max_seqlen) / kTileColumns * panel_bytes());
    if (E::kElements > 1) values_ = bump_.take<T>((whole_panels(max_seqlen) + 2) * whole(head_dim_));
    scores_ = bump_.take<float>(kQueries * room_);
    weights_ = E::kElements == 1 ? reinterpret_cast<T*>(scores_)  // in place
                                 : bump_.take<T>(kQueries * room_);
    result_ = bump_.take<float>(kTileRows * kMostVectors * kLanes);
  }

  int64_t bytes() const { return bump_.used; }

  // `query`, `key`, `value`: the head's columns in the document's first row; rows are `row` elements apart. `context`
  // gets the head's columns.
  template <class To>
  void run(int64_t head, const T* query, const T* key, const T* value, int64_t row, int64_t tokens, To* context,
           int64_t context_row) {
    tokens_ = tokens;
    pack_keys(key, row);
    const char* b = pack_values(value, row);
    const int64_t b_step = E::kElements == 1 ? row * sizeof(T) : whole(head_dim_) * kStepBytes;
    distances_.take_head(head);
    for (int64_t first = 0; first < tokens; first += kQueries) {
      if (first % kManyQueries == 0) {
        const int64_t many = std::min(kManyQueries, tokens - first);
        distances_.multiply_keys(key, row, tokens, first, many, seen_by(first, many));
      }
      const int64_t queries = std::min(kQueries, tokens - first);
      const Keys keys = seen_by(first, queries);
      if (distances_.any()) distances_.start(query + first * row, row, first, queries, keys, scores_, room_);
      score(query + first * row, row, queries, keys);
      float inverse[kQueries];
      for (int64_t q = 0; q < queries; ++q) inverse[q] = weigh(q, first + q, keys);
      gather(b, b_step, queries, keys, inverse, context + first * context_row, context_row);
    }
  }

 private:
  Keys seen_by(int64_t query, int64_t queries) const {
    return {std::max<int64_t>(0, query - window_), std::min(tokens_, query + queries + window_)};
  }
  // In whole panels.
  int64_t most_keys(int64_t max_seqlen, int64_t queries) const {
    return whole_panels(std::min(max_seqlen, queries + 2 * window_ + kTileColumns));
  }

  int64_t panel_bytes() const { return steps_of<E>(head_dim_) * kTileColumns * kStepBytes; }

  void pack_keys(const T* key, int64_t row) {
    const int64_t steps = steps_of<E>(head_dim_);
    for (int64_t begin = 0; begin < tokens_; begin += kTileColumns) {
      float* to = reinterpret_cast<float*>(keys_ + begin / kTileColumns * panel_bytes());
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t first = begin + v * kLanes;
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

  void score(const T* query, int64_t row, int64_t queries, const Keys& keys) const {
    const int64_t a_row = row * sizeof(T), steps = steps_of<E>(head_dim_);
    for (int64_t begin = keys.begin(); begin < keys.end(); begin += kTileColumns) {
      const char* b = keys_ + begin / kTileColumns * panel_bytes();
      float* to = scores_ + begin - keys.begin();
      for (int64_t q = 0; q < queries; q += kTileRows) {
        const auto rows = std::min<int64_t>(kTileRows, queries - q);
        kTiles<E>[kTileVectors - 1][rows](reinterpret_cast<const char*>(query + q* row), a_row, b,
                                          kTileColumns* kStepBytes, steps, to + q* room_, room_, distances_.any(), {});
      }
    }
  }

  // Scores of a block's query `q`, which stands at `place`, become weights; returns 1 / their sum.
  float weigh(int64_t q, int64_t place, const Keys& keys) const {
    float* scores = scores_ + q * room_;
    const int64_t count = keys.count();
    const int64_t first = std::max<int64_t>(0, place - window_) - keys.begin();
    const int64_t last = std::min(tokens_, place + window_ + 1) - keys.begin();
    std::fill(scores, scores + first, -INFINITY);
    std::fill(scores + last, scores + count, -INFINITY);
    Vector<float> most = broadcast(-INFINITY);
    for (int64_t k = 0; k < count; k += kLanes) most = larger(most, load(scores + k));
    const Vector<float> largest = broadcast(largest_of<float>(most) * scale_);
    Vector<float> sum{};
    for (int64_t k = 0; k < count; k += kLanes) {
      const Vector<float> weight = exponential(load(scores + k) * scale_ - largest);
      sum += weight;
      round_to(weights_ + q * room_ + k, weight);
    }
    return 1.0f / sum_of<float>(sum);
  }

  template <class To>
  void gather(const char* values, int64_t b_step, int64_t queries, const Keys& keys, const float* inverse, To* context,
              int64_t context_row) const {
    const int64_t skipped = (keys.first - keys.begin()) / E::kElements, a_row = room_ * sizeof(T);
    const int64_t steps = steps_of<E>(keys.last - keys.begin()) - skipped;
    const char* weights = reinterpret_cast<const char*>(weights_) + skipped * kStepBytes;
    values += (keys.begin() / E::kElements + skipped) * b_step;
    for (int64_t column = 0; column < head_dim_; column += kMostVectors * kLanes) {
      const auto vectors =
          static_cast<int>(std::min<int64_t>(kMostVectors, (head_dim_ - column + kLanes - 1) / kLanes));
      const int64_t most_rows = rows_of_tile(vectors);
      for (int64_t q = 0; q < queries; q += most_rows) {
        const int64_t rows = std::min(most_rows, queries - q);
        for (int64_t step = 0; step < steps; step += kAttentionDepth) {
          kTiles<E>[vectors - 1][rows](
              weights + q* a_row + step* kStepBytes, a_row, values + step* b_step + column* kStepBytes, b_step,
              std::min(kAttentionDepth, steps - step), result_, kMostVectors* kLanes, step > 0, {});
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

  const int64_t head_dim_, window_;
  const float scale_;
  Bump bump_;
  const int64_t room_;  // of the scores of a query
  Distances<E> distances_;
  int64_t tokens_ = 0;
  char* keys_;
  T* values_ = nullptr;
  float* scores_;
  T* weights_;
  float* result_;
};

}  // namespace SPANBERT_ISA
}  // namespace spanbert
