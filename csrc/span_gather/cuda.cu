// The raw CUDA operations of span_gather. Both directions move memory and little else.
//
// Forward: a warp takes a run of output rows, finds the span of the first by bisection of the offsets, and copies.
// Backward: a warp takes one token and a tile of columns and adds the rows that the token went to, in the sorted order
// of the spans: each row of the gradient is read once, and no two warps write to the same place.

#include "common/cuda_columns.h"
#include "common/cuda_tensors.h"

namespace spanbert {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kLanes;
constexpr int kRows = 16;  // output rows of a warp
constexpr int kBatch = 4;

struct GatherWork {
  const char* hidden;    // [T, H]
  int64_t hidden_bytes;  // from row to row
  int64_t tokens;
  const int64_t* starts;   // [N], by output order
  const int64_t* ends;     // [N]
  const int64_t* offsets;  // [N + 1]
  int64_t spans;
  char* output;  // [total, H]
  int64_t row_bytes, total;
  int unit;  // bytes moved at once: 16, 4 or 2
};

// The last span whose rows begin at or before `row`.
SPANBERT_DEVICE int64_t span_of_row(const GatherWork& work, int64_t row) {
  int64_t low = 0, high = work.spans;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (work.offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

// One row, or zeros where `from` is null.
SPANBERT_DEVICE void copy_row(const GatherWork& work, const char* from, char* to) {
  if (work.unit == 16) {
#pragma unroll 4
    for (int64_t byte = lane_index() * 16; byte < work.row_bytes; byte += kLanes * 16) {
      uint32_t words[4] = {0, 0, 0, 0};
      if (from) load_words(from + byte, words);
      store_words(to + byte, words);
    }
  } else if (work.unit == 4) {
    for (int64_t byte = lane_index() * 4; byte < work.row_bytes; byte += kLanes * 4) {
      *reinterpret_cast<uint32_t*>(to + byte) = from ? *reinterpret_cast<const uint32_t*>(from + byte) : 0;
    }
  } else {
    for (int64_t byte = lane_index() * 2; byte < work.row_bytes; byte += kLanes * 2) {
      *reinterpret_cast<uint16_t*>(to + byte) = from ? *reinterpret_cast<const uint16_t*>(from + byte) : 0;
    }
  }
}

__global__ void __launch_bounds__(kThreads) gather_rows(GatherWork work) {
  const int64_t begin = (blockIdx.x * int64_t{kWarps} + warp_index()) * kRows;
  const int64_t stop = begin + kRows < work.total ? begin + kRows : work.total;
  int64_t n = 0, next = -1, start = 0, width = 0, offset = 0;
  for (int64_t row = begin; row < stop; ++row) {
    if (row >= next) {
      n = span_of_row(work, row);
      start = work.starts[n];
      offset = work.offsets[n];
      next = n + 1 < work.spans ? work.offsets[n + 1] : work.total;
      const int64_t end = work.ends[n];
      width = start >= 0 && end <= work.tokens ? end - start : 0;
    }
    const int64_t place = row - offset;
    const bool token = place >= 0 && place < width;
    copy_row(work, token ? work.hidden + (start + place) * work.hidden_bytes : nullptr,
             work.output + row * work.row_bytes);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    sum_rows(SortedSpans spans, const int64_t* offsets, const S* grad_output, int64_t stride, int64_t total,
             int64_t columns, int64_t tiles, bool aligned, S* grad_hidden, bool aligned_hidden) {
  constexpr int N = 16 / sizeof(S);
  const int64_t token = blockIdx.x / tiles * kWarps + warp_index();
  if (token >= spans.tokens) return;
  const ColumnTile tile = column_tile<N>(blockIdx.x % tiles, columns);
  Columns<N> sum;
  fill(sum, 0.0f);
  for_spans<kBatch>(
      spans, token, token + 1,
      [&](const SeenSpan& span) {
        const int64_t row = offsets[span.row] - span.low;
        if (row < 0 || row >= total) return Packed<S, N>{};
        return load<N>(grad_output + row * stride + tile.column, tile.count, aligned);
      },
      [&](const SeenSpan&, const Packed<S, N>& packed) { add(sum, unpack(packed)); });
  store(grad_hidden + token * columns + tile.column, tile.count, sum, aligned_hidden);
}

Tensor forward_operator(const Tensor& hidden, const Tensor& starts, const Tensor& ends, const Tensor& offsets,
                        int64_t total) {
  STD_TORCH_CHECK(hidden.dim() == 2, "hidden must have shape [T, H]");
  const Stream stream(hidden);
  std::vector<Tensor> kept;
  const Tensor rows = with_dense_rows(hidden);
  Tensor output = torch::stable::new_empty(hidden, {total, hidden.size(1)});
  const int64_t element = hidden.element_size();
  GatherWork work{};
  work.hidden = static_cast<const char*>(rows.const_data_ptr());
  work.hidden_bytes = rows.stride(0) * element;
  work.tokens = hidden.size(0);
  work.spans = starts.numel();
  work.starts = indices(starts, work.spans, "starts", kept);
  work.ends = indices(ends, work.spans, "ends", kept);
  work.offsets = indices(offsets, work.spans + 1, "offsets", kept);
  work.output = static_cast<char*>(output.mutable_data_ptr());
  work.row_bytes = hidden.size(1) * element;
  work.total = total;
  const auto whole = [&](int64_t bytes) {
    return all_multiples(bytes, {address(work.hidden), work.hidden_bytes, address(work.output), work.row_bytes});
  };
  work.unit = whole(16) ? 16 : whole(4) ? 4 : 2;
  STD_TORCH_CHECK(total == 0 || work.spans > 0, "there are rows, but no spans");
  if (output.numel() > 0) {
    SPANBERT_LAUNCH(gather_rows, blocks_for(total, kWarps * kRows, 1), kThreads, stream, work);
  }
  return output;
}

template <class S>
void launch_backward(const SortedSpans& spans, const int64_t* offsets, const Tensor& grad, Tensor& grad_hidden,
                     const Stream& stream) {
  const int64_t columns = grad.size(1), tiles = ceil_divide(columns, 16 / sizeof(S) * kLanes);
  const S* from = static_cast<const S*>(grad.const_data_ptr());
  S* to = static_cast<S*>(grad_hidden.mutable_data_ptr());
  const int64_t row_bytes = columns * sizeof(S), stride = grad.stride(0);
  const bool aligned = all_multiples(16, {address(from), stride * static_cast<int64_t>(sizeof(S)), row_bytes});
  const bool aligned_hidden = all_multiples(16, {address(to), row_bytes});
  SPANBERT_LAUNCH(sum_rows<S>, blocks_for(spans.tokens, kWarps, tiles), kThreads, stream, spans, offsets, from, stride,
                  grad.size(0), columns, tiles, aligned, to, aligned_hidden);
}

Tensor backward_operator(const Tensor& grad_output, const SpanArguments& work, const Tensor& offsets,
                         int64_t num_tokens) {
  STD_TORCH_CHECK(grad_output.dim() == 2, "grad_output must have shape [total, H]");
  const Stream stream(grad_output);
  std::vector<Tensor> kept;
  const SortedSpans spans = sorted_spans(work, num_tokens, kept);
  const int64_t* places = indices(offsets, work.num_spans + 1, "offsets", kept);
  const Tensor grad = with_dense_rows(grad_output);
  Tensor grad_hidden = torch::stable::new_empty(grad_output, {num_tokens, grad_output.size(1)});
  if (grad_hidden.numel() > 0) {
    with_gpu_storage(grad_output,
                     [&](auto s) { launch_backward<decltype(s)>(spans, places, grad, grad_hidden, stream); });
  }
  return grad_hidden;
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(SPANBERT_NAMESPACE, SPANBERT_KEY, library) {
  library.impl("span_gather_forward", SPANBERT_BOX(&spanbert::forward_operator));
  library.impl("span_gather_backward", SPANBERT_BOX(&spanbert::backward_operator));
}
