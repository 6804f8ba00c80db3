// The raw CUDA operations of span_pool: buffers and launches. No host code waits for the GPU.

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/cuda_tensors.h"
#include "span_pool/arguments.h"
#include "span_pool/cuda_backward.cuh"
#include "span_pool/cuda_banded.cuh"
#include "span_pool/cuda_banded_backward.cuh"
#include "span_pool/cuda_enumerated.cuh"
#include "span_pool/cuda_forward.cuh"
#include "span_pool/cuda_maximum.cuh"

namespace spanbert {
namespace {

using backward::PoolGrads;

// A raw call with everything it points to kept alive.
struct Prepared {
  std::vector<Tensor> kept;
  PoolWork work{};
  int64_t element = 0;  // bytes
  bool banded = false;  // whether sums are made by matrix products, if rows are aligned
};

Prepared prepare(const Tensor& hidden, const SpanArguments& spans, const PoolArguments& inputs) {
  const auto& [scores, table, table_index, parts] = inputs;
  STD_TORCH_CHECK(hidden.dim() == 2, "hidden must have shape [T, H]");
  Prepared p;
  PoolWork& work = p.work;
  p.kept.push_back(with_aligned_rows(hidden));
  p.element = hidden.element_size();
  work.hidden = p.kept[0].const_data_ptr();
  work.hidden_stride = p.kept[0].stride(0);
  work.columns = hidden.size(1);
  // Of 16 bits, where a tile of sorted spans shares enough of its tokens.
  const bool wide = spans.max_width <= 0 || spans.max_width > 4;
  p.banded = p.element == 2 && !spans.cu_seqlens && 8 * spans.num_spans >= hidden.size(0) && wide;
  work.spans = sorted_spans(spans, hidden.size(0), p.kept);
  if (scores) {
    STD_TORCH_CHECK(
        scores->dim() == 2 && scores->size(0) == work.spans.tokens && scores->scalar_type() == ScalarType::Float,
        "scores must have shape [T, heads] and dtype float32");
    p.kept.push_back(torch::stable::contiguous(*scores));
    work.scores = p.kept.back().const_data_ptr<float>();
    work.heads = scores->size(1);
  }
  if (table) {
    STD_TORCH_CHECK(table->dim() == 2 && table->scalar_type() == hidden.scalar_type(),
                    "width_embedding must have shape [R, E] and the dtype of hidden");
    p.kept.push_back(torch::stable::contiguous(*table));
    work.table = p.kept.back().const_data_ptr();
    work.table_rows = table->size(0);
    work.table_columns = table->size(1);
  }
  if (table_index) work.table_index = indices(table_index, spans.num_spans, "width_index", p.kept);
  std::fill(std::begin(work.offset), std::end(work.offset), -1);
  int64_t asked = 0;
  for (const int64_t part : parts) {
    STD_TORCH_CHECK(part >= 0 && part < kParts && !(asked >> part & 1), "bad or repeated part ", part);
    STD_TORCH_CHECK(part != kAttention || scores, "part attention needs scores");
    STD_TORCH_CHECK(part != kWidth || table, "part width needs width_embedding");
    asked |= int64_t{1} << part;
    const int64_t size = part == kAttention ? work.columns * work.heads
                         : part == kWidth   ? work.table_columns
                                            : work.columns;
    if (size > 0) work.offset[part] = work.output_columns;
    work.output_columns += size;
  }
  return p;
}

// Whether every row of these parts, in a tensor of rows `stride` apart, can be read or written N columns at a time.
bool parts_aligned(const Prepared& p, const void* pointer, int64_t stride, int64_t bytes) {
  const PoolWork& work = p.work;
  bool aligned = all_multiples(bytes, {address(pointer), stride * p.element, work.columns * p.element});
  for (int part = 0; part < kParts; ++part) {
    if (part != kWidth && work.offset[part] >= 0) aligned &= work.offset[part] * p.element % bytes == 0;
  }
  return aligned;
}

// How the chunks of columns of a product are shared between blocks: where there are few tiles of work, by several.
struct Chunks {
  int64_t each, shares;

