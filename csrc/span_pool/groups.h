// Sorts and groups spans for the kernels.
#pragma once

#include <vector>

#include "common/tensors.h"
#include "span_pool/kernels.h"

namespace spanbert {

// Owns what SpanGroups points to.
struct GroupedSpans {
  // From a span tensor (`rows` absent: in any order) or a sorted plan.
  static GroupedSpans from_bounds(const Tensor& starts, const Tensor& ends, const std::optional<Tensor>& rows,
                                  int64_t tokens);
  // All spans of up to `max_width` tokens inside the documents.
  static GroupedSpans from_documents(const Tensor& cu_seqlens, int64_t max_width, int64_t tokens);

  SpanGroups view() const {
    return {static_cast<int64_t>(start.size()), start.data(), first.data(), ends.empty() ? nullptr : ends.data(),
            rows.empty() ? nullptr : rows.data()};
  }
  int64_t spans() const { return first.back(); }

  std::vector<int64_t> start, first{0}, ends, rows;
  std::vector<int64_t> empty;  // output rows of spans without tokens
  int64_t max_width = 0;
};

}  // namespace spanbert
