// Tensors to a ProjectedCall, and the tensors of its gradients: for the bindings of span_linear and span_score.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/arguments.h"
#include "common/parallel.h"
#include "span_linear/kernels.h"
#include "span_pool/groups.h"

namespace spanbert {

// ops/span_linear/operators.py: ProjectedInputs
struct ProjectedArguments {
  OptionalTensor scores, width_projected, width_index, bias;
  std::vector<int64_t> parts;
  int64_t activation = 0;

  auto fields() { return std::tie(scores, width_projected, width_index, bias, parts, activation); }
};

// A raw call with everything it points to kept alive.
struct PreparedProjection {
  GroupedSpans spans;
  Tensor projected;
  OptionalTensor scores, table, table_index, bias, addend;
  ProjectedCall call{};

  PreparedProjection(const Tensor& projected, const SpanArguments& work, const ProjectedArguments& inputs,
                     const OptionalTensor& addend);

  // Ranges of groups with about `size` of a range's largest thing: spans or steps, times the heads. Of one document
  // each, if their offsets are given.
  std::vector<std::pair<int64_t, int64_t>> ranges(int64_t size, const int64_t* documents = nullptr) const;
  int64_t tiles() const { return (call.columns + kProjectedTile - 1) / kProjectedTile; }
};

// The gradients that the walk back gathers.
struct ProjectionGradients {
  Tensor projected, partial_scores, table, bias;

  explicit ProjectionGradients(const PreparedProjection& prepared);
  ProjectedGrads view() const;
  // Gradients of projected, scores, width_projected and bias, as the raw operators return them.
  std::tuple<Tensor, Tensor, Tensor, Tensor> finished(const PreparedProjection& prepared) const;
};

// Runs `tile(factors, tile)` for every tile of columns and all groups, then for the spans without tokens.
template <class F>
void walk_back(const PreparedProjection& prepared, const F& tile) {
  // Groups in blocks, so that their factors stay small whatever the spans.
  constexpr int64_t kBlock = 1 << 20;
  const auto release = [&](void* factors) { SPANBERT_KERNEL(delete_projected_factors)(prepared.call, factors); };
  for (const auto& [first, last] : prepared.ranges(kBlock)) {
    const std::unique_ptr<void, decltype(release)> factors(
        SPANBERT_KERNEL(new_projected_factors)(prepared.call, first, last), release);
    parallel_tasks(prepared.tiles(), [&](int64_t task) { tile(factors.get(), task); });
  }
  if (prepared.call.empties > 0) {
    parallel_tasks(prepared.tiles(), [&](int64_t task) { tile(nullptr, task); });
  }
}

}  // namespace spanbert
