// The raw CPU operations of pair_pool: checks, the backward's work lists, threads.

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "common/arguments.h"
#include "common/parallel.h"
#include "common/results.h"
#include "pair_pool/kernels.h"

namespace spanbert {

// ops/pair_pool/operators.py: PairSources
struct PairSourceArguments {
  Tensor first, second;
  OptionalTensor first_sentinel, second_sentinel, features;

  auto fields() { return std::tie(first, second, first_sentinel, second_sentinel, features); }
};

// ops/pair_pool/operators.py: PairWork
struct PairWorkArguments {
  Tensor pairs;
  OptionalTensor mask, feature_rows;
  std::vector<int64_t> parts;
  bool summed = false;

  auto fields() { return std::tie(pairs, mask, feature_rows, parts, summed); }
};

namespace {

// Checked arguments; owns what `call` points to.
struct CheckedPairs {
  CheckedPairs(const PairSourceArguments& sources, const PairWorkArguments& work);
  CheckedPairs(const CheckedPairs&) = delete;

  PairPoolCall call{};
  int64_t count, rows[3];  // pairs; rows of x, y and the features

 private:
  void check_indices(const int64_t* indices, int64_t step, int64_t lowest, int64_t rows, const char* what) const;

  // What is kept does not move.
  const Tensor& keep(Tensor tensor) { return kept_.emplace_back(std::move(tensor)); }

  std::deque<Tensor> kept_;
  std::vector<PairPart> parts_;
};

CheckedPairs::CheckedPairs(const PairSourceArguments& sources, const PairWorkArguments& work)
    : count(work.pairs.size(0)), rows{sources.first.size(0), sources.second.size(0), 0} {
  STD_TORCH_CHECK(work.pairs.dim() == 2 && work.pairs.size(1) == 2, "pairs must have shape [N, 2]");
  STD_TORCH_CHECK(sources.first.dim() == 2 && sources.second.dim() == 2, "first and second must have two dimensions");
  call.storage = storage_of(sources.first);
  call.summed = work.summed;
  if (work.mask) {
    STD_TORCH_CHECK(work.mask->scalar_type() == ScalarType::Bool && work.mask->numel() == count,
                    "mask must have one bool for every pair");
    call.mask = keep(torch::stable::contiguous(*work.mask)).const_data_ptr<bool>();
  }
  call.pairs = keep(as_int64(work.pairs)).const_data_ptr<int64_t>();
  const auto row_source = [&](const Tensor& tensor, const OptionalTensor& sentinel, int side, const char* what) {
    const Tensor& dense = keep(with_dense_rows(tensor));
    STD_TORCH_CHECK(storage_of(dense) == call.storage, "first and second must have one dtype");
    call.side[side] = {dense.const_data_ptr(), dense.stride(0), dense.size(1), nullptr};
    if (sentinel) {
      const Tensor& row = keep(torch::stable::contiguous(*sentinel));
      STD_TORCH_CHECK(row.numel() == dense.size(1) && storage_of(row) == call.storage, "a sentinel must be a row");
      call.side[side].sentinel = row.const_data_ptr();
    }
    check_indices(call.pairs + side, 2, sentinel ? -1 : 0, rows[side], what);
  };
  row_source(sources.first, sources.first_sentinel, 0, "first");
  row_source(sources.second, sources.second_sentinel, 1, "second");
  if (sources.features) {
    const Tensor& table = keep(torch::stable::contiguous(*sources.features));
    STD_TORCH_CHECK(table.dim() == 2 && storage_of(table) == call.storage && work.feature_rows &&
                        work.feature_rows->numel() == count,
                    "features need a row for every pair");
    rows[2] = table.size(0);
    call.features = table.const_data_ptr();
    call.feature_columns = table.size(1);
    call.feature_rows = keep(as_int64(*work.feature_rows)).const_data_ptr<int64_t>();
    check_indices(call.feature_rows, 1, 0, rows[2], "features");
  }
  for (const int64_t code : work.parts) {
    const PairPart part{static_cast<PairOperation>(code / 4), static_cast<int>(code / 2 % 2),
                        static_cast<int>(code % 2), work.summed ? 0 : call.output_columns};
    const bool feature = part.operation == PairOperation::feature, alone = part.operation == PairOperation::take;
    STD_TORCH_CHECK(0 <= code && part.operation <= PairOperation::feature && (!feature || sources.features),
                    "parts: unknown code ", code);
    STD_TORCH_CHECK(feature || alone || call.side[part.left].columns == call.side[part.right].columns,
                    "rows that are combined must be equally wide");
    const int64_t columns = feature ? call.feature_columns : call.side[part.left].columns;
    STD_TORCH_CHECK(!work.summed || parts_.empty() || columns == call.output_columns,
                    "parts that are summed must be equally wide");
    call.output_columns = work.summed ? columns : call.output_columns + columns;
    parts_.push_back(part);
  }
  call.parts = parts_.data();
  call.part_count = static_cast<int64_t>(parts_.size());
}

void CheckedPairs::check_indices(const int64_t* indices, int64_t step, int64_t lowest, int64_t rows,
                                 const char* what) const {
  for (int64_t n = 0; n < count; ++n) {
    const int64_t index = indices[n * step];
    STD_TORCH_CHECK(!call.kept(n) || (lowest <= index && index < rows), "pairs: pair ", n, " reads row ", index, " of ",
                    what, ", which has ", rows);
  }
}

Tensor forward(const PairSourceArguments& sources, const PairWorkArguments& work) {
  CheckedPairs pairs(sources, work);
  PairPoolCall& call = pairs.call;
  const Result result = new_result(sources.first, {pairs.count, call.output_columns});
  if (result.tensor.numel() == 0) return result.tensor;
  call.output = result.tensor.mutable_data_ptr();
  const auto kernel = SPANBERT_KERNEL(pair_pool_forward);
  const int64_t row_bytes = call.output_columns * result.tensor.element_size();
  constexpr int64_t kTaskBytes = 1 << 17;
  const RowTasks tasks(result, pairs.count, row_bytes, std::max(row_bytes, kTaskBytes));
  parallel_tasks(tasks.count(), [&](int64_t task) { kernel(call, tasks.first(task), tasks.first(task + 1)); });
  return result.tensor;
}

// Who reads each row, the sentinel behind the last: see PairPoolGrads.
struct Readers {
  Readers(const PairPoolCall& call, int64_t count, const int64_t* indices, int64_t step, int64_t rows)
      : begin(rows + 2, 0) {
    const auto row = [&](int64_t n) { return indices[n * step] < 0 ? rows : indices[n * step]; };
    for (int64_t n = 0; n < count; ++n) {
      if (call.kept(n)) ++begin[row(n) + 1];
    }
    for (int64_t r = 0; r <= rows; ++r) begin[r + 1] += begin[r];
    readers.resize(begin.back());
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t n = 0; n < count; ++n) {
      if (call.kept(n)) readers[next[row(n)]++] = n;
    }
  }

