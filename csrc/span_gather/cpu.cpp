// The raw CPU operations of span_gather: checks, the forward's copies, the backward's work list, threads.

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "common/arguments.h"
#include "common/parallel.h"
#include "common/results.h"
#include "span_gather/kernels.h"

namespace spanbert {
namespace {

// Checked spans in the order of the output, each with its rows there.
struct PlacedSpans {
  PlacedSpans(const Tensor& starts, const Tensor& ends, const Tensor& offsets, int64_t tokens, int64_t total);

  const Tensor starts, ends, offsets;  // what the pointers point to
  const int64_t count;
  const int64_t* const start;   // [count]
  const int64_t* const end;     // [count]
  const int64_t* const offset;  // [count + 1]
};

PlacedSpans::PlacedSpans(const Tensor& starts, const Tensor& ends, const Tensor& offsets, int64_t tokens, int64_t total)
    : starts(as_int64(starts)),
      ends(as_int64(ends)),
      offsets(as_int64(offsets)),
      count(starts.numel()),
      start(this->starts.const_data_ptr<int64_t>()),
      end(this->ends.const_data_ptr<int64_t>()),
      offset(this->offsets.const_data_ptr<int64_t>()) {
  STD_TORCH_CHECK(ends.numel() == count && offsets.numel() == count + 1,
                  "ends must have one entry per span, and offsets one more");
  STD_TORCH_CHECK(offset[0] == 0 && offset[count] == total, "offsets must go from 0 to ", total, ", got ", offset[0],
                  " and ", offset[count]);
  for (int64_t n = 0; n < count; ++n) {
    STD_TORCH_CHECK(0 <= start[n] && start[n] <= end[n] && end[n] <= tokens, "span ", n, " covers tokens ", start[n],
                    " to ", end[n] - 1, ", but hidden has ", tokens, " tokens (0 to ", tokens - 1, ")");
    STD_TORCH_CHECK(end[n] - start[n] <= offset[n + 1] - offset[n], "span ", n, " has no room for its tokens");
  }
}

Tensor forward(const Tensor& hidden, const Tensor& starts, const Tensor& ends, const Tensor& offsets, int64_t total) {
  STD_TORCH_CHECK(hidden.dim() == 2, "hidden must have shape [T, H]");
  const PlacedSpans spans(starts, ends, offsets, hidden.size(0), total);
  const Result result = new_result(hidden, {total, hidden.size(1)});
  const Tensor& output = result.tensor;
  if (output.numel() == 0) return output;
  const Tensor dense = with_dense_rows(hidden);
  const int64_t row_bytes = hidden.size(1) * hidden.element_size(), stride = dense.stride(0) * hidden.element_size();
  const char* from = static_cast<const char*>(dense.const_data_ptr());
  char* to = static_cast<char*>(output.mutable_data_ptr());

  const auto copy = SPANBERT_KERNEL(span_gather_copy);
  const bool past_caches = result.exceeds_caches();
  constexpr int64_t kTaskBytes = 1 << 19;
  const RowTasks tasks(result, total, row_bytes, std::max(row_bytes, kTaskBytes));
  parallel_tasks(tasks.count(), [&](int64_t task) {
    int64_t row = tasks.first(task);
    const int64_t stop = tasks.first(task + 1);
    // The span that holds the first row: of several that begin there the last, the others being empty.
    int64_t n = std::upper_bound(spans.offset, spans.offset + spans.count + 1, row) - spans.offset - 1;
    for (; row < stop; ++n) {
      const int64_t limit = std::min(stop, spans.offset[n + 1]), token = spans.start[n] + row - spans.offset[n];
      const int64_t copied = std::clamp<int64_t>(spans.end[n] - token, 0, limit - row);
      const int64_t piece = stride == row_bytes ? copied : 1;  // rows that lie one behind the other
      for (int64_t i = 0; i < copied; i += piece) {
        copy(to + (row + i) * row_bytes, from + (token + i) * stride, piece * row_bytes, past_caches);
      }
      std::memset(to + (row + copied) * row_bytes, 0, (limit - row - copied) * row_bytes);
      row = limit;
    }
  });
  return output;
}

// The rows that each token went to, in the order of the spans: see SpanGatherGrads.
struct Sources {
  Sources(const PlacedSpans& spans, int64_t tokens) : begin(tokens + 1, 0) {
    for (int64_t n = 0; n < spans.count; ++n) {
      ++begin[spans.start[n]];
      --begin[spans.end[n]];
    }
    int64_t covering = 0, total = 0;
    for (int64_t& entry : begin) {
      covering += entry;
      entry = total;
      total += covering;
    }
    sources.resize(total);
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t n = 0; n < spans.count; ++n) {
      const int64_t row = spans.offset[n] - spans.start[n];
      for (int64_t t = spans.start[n]; t < spans.end[n]; ++t) sources[next[t]++] = row + t;
    }
  }

  std::vector<int64_t> begin, sources;
};

// The GPU's work lists have no use here: see ops/span_gather/operators.py.
Tensor backward(const Tensor& grad_output, const SpanArguments& work, const Tensor& offsets, int64_t num_tokens) {
  STD_TORCH_CHECK(grad_output.dim() == 2 && num_tokens >= 0, "grad_output must have shape [total, H]");
  STD_TORCH_CHECK(work.starts && work.ends && !work.rows && work.starts->numel() == work.num_spans,
                  "spans come in the order of the output");
  const PlacedSpans spans(*work.starts, *work.ends, offsets, num_tokens, grad_output.size(0));
  const int64_t columns = grad_output.size(1);
  const Tensor grad_hidden = new_result(grad_output, {num_tokens, columns}).tensor;
  if (grad_hidden.numel() == 0) return grad_hidden;
  const Tensor grad = with_dense_rows(grad_output);
  const Sources sources(spans, num_tokens);
  const SpanGatherGrads grads{storage_of(grad),
                              columns,
                              grad.const_data_ptr(),
                              grad.stride(0),
                              sources.begin.data(),
                              sources.sources.data(),
                              grad_hidden.mutable_data_ptr()};

  // Ranges of tokens of about as many rows; where few tokens hold most rows, the tiles of columns share the work out.
  constexpr int64_t kRowsPerRange = 512, kTileColumns = 1024;
  std::vector<int64_t> bounds{0};
  for (int64_t t = 1; t <= num_tokens; ++t) {
    if (t == num_tokens || sources.begin[t] + t >= sources.begin[bounds.back()] + bounds.back() + kRowsPerRange) {
      bounds.push_back(t);
    }
  }
  const int64_t tiles = (columns + kTileColumns - 1) / kTileColumns;
  const auto kernel = SPANBERT_KERNEL(span_gather_backward);
  parallel_tasks((static_cast<int64_t>(bounds.size()) - 1) * tiles, [&](int64_t task) {
    const int64_t range = task / tiles, left = task % tiles * kTileColumns;
    kernel(grads, bounds[range], bounds[range + 1], left, std::min(columns, left + kTileColumns));
  });
  return grad_hidden;
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("span_gather_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("span_gather_backward", SPANBERT_BOX(&spanbert::backward));
}
