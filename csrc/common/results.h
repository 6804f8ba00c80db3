// Large results: on huge pages where their memory is fresh, past the caches where it is not.
#pragma once

#include <algorithm>
#include <optional>

#include "common/huge_pages.h"
#include "common/tensors.h"

namespace spanbert {

// A result of more bytes is not found in a cache by whoever reads it next.
constexpr int64_t kCacheBytes = 16 << 20;

struct Result {
  Tensor tensor;
  bool fresh;  // its pages are still to come from the system, which clears them in a cache

  int64_t bytes() const { return tensor.numel() * tensor.element_size(); }
  bool exceeds_caches() const { return !fresh && bytes() > kCacheBytes; }
};

// Rows of a result, written in order, in tasks of about `bytes`: where its pages are fresh, in tasks of a page, so that
// no thread waits for a page that another one is clearing.
class RowTasks {
 public:
  RowTasks(const Result& result, int64_t rows, int64_t row_bytes, int64_t bytes)
      : rows_(rows),
        row_bytes_(row_bytes),
        task_bytes_(result.fresh ? kHugePageBytes : bytes),
        ahead_(result.fresh ? reinterpret_cast<uintptr_t>(result.tensor.const_data_ptr()) % kHugePageBytes : 0) {}

  int64_t count() const { return (ahead_ + rows_ * row_bytes_ + task_bytes_ - 1) / task_bytes_; }
  // The first row of a task, which ends at the first row of the next; it may have none.
  int64_t first(int64_t task) const {
    return std::clamp<int64_t>((task * task_bytes_ - ahead_ + row_bytes_ - 1) / row_bytes_, 0, rows_);
  }

 private:
  int64_t rows_, row_bytes_, task_bytes_, ahead_;
};

// A tensor that is about to be written wholly.
inline Result new_result(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         std::optional<ScalarType> dtype = {}) {
  Result result{torch::stable::new_empty(like, sizes, dtype), false};
  result.fresh = fresh_on_huge_pages(result.tensor.mutable_data_ptr(), result.bytes());
  return result;
}

inline Tensor new_zero_result(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                              std::optional<ScalarType> dtype = {}) {
  Result result = new_result(like, sizes, dtype);
  return torch::stable::zero_(result.tensor);
}

}  // namespace spanbert
