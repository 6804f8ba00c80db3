// The raw CPU operations of span_score: buffers and threads.

#include "common/dropout.h"
#include "span_linear/prepare.h"
#include "span_score/kernels.h"

namespace spanbert {
namespace {

// A raw call with everything it points to kept alive.
struct Prepared {
  PreparedProjection inner;
  Tensor out_weight;
  SpanScoreCall call{};
};

Prepared prepare(PreparedProjection inner, const Tensor& out_weight, const DropoutArguments& dropout) {
  Prepared p{std::move(inner), with_dense_rows(out_weight)};
  STD_TORCH_CHECK(out_weight.dim() == 2 && out_weight.size(1) == p.inner.call.columns &&
                      out_weight.scalar_type() == p.inner.projected.scalar_type(),
                  "out_weight must have shape [S, O] and the dtype of projected");
  p.call.inner = p.inner.call;
  p.call.out_weight = p.out_weight.const_data_ptr();
  p.call.out_stride = p.out_weight.stride(0);
  p.call.scores = out_weight.size(0);
  p.call.dropout = dropout_of(dropout);
  return p;
}

Tensor forward(const Tensor& projected, const SpanArguments& work, const ProjectedArguments& inputs,
               const Tensor& out_weight, const DropoutArguments& dropout) {
  const Prepared p = prepare({projected, work, inputs, std::nullopt}, out_weight, dropout);
  Tensor output = torch::stable::new_empty(projected, {work.num_spans, p.call.scores});
  if (output.numel() == 0) return output;
  void* to = output.mutable_data_ptr();
  // The partial sums of a range should stay in the second cache; every range reads its tokens' projections again.
  const int64_t spans = std::max<int64_t>(64, 1024 / p.call.scores);
  const auto ranges = p.inner.ranges(spans);
  const auto kernel = SPANBERT_KERNEL(span_score_forward);
  parallel_tasks(static_cast<int64_t>(ranges.size()),
                 [&](int64_t task) { kernel(p.call, to, ranges[task].first, ranges[task].second); });
  if (p.call.inner.empties > 0) kernel(p.call, to, 0, 0);
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& projected,
                                                            const SpanArguments& work, const ProjectedArguments& inputs,
                                                            const Tensor& out_weight, const DropoutArguments& dropout) {
  const Prepared p = prepare({projected, work, inputs, std::nullopt}, out_weight, dropout);
  STD_TORCH_CHECK(grad_output.dim() == 2 && grad_output.size(0) == work.num_spans &&
                      grad_output.size(1) == p.call.scores && grad_output.scalar_type() == projected.scalar_type(),
                  "grad_output must have the output's shape and dtype");
  const Tensor grad = torch::stable::contiguous(grad_output);
  const ProjectionGradients sums(p.inner);
  const Tensor grad_out = torch::stable::new_zeros(sums.projected, {p.call.scores, p.call.inner.columns});
  const SpanScoreGrads grads{sums.view(), grad.const_data_ptr(), grad_out.mutable_data_ptr()};
  const auto kernel = SPANBERT_KERNEL(span_score_backward);
  walk_back(p.inner, [&](const void* factors, int64_t tile) { kernel(p.call, grads, factors, tile); });
  return std::tuple_cat(sums.finished(p.inner), std::make_tuple(grad_out));
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("span_score_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("span_score_backward", SPANBERT_BOX(&spanbert::backward));
}