  Chunks(int64_t tiles, int64_t columns) {
    const int64_t all = ceil_divide(columns, banded::kChunk);
    each = ceil_divide(all, std::min(all, std::max<int64_t>(1, ceil_divide(512, tiles))));
    shares = ceil_divide(all, each);
  }
};

// Sums and means, which take no more work then.
template <class S>
void launch_banded_forward(PoolWork& work, const Stream& stream) {
  const int64_t tiles = ceil_divide(work.spans.count, banded::kSpans);
  const Chunks chunks(tiles, work.columns);
  SPANBERT_LAUNCH_SHARED(banded::forward<S>, banded::Shared<S>, blocks_for(tiles, 1, chunks.shares), banded::kThreads,
                         stream, work, chunks.each, chunks.shares);
  work.offset[kMean] = work.offset[kSum] = -1;
}

// Spans of a block: long runs share more, short ones fill the GPU, which has room for about a thousand blocks.
int64_t run_of(int64_t count, int64_t tiles, int64_t most = 128) {
  int64_t run = most;
  while (run / 2 >= 16 && ceil_divide(count, run) * tiles < 1024) run /= 2;
  return run;
}

// Maxima, which take no more work then.
template <class S, int Winner>
void launch_maxima(PoolWork& work, const Stream& stream) {
  const int64_t tiles = ceil_divide(work.columns, maxima::kTile),
                run = run_of(work.spans.count, tiles, maxima::kMostSpans);
  SPANBERT_LAUNCH_SHARED((maxima::sorted<S, Winner>), maxima::Shared<Winner>, blocks_for(work.spans.count, run, tiles),
                         maxima::kThreads, stream, work, static_cast<int>(run), static_cast<unsigned>(tiles));
  work.offset[kMax] = -1;
}

template <class S>
void launch_forward(const Prepared& p, bool enumerated, const Stream& stream) {
  PoolWork work = p.work;
  const int64_t tiles = std::max<int64_t>(1, ceil_divide(work.columns, kLanes * forward::kColumns<S>));
  const bool output_aligned = parts_aligned(p, work.output, work.output_columns, 16);
  const auto asked = [&](auto... parts) { return (false || ... || (work.offset[parts] >= 0)); };
  if constexpr (sizeof(S) == 2) {
    if (p.banded && output_aligned && asked(kMean, kSum)) launch_banded_forward<S>(work, stream);
    if (p.banded && output_aligned && asked(kMax) && work.hidden_stride < int64_t{1} << 30) {
      !work.winners            ? launch_maxima<S, 0>(work, stream)
      : work.winner_bytes == 1 ? launch_maxima<S, 1>(work, stream)
                               : launch_maxima<S, 4>(work, stream);
    }
    if (!asked(kStart, kEnd, kMean, kSum, kMax, kAttention, kWidth)) return;
  }
  const bool sums = asked(kMean, kSum), maximum = asked(kMax), softmax = asked(kAttention);
  const bool rest = maximum || softmax || asked(kStart, kEnd, kWidth);
  if (enumerated && output_aligned && !rest && asked(kMean) != asked(kSum)) {
    const auto kernel = asked(kMean) ? forward::enumerated_sums<S, true> : forward::enumerated_sums<S, false>;
    const int64_t blocks = blocks_for(work.spans.tokens, forward::kWarps, tiles);
    SPANBERT_LAUNCH(kernel, blocks, forward::kThreads, stream, work, tiles);
    return;
  }
  const auto launch = [&]<int Kinds>(std::integral_constant<int, Kinds>) {
    if (enumerated) {
      const int64_t blocks = blocks_for(work.spans.tokens, forward::kWarps, tiles);
      SPANBERT_LAUNCH((forward::enumerated<S, Kinds>), blocks, forward::kThreads, stream, work, tiles, output_aligned);
      return;
    }
    const int64_t run = run_of(work.spans.count, tiles);
    const int64_t blocks = blocks_for(work.spans.count, run, tiles);
    SPANBERT_LAUNCH((forward::sorted<S, Kinds>), blocks, forward::kThreads, stream, work, run, tiles, output_aligned);
  };
  if (sums + maximum + softmax > 1) return launch(std::integral_constant<int, forward::kEverything>{});
  if (softmax) return launch(std::integral_constant<int, forward::kSoftmax>{});
  if (maximum) return launch(std::integral_constant<int, forward::kMaximum>{});
  launch(std::integral_constant<int, forward::kSums>{});
}

std::tuple<Tensor, Tensor, Tensor> forward_operator(const Tensor& hidden, const SpanArguments& spans,
                                                    const PoolArguments& inputs, bool keep) {
  const Stream stream(hidden);
  Prepared p = prepare(hidden, spans, inputs);
  const auto& parts = inputs.parts;
  const int64_t num_spans = spans.num_spans, max_width = spans.max_width;
  PoolWork& work = p.work;
  const auto asked = [&](Part part) { return keep && std::find(parts.begin(), parts.end(), part) != parts.end(); };
  const bool bytes = 0 < max_width && max_width <= 256;
  Tensor winners = torch::stable::new_empty(hidden, {asked(kMax) ? num_spans : 0, asked(kMax) ? work.columns : 0},
                                            bytes ? ScalarType::Byte : ScalarType::Int);
  Tensor lse = torch::stable::new_empty(hidden, {asked(kAttention) ? num_spans : 0, asked(kAttention) ? work.heads : 0},
                                        ScalarType::Float);
  Tensor output = torch::stable::new_empty(hidden, {num_spans, work.output_columns});
  work.output = output.mutable_data_ptr();
  work.winners = asked(kMax) ? winners.mutable_data_ptr() : nullptr;
  work.winner_bytes = bytes ? 1 : 4;
  work.lse = asked(kAttention) ? lse.mutable_data_ptr<float>() : nullptr;
  if (output.numel() > 0) {
    with_gpu_storage(hidden, [&](auto s) { launch_forward<decltype(s)>(p, spans.cu_seqlens.has_value(), stream); });
  }
  return {output, winners, lse};
}

template <class S>
void launch_backward(const Prepared& p, PoolGrads grads, Tensor& grad_scores, Tensor& grad_table, const Tensor& hidden,
                     const Stream& stream) {
  const PoolWork& work = p.work;
  constexpr int64_t kBytes = backward::kColumns * sizeof(S);
  const bool attention = work.offset[kAttention] >= 0;
  grads.aligned = parts_aligned(p, grads.output, grads.output_stride, kBytes);
  grads.aligned_hidden = all_multiples(kBytes, {address(grads.hidden), work.columns * p.element});
  const auto floats = [&](std::initializer_list<int64_t> sizes) {
    return torch::stable::new_empty(hidden, std::vector<int64_t>(sizes), ScalarType::Float);
  };

  const int64_t tiles = ceil_divide(work.columns, kLanes * backward::kColumns), pairs = work.spans.count * work.heads;
  Tensor softmaxes = floats({attention ? 3 : 0, pairs}), partial = grad_scores;
  if (attention && pairs > 0) {
    float* values = softmaxes.mutable_data_ptr<float>();
    grads.pivot = values, grads.inverse = values + pairs, grads.dot = values + 2 * pairs;
    const int64_t blocks = blocks_for(pairs, backward::kWarps, 1);
    SPANBERT_LAUNCH(backward::softmaxes<S>, blocks, backward::kThreads, stream, work, grads, values, values + pairs,
                    values + 2 * pairs);
  }
  if (attention && tiles > 1) partial = floats({tiles, work.spans.tokens, work.heads});
  grads.scores = partial.numel() > 0 ? partial.mutable_data_ptr<float>() : nullptr;
  const auto asked = [&](auto... parts) { return (false || ... || (work.offset[parts] >= 0)); };
  const bool sums_alone = asked(kMean, kSum) && !asked(kStart, kEnd, kMax, kAttention);
  bool multiplied = false;
  if constexpr (sizeof(S) == 2) {
    multiplied = p.banded && sums_alone && parts_aligned(p, grads.output, grads.output_stride, 16) &&
                 all_multiples(16, {address(grads.hidden), work.columns * p.element});
    if (multiplied) {
      const int64_t own = ceil_divide(work.spans.tokens, banded::kOwn);
      const Chunks chunks(own, work.columns);
      SPANBERT_LAUNCH_SHARED(banded::tokens<S>, banded::SharedBackward<S>, blocks_for(own, 1, chunks.shares),
                             banded::kThreads, stream, work, grads, chunks.each, chunks.shares);
    }
  }
  if (work.spans.tokens > 0 && tiles > 0 && !multiplied) {
    const int64_t blocks = blocks_for(work.spans.tokens, backward::kWarps * backward::kGroup, tiles);
    SPANBERT_LAUNCH(backward::tokens<S>, blocks, backward::kThreads, stream, work, grads, tiles);
    if (attention && tiles > 1) {
      const int64_t count = work.spans.tokens * work.heads;
      SPANBERT_LAUNCH(backward::sum_parts<float>, blocks_for(count, 256, 1), 256, stream, grads.scores, tiles, count,
                      grad_scores.mutable_data_ptr<float>());
    }
  }

  const int64_t cells = work.table_rows * work.table_columns;
  if (work.offset[kWidth] < 0 || cells == 0) return;
  // Runs of 2048 spans, longer ones where the partial sums would take more than 16 MB.
  const int64_t most = std::max<int64_t>(1, (int64_t{1} << 22) / cells);
  const int64_t run = std::max<int64_t>(2048, ceil_divide(std::max<int64_t>(1, work.spans.count), most));
  const int64_t runs = std::max<int64_t>(1, ceil_divide(work.spans.count, run));
  Tensor sums = floats({runs, work.table_rows, work.table_columns});
  const int64_t warps = runs * work.table_rows * ceil_divide(work.table_columns, kLanes);
  SPANBERT_LAUNCH(backward::table_rows<S>, blocks_for(warps, backward::kWarps, 1), backward::kThreads, stream, work,
                  grads, run, runs, sums.mutable_data_ptr<float>());
  SPANBERT_LAUNCH(backward::sum_parts<S>, blocks_for(cells, 256, 1), 256, stream, sums.const_data_ptr<float>(), runs,
                  cells, static_cast<S*>(grad_table.mutable_data_ptr()));
}

// The log-sum-exps that the forward kept are not read: their rounding would be in every weight. A span's maximum and
// sum are computed again, at the price of reading its scores.
std::tuple<Tensor, Tensor, Tensor> backward_operator(const Tensor& grad_output, const Tensor& hidden,
                                                     const Tensor& argmax, const Tensor& /*lse*/,
                                                     const SpanArguments& spans, const PoolArguments& inputs) {
  const Stream stream(hidden);
  Prepared p = prepare(hidden, spans, inputs);
  const OptionalTensor &scores = inputs.scores, &table = inputs.table;
  const int64_t num_spans = spans.num_spans;
  PoolWork& work = p.work;
  STD_TORCH_CHECK(grad_output.dim() == 2 && grad_output.size(0) == num_spans &&
                      grad_output.size(1) == work.output_columns && grad_output.scalar_type() == hidden.scalar_type(),
                  "grad_output must have the output's shape and dtype");
  const Tensor grad = with_dense_rows(grad_output);
  const Tensor winners = torch::stable::contiguous(argmax);
  if (work.offset[kMax] >= 0) {
    STD_TORCH_CHECK(winners.size(0) == num_spans && winners.size(1) == work.columns,
                    "argmax has the wrong shape: the forward did not keep it");
    work.winners = const_cast<void*>(winners.const_data_ptr());
    work.winner_bytes = static_cast<int>(winners.element_size());
  }
  const bool weighed = work.offset[kAttention] >= 0, widths = work.offset[kWidth] >= 0;
  Tensor grad_hidden = torch::stable::new_empty(hidden, {work.spans.tokens, work.columns});
  // Where no kernel writes them, they are zero.
  Tensor grad_scores = !scores   ? torch::stable::new_empty(hidden, {0}, ScalarType::Float)
                       : weighed ? torch::stable::new_empty(*scores, scores->sizes())
                                 : torch::stable::new_zeros(*scores, scores->sizes());
  Tensor grad_table = !table   ? torch::stable::new_empty(hidden, {0})
                      : widths ? torch::stable::new_empty(*table, table->sizes())
                               : torch::stable::new_zeros(*table, table->sizes());
  PoolGrads grads{};
  grads.output = grad.const_data_ptr();
  grads.output_stride = grad.stride(0);
  grads.hidden = grad_hidden.mutable_data_ptr();
  with_gpu_storage(hidden,
                   [&](auto s) { launch_backward<decltype(s)>(p, grads, grad_scores, grad_table, hidden, stream); });
  return {grad_hidden, grad_scores, grad_table};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(SPANBERT_NAMESPACE, SPANBERT_KEY, library) {
  library.impl("span_pool_forward", SPANBERT_BOX(&spanbert::forward_operator));
  library.impl("span_pool_backward", SPANBERT_BOX(&spanbert::backward_operator));
}