  std::vector<int64_t> begin, readers;
};

// The gradients of first, second, features and both sentinels, of those that are `wanted` of the first three.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output,
                                                            const PairSourceArguments& sources,
                                                            const PairWorkArguments& work,
                                                            const std::vector<int64_t>& wanted) {
  const CheckedPairs pairs(sources, work);
  STD_TORCH_CHECK(grad_output.dim() == 2 && grad_output.size(0) == pairs.count &&
                      grad_output.size(1) == pairs.call.output_columns && wanted.size() == 3,
                  "grad_output must have the output's shape");
  const Tensor incoming = with_dense_rows(grad_output);
  STD_TORCH_CHECK(storage_of(incoming) == pairs.call.storage, "grad_output must have the output's dtype");
  const auto kernel = SPANBERT_KERNEL(pair_pool_backward);
  const auto none = [&] { return torch::stable::new_empty(grad_output, {0}); };
  const auto gradient = [&](int side, const Tensor& source, const OptionalTensor& sentinel, const int64_t* indices,
                            int64_t step) {
    const Tensor result = new_result(grad_output, source.sizes()).tensor;
    const Tensor of_sentinel = sentinel ? torch::stable::new_empty(grad_output, sentinel->sizes()) : none();
    const int64_t rows = pairs.rows[side], columns = source.size(1), all = rows + (sentinel ? 1 : 0);
    const Readers readers(pairs.call, pairs.count, indices, step, rows);
    const PairPoolGrads grads{pairs.call,
                              incoming.const_data_ptr(),
                              incoming.stride(0),
                              readers.begin.data(),
                              readers.readers.data(),
                              result.mutable_data_ptr(),
                              rows,
                              columns,
                              sentinel ? of_sentinel.mutable_data_ptr() : nullptr};
    // Ranges of rows of about as many readers; where few rows have most of them, tiles of columns share the work out.
    constexpr int64_t kReadersPerRange = 256, kTileColumns = 512;
    std::vector<int64_t> bounds{0};
    for (int64_t r = 1; r <= all; ++r) {
      const int64_t before = bounds.back();
      if (r == all || readers.begin[r] + r >= readers.begin[before] + before + kReadersPerRange) bounds.push_back(r);
    }
    const int64_t tiles = (columns + kTileColumns - 1) / kTileColumns;
    parallel_tasks((static_cast<int64_t>(bounds.size()) - 1) * tiles, [&](int64_t task) {
      const int64_t range = task / tiles, left = task % tiles * kTileColumns;
      kernel(grads, side, bounds[range], bounds[range + 1], left, std::min(columns, left + kTileColumns));
    });
    return std::pair{result, of_sentinel};
  };
  const auto of_side = [&](int side, const Tensor& source, const OptionalTensor& sentinel) {
    return wanted[side] ? gradient(side, source, sentinel, pairs.call.pairs + side, 2) : std::pair{none(), none()};
  };
  const auto [first, first_sentinel] = of_side(0, sources.first, sources.first_sentinel);
  const auto [second, second_sentinel] = of_side(1, sources.second, sources.second_sentinel);
  const Tensor features = wanted[2] && sources.features
                              ? gradient(2, *sources.features, std::nullopt, pairs.call.feature_rows, 1).first
                              : none();
  return {first, second, features, first_sentinel, second_sentinel};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("pair_pool_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("pair_pool_backward", SPANBERT_BOX(&spanbert::backward));
}
