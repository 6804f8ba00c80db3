// Terms of a score that go by the distance from its query to its key: a bias, what the query makes of a row of a table
// (`keys`), and what the key makes of a row of another (`queries`).
//
// Tables go by distance, so that a query's terms lie side by side, and their ends go on, so that no vector leaves them.
// Products with `keys` are made for a block of queries; with `queries`, whose table goes backwards, for all keys and
// some blocks of queries together, where a key's terms lie side by side, and squares of them are transposed. The memory
// for these grows with the number of keys alone.
#pragma once

#include <algorithm>

#include "common/rows.h"
#include "encoder_stack/bump.h"
#include "encoder_stack/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {

constexpr int64_t kQueries = 3 * kTileRows;     // of a block: whole tiles of the scores and of the results
constexpr int64_t kManyQueries = 8 * kQueries;  // whose products with the keys are made together
static_assert(kLanes <= kRepeated);

constexpr int64_t whole_panels(int64_t columns) { return (columns + kTileColumns - 1) / kTileColumns * kTileColumns; }

// Those that a block of queries sees, and the panels in which they lie.
struct Keys {
  int64_t first, last;

  int64_t begin() const { return first / kTileColumns * kTileColumns; }
  int64_t end() const { return whole_panels(last); }
  int64_t count() const { return end() - begin(); }
};

template <class E>
class Distances {
  using T = typename E::Element;

 public:
  // `seen`: the most keys, in whole panels, that a block sees, and those that kManyQueries queries see.
  Distances(Bump& bump, const char* region, const Step& step, int64_t seen, int64_t seen_by_many)
      : relative_(step.relative), head_dim_(step.head_dim), region_(region) {
    const int64_t all = whole_panels(relative_.rows());
    by_query_row_ = std::min(all, whole_panels(seen + kQueries + kLanes + kTileColumns));
    by_key_row_ = std::min(all, whole_panels(kManyQueries + kQueries + kLanes + kTileColumns));
    if (has(relative_.keys)) by_query_ = bump.take<float>(kQueries * by_query_row_);
    if (has(relative_.queries)) {
      by_key_ = bump.take<float>((seen_by_many + kQueries) * by_key_row_);
      starts_ = bump.take<int64_t>(seen_by_many + kQueries);
    }
  }

  bool any() const { return has(relative_.bias) || has(relative_.keys) || has(relative_.queries); }

  void take_head(int64_t head) {
    if (has(relative_.bias)) {
      bias_ = reinterpret_cast<const float*>(region_ + relative_.bias) + head * relative_.rows();
    }
    const int64_t table = aligned(whole_panels(relative_.rows()) / kTileColumns * panel_bytes());
    if (has(relative_.keys)) keys_ = region_ + relative_.keys + head * table;
    if (has(relative_.queries)) queries_ = region_ + relative_.queries + head * table;
  }

  // Of the queries from `first` on, kManyQueries or to the document's end, with all `keys` that they see.
  void multiply_keys(const T* key, int64_t row, int64_t tokens, int64_t first, int64_t count, const Keys& keys) {
    if (!has(relative_.queries)) return;
    base_ = keys.begin();
    const int64_t last_block = (count - 1) / kQueries * kQueries;
    const int64_t latest = first + last_block + (count - last_block - 1) / kLanes * kLanes;  // vector of queries
    for (int64_t k = base_; k < keys.end(); k += kQueries) {
      const int64_t begin = place(first - (k + kQueries - 1)) / kTileColumns * kTileColumns;
      multiply(key + k * row, row, std::min(kQueries, tokens - k), queries_, begin, place(latest - k) + kLanes,
               by_key_ + (k - base_) * by_key_row_, by_key_row_);
      for (int64_t r = k; r < k + kQueries; ++r) {
        starts_[r - base_] = (std::min(r, tokens - 1) - base_) * by_key_row_ - begin;
      }
    }
  }

  // scores [queries, keys.count()], rows `room` apart = the terms, up to the last vector with a key that is seen.
  void start(const T* query, int64_t row, int64_t first, int64_t queries, const Keys& keys, float* scores,
             int64_t room) const {
    const int64_t lowest = keys.begin() - (first + queries - 1), highest = (keys.last - 1) / kLanes * kLanes - first;
    const int64_t begin = place(lowest) / kTileColumns * kTileColumns;
    if (has(relative_.keys)) {
      multiply(query, row, queries, keys_, begin, place(highest) + kLanes, by_query_, by_query_row_);
    }
    for (int64_t k = keys.begin(); k < keys.last; k += kLanes) {
      for (int64_t q = 0; q < queries; q += kLanes) {
        Vector<float> terms[kLanes] = {};
        if (has(relative_.queries)) {
          for (int r = 0; r < kLanes; ++r)
            terms[r] = load(by_key_ + starts_[k + r - base_] + place(first + q - (k + r)));
          transpose<float>(terms);
        }
        const int64_t rows = std::min<int64_t>(kLanes, queries - q);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t distance = place(k - (first + q + r));
          if (has(relative_.keys)) terms[r] += load(by_query_ + (q + r) * by_query_row_ + distance - begin);
          if (has(relative_.bias)) terms[r] += load(bias_ + distance);
          store(scores + (q + r) * room + k - keys.begin(), terms[r]);
        }
      }
    }
  }

 private:
  static bool has(int64_t table) { return table >= 0; }
  int64_t panel_bytes() const { return steps_of<E>(head_dim_) * kTileColumns * kStepBytes; }

  // Where a vector whose first number is that of this distance begins in a table.
  int64_t place(int64_t distance) const {
    return std::clamp(distance, -relative_.reach - (kLanes - 1), relative_.reach) + relative_.reach + kRepeated;
  }

  // to [rows, ...] = rows of queries or keys times the columns begin .. end - 1 of a table, `begin` that of a panel.
  void multiply(const T* a, int64_t row, int64_t rows, const char* table, int64_t begin, int64_t end, float* to,
                int64_t to_row) const {
    const int64_t a_row = row * sizeof(T), steps = steps_of<E>(head_dim_);
    for (int64_t column = begin; column < end; column += kTileColumns, to += kTileColumns) {
      const char* b = table + column / kTileColumns * panel_bytes();
      for (int64_t r = 0; r < rows; r += kTileRows) {
        kTiles<E>[kTileVectors - 1][std::min<int64_t>(kTileRows, rows - r)](reinterpret_cast<const char*>(a + r* row),
                                                                            a_row, b, kTileColumns* kStepBytes, steps,
                                                                            to + r* to_row, to_row, false, {});
      }
    }
  }

  const Relative relative_;
  const int64_t head_dim_;
  const char* region_;
  const float* bias_ = nullptr;
  const char *keys_ = nullptr, *queries_ = nullptr;
  int64_t by_query_row_, by_key_row_, base_ = 0;
  float *by_query_ = nullptr, *by_key_ = nullptr;
  int64_t* starts_ = nullptr;  // of a key's products, so that `place` finds them there
};

}  // namespace SPANBERT_ISA
}  // namespace spanbert
