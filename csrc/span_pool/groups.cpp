#include "span_pool/groups.h"

#include <algorithm>
#include <numeric>

namespace spanbert {
namespace {

// From a span tensor (`rows` absent: in any order) or a sorted plan.
GroupedSpans from_bounds(const Tensor& starts_tensor, const Tensor& ends_tensor, const OptionalTensor& rows_tensor,
                         int64_t tokens) {
  const Tensor starts_kept = as_int64(starts_tensor), ends_kept = as_int64(ends_tensor);
  const Tensor rows_kept = rows_tensor ? as_int64(*rows_tensor) : starts_kept;
  const int64_t* starts = starts_kept.const_data_ptr<int64_t>();
  const int64_t* ends = ends_kept.const_data_ptr<int64_t>();
  const int64_t* rows = rows_tensor ? rows_kept.const_data_ptr<int64_t>() : nullptr;
  const int64_t count = starts_kept.numel();
  const auto row_of = [&](int64_t i) { return rows ? rows[i] : i; };

  GroupedSpans result;
  std::vector<int64_t> begins(tokens + 1, 0);  // counting sort by first token
  bool sorted = true;
  int64_t before = -1;
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(row_of(i) >= 0 && row_of(i) < count, "a plan's rows must be 0 to ", count - 1, ", got ", row_of(i));
    STD_TORCH_CHECK(0 <= starts[i] && starts[i] <= tokens && ends[i] <= tokens, "spans: span ", row_of(i),
                    " covers tokens ", starts[i], " to ", ends[i] - 1, ", but hidden has ", tokens, " tokens (0 to ",
                    tokens - 1, ")");
    if (ends[i] <= starts[i]) {
      result.empty.push_back(row_of(i));
      continue;
    }
    ++begins[starts[i] + 1];
    result.max_width = std::max(result.max_width, ends[i] - starts[i]);
    sorted = sorted &&
             (before < 0 || starts[before] < starts[i] || (starts[before] == starts[i] && ends[before] <= ends[i]));
    before = i;
  }
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  const int64_t kept = begins.back();
  for (int64_t t = 0; t < tokens; ++t) {
    if (begins[t + 1] > begins[t]) {
      result.start.push_back(t);
      result.first.push_back(begins[t + 1]);
    }
  }

  std::vector<int64_t> order(kept);
  int64_t place = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (ends[i] > starts[i]) order[sorted ? place++ : begins[starts[i]]++] = i;
  }
  if (!sorted) {
    for (size_t group = 0; group < result.start.size(); ++group) {
      std::stable_sort(order.begin() + result.first[group], order.begin() + result.first[group + 1],
                       [&](int64_t a, int64_t b) { return ends[a] < ends[b]; });
    }
  }
  result.ends.resize(kept);
  result.rows.resize(kept);
  for (int64_t i = 0; i < kept; ++i) {
    result.ends[i] = ends[order[i]];
    result.rows[i] = row_of(order[i]);
  }
  return result;
}

// All spans of up to `max_width` tokens inside the documents.
GroupedSpans from_documents(const Tensor& cu_seqlens_tensor, int64_t max_width, int64_t tokens) {
  const Tensor kept = as_int64(cu_seqlens_tensor);
  const int64_t* cu_seqlens = kept.const_data_ptr<int64_t>();
  GroupedSpans result;
  result.max_width = max_width;
  result.start.resize(tokens);
  std::iota(result.start.begin(), result.start.end(), 0);
  result.first.reserve(tokens + 1);
  for (int64_t document = 0; document + 1 < kept.numel(); ++document) {
    const int64_t end = cu_seqlens[document + 1];
    STD_TORCH_CHECK(cu_seqlens[document] <= end && end <= tokens, "cu_seqlens must ascend to ", tokens, ", got ", end);
    for (int64_t t = cu_seqlens[document]; t < end; ++t) {
      result.first.push_back(result.first.back() + std::min(max_width, end - t));
    }
  }
  STD_TORCH_CHECK(static_cast<int64_t>(result.first.size()) == tokens + 1, "cu_seqlens must cover all ", tokens,
                  " tokens");
  return result;
}

}  // namespace

GroupedSpans GroupedSpans::of(const SpanArguments& work, int64_t tokens) {
  GroupedSpans result = work.cu_seqlens ? from_documents(*work.cu_seqlens, work.max_width, tokens)
                                        : from_bounds(work.starts.value(), work.ends.value(), work.rows, tokens);
  const int64_t found = result.spans() + static_cast<int64_t>(result.empty.size());
  STD_TORCH_CHECK(found == work.num_spans, "num_spans is ", work.num_spans, ", but there are ", found, " spans");
  return result;
}

}  // namespace spanbert
