// What the raw operators of span_pool take beside tokens and spans.
#pragma once

#include "common/arguments.h"

namespace spanbert {

// ops/span_pool/operators.py: PoolInputs
struct PoolArguments {
  OptionalTensor scores, table, table_index;
  std::vector<int64_t> parts;

  auto fields() { return std::tie(scores, table, table_index, parts); }
};

}  // namespace spanbert
