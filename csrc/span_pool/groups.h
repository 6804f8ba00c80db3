// Sorts and groups spans for the kernels.
#pragma once

#include <vector>

#include "common/arguments.h"
#include "span_pool/kernels.h"

namespace spanbert {

// Owns what SpanGroups points to.
struct GroupedSpans {
  // Throws where they are not as many as they say.
  static GroupedSpans of(const SpanArguments& work, int64_t tokens);

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
