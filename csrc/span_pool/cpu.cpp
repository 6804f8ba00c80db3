// The raw CPU operations of span_pool: buffers, work lists, threads.

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "common/results.h"
#include "span_pool/arguments.h"
#include "span_pool/groups.h"
#include "span_pool/kernels.h"

namespace spanbert {
namespace {

// A raw call with everything it points to kept alive.
struct Prepared {
  GroupedSpans spans;
  Tensor hidden;
  OptionalTensor scores, table, table_index;
  SpanPoolCall call{};
};

Prepared prepare(const Tensor& hidden, const SpanArguments& work, const PoolArguments& inputs) {
  const auto& [scores, table, table_index, parts] = inputs;
  STD_TORCH_CHECK(hidden.dim() == 2, "hidden must have shape [T, H]");
  const int64_t tokens = hidden.size(0), columns = hidden.size(1);
  Prepared p{GroupedSpans::of(work, tokens), with_dense_rows(hidden)};
  const int64_t num_spans = work.num_spans;

  SpanPoolCall& call = p.call;
  call.storage = storage_of(hidden);
  call.groups = p.spans.view();
  call.tokens = tokens;
  call.columns = columns;
  call.max_width = p.spans.max_width;
  call.hidden = p.hidden.const_data_ptr();
  call.hidden_stride = p.hidden.stride(0);
  if (scores) {
    const ScalarType wanted = call.storage == Storage::float64 ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(scores->dim() == 2 && scores->size(0) == tokens && scores->scalar_type() == wanted,
                    "scores must have shape [T, heads] and the accumulator's dtype");
    p.scores = torch::stable::contiguous(*scores);
    call.scores = p.scores->const_data_ptr();
    call.heads = scores->size(1);
  }
  if (table) {
    STD_TORCH_CHECK(table->dim() == 2 && table->scalar_type() == hidden.scalar_type(),
                    "width_embedding must have shape [R, E] and the dtype of hidden");
    p.table = torch::stable::contiguous(*table);
    call.table = p.table->const_data_ptr();
    call.table_rows = table->size(0);
    call.table_columns = table->size(1);
  }
  if (table_index) {
    p.table_index = as_int64(*table_index);
    call.table_index = p.table_index->const_data_ptr<int64_t>();
    STD_TORCH_CHECK(p.table_index->numel() == num_spans, "width_index must have one entry per span");
    for (int64_t n = 0; n < num_spans; ++n) {
      STD_TORCH_CHECK(call.table_index[n] >= 0 && call.table_index[n] < call.table_rows, "width_index[", n, "] is ",
                      call.table_index[n], ", but width_embedding has ", call.table_rows, " rows");
    }
  }
  std::fill(std::begin(call.offset), std::end(call.offset), -1);
  for (const int64_t part : parts) {
    STD_TORCH_CHECK(part >= 0 && part < kParts && call.offset[part] < 0, "bad or repeated part ", part);
    STD_TORCH_CHECK(part != kAttention || scores, "part attention needs scores");
    STD_TORCH_CHECK(part != kWidth || table, "part width needs width_embedding");
    call.offset[part] = call.output_columns;
    call.output_columns += part == kAttention ? columns * call.heads : part == kWidth ? call.table_columns : columns;
  }
  return p;
}

// The GPU's work lists and what its backward keeps of the forward have no use here: see ops/span_pool/operators.py.
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& hidden, const SpanArguments& work, const PoolArguments& inputs,
                                           bool /*keep*/) {
  Prepared p = prepare(hidden, work, inputs);
  const int64_t num_spans = work.num_spans, max_width = work.max_width;
  const ScalarType offset_type = 0 < max_width && max_width <= 256 ? ScalarType::Byte : ScalarType::Int;
  const Tensor argmax = torch::stable::new_empty(hidden, {0, 0}, offset_type);
  const Tensor lse = torch::stable::new_empty(hidden, {0, 0}, ScalarType::Float);
  const Result result = new_result(hidden, {num_spans, p.call.output_columns});
  const Tensor& output = result.tensor;
  if (output.numel() == 0) return {output, argmax, lse};
  p.call.output = output.mutable_data_ptr();
  p.call.output_exceeds_caches = result.exceeds_caches();
  const int64_t row_bytes = p.call.output_columns * output.element_size();
  for (const int64_t row : p.spans.empty)
    std::memset(static_cast<char*>(p.call.output) + row * row_bytes, 0, row_bytes);

  const int64_t spans = p.spans.spans();
  // Enough tasks to balance the threads; each starts its first span from scratch, so not too small.
  const int64_t chunk = std::max<int64_t>(64, spans / (16 * static_cast<int64_t>(torch::stable::get_num_threads())));
  const RowTasks tasks(result, spans, row_bytes, chunk * row_bytes);
  const auto kernel = SPANBERT_KERNEL(span_pool_forward);
  parallel_tasks(tasks.count(), [&](int64_t task) {
    const int64_t first = tasks.first(task), last = tasks.first(task + 1);
    if (first < last) kernel(p.call, first, last);
  });
  return {output, argmax, lse};
}

// Ranges of groups whose spans share no token with other ranges, each of a few hundred spans where possible: what the
// backward can work on side by side.
std::vector<std::pair<int64_t, int64_t>> independent_ranges(const GroupedSpans& spans) {
  constexpr int64_t kSpans = 256;
  const SpanGroups groups = spans.view();
  std::vector<std::pair<int64_t, int64_t>> ranges;
  int64_t begin = 0, reach = 0;
  for (int64_t group = 0; group < groups.count; ++group) {
    if (groups.start[group] >= reach && groups.first[group] - groups.first[begin] >= kSpans) {
      ranges.emplace_back(begin, group);
      begin = group;
    }
    reach = std::max(reach, groups.end(group, groups.first[group + 1] - 1));
  }
  if (begin < groups.count) ranges.emplace_back(begin, groups.count);
  return ranges;
}

// Accumulator values in the dtype of `like`: the same tensor where that is the accumulator's own.
Tensor rounded_like(const Tensor& values, const Tensor& like) {
  if (values.scalar_type() == like.scalar_type()) return values;
  Tensor result = torch::stable::new_empty(like, values.sizes());
  return torch::stable::copy_(result, values);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& hidden, const Tensor& /*argmax*/,
                                            const Tensor& /*lse*/, const SpanArguments& work,
                                            const PoolArguments& inputs) {
  Prepared p = prepare(hidden, work, inputs);
  const OptionalTensor &scores = inputs.scores, &table = inputs.table;
  SpanPoolCall& call = p.call;
  STD_TORCH_CHECK(grad_output.dim() == 2 && grad_output.size(0) == work.num_spans &&
                      grad_output.size(1) == call.output_columns && grad_output.scalar_type() == hidden.scalar_type(),
                  "grad_output must have the output's shape and dtype");
  const Tensor grad = with_dense_rows(grad_output);

  const ScalarType wide = call.storage == Storage::float64 ? ScalarType::Double : ScalarType::Float;
  const auto ranges = independent_ranges(p.spans);
  const auto tiles_of = [&](int64_t tile_columns) { return (call.columns + tile_columns - 1) / tile_columns; };
  const bool enough = static_cast<int64_t>(ranges.size()) * tiles_of(kWideTile) >= torch::stable::get_num_threads();
  const int64_t tile_columns = enough ? kWideTile : kNarrowTile, tiles = tiles_of(tile_columns);
  const Tensor grad_hidden = new_zero_result(hidden, {call.tokens, call.columns}, wide);
  const int64_t slices = (call.columns + kSliceColumns - 1) / kSliceColumns;
  const Tensor partial_scores = torch::stable::new_zeros(hidden, {scores ? slices : 0, call.tokens, call.heads}, wide);
  const Tensor grad_table = torch::stable::new_zeros(hidden, {call.table_rows, call.table_columns}, wide);
  const SpanPoolGrads grads{grad.const_data_ptr(),
                            grad.stride(0),
                            tile_columns,
                            grad_hidden.mutable_data_ptr(),
                            partial_scores.mutable_data_ptr(),
                            grad_table.mutable_data_ptr()};

  const int64_t walks = static_cast<int64_t>(ranges.size()) * tiles;
  const auto kernel = SPANBERT_KERNEL(span_pool_backward);
  const auto table_kernel = SPANBERT_KERNEL(span_pool_table_backward);
  parallel_tasks(walks + (call.has(kWidth) ? 1 : 0), [&](int64_t task) {
    if (task == walks) return table_kernel(call, grads);
    const auto [first, last] = ranges[task / tiles];
    kernel(call, grads, task % tiles, first, last);
  });

  Tensor grad_scores = torch::stable::new_zeros(hidden, {0});
  if (scores) {
    grad_scores = torch::stable::new_zeros(*scores, scores->sizes());
    const int64_t count = grad_scores.numel();
    const auto add_slices = [&](auto* total, const auto* part) {
      for (int64_t slice = 0; slice < slices; ++slice) {
        for (int64_t i = 0; i < count; ++i) total[i] += part[slice * count + i];
      }
    };
    if (wide == ScalarType::Double) {
      add_slices(grad_scores.mutable_data_ptr<double>(), partial_scores.const_data_ptr<double>());
    } else {
      add_slices(grad_scores.mutable_data_ptr<float>(), partial_scores.const_data_ptr<float>());
    }
  }
  return {rounded_like(grad_hidden, hidden), grad_scores,
          table ? rounded_like(grad_table, *table) : torch::stable::new_zeros(hidden, {0})};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("span_pool_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("span_pool_backward", SPANBERT_BOX(&spanbert::backward));
}
