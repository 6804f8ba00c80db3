// The raw CPU operations of span_linear: buffers and threads.

#include "common/results.h"
#include "span_linear/prepare.h"

namespace spanbert {
namespace {

Tensor forward(const Tensor& projected, const SpanArguments& work, const ProjectedArguments& inputs,
               const OptionalTensor& addend) {
  const PreparedProjection p(projected, work, inputs, addend);
  const Tensor output = new_result(projected, {work.num_spans, p.call.columns}).tensor;
  if (output.numel() == 0) return output;
  void* to = output.mutable_data_ptr();
  // A range's rows of the output, a column block wide, should stay in the second cache and its pages at hand.
  constexpr int64_t kSpans = 256;
  const auto ranges = p.ranges(kSpans);
  const auto kernel = SPANBERT_KERNEL(span_linear_forward);
  parallel_tasks(static_cast<int64_t>(ranges.size()),
                 [&](int64_t task) { kernel(p.call, to, ranges[task].first, ranges[task].second); });
  if (p.call.empties > 0) kernel(p.call, to, 0, 0);
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& projected,
                                                            const SpanArguments& work, const ProjectedArguments& inputs,
                                                            const OptionalTensor& addend) {
  const PreparedProjection p(projected, work, inputs, addend);
  STD_TORCH_CHECK(grad_output.dim() == 2 && grad_output.size(0) == work.num_spans &&
                      grad_output.size(1) == p.call.columns && grad_output.scalar_type() == projected.scalar_type(),
                  "grad_output must have the output's shape and dtype");
  const Tensor grad = with_dense_rows(grad_output);
  const ProjectionGradients sums(p);
  Tensor grad_addend = torch::stable::new_empty(projected, {addend ? work.num_spans : 0, p.call.columns});
  const SpanLinearGrads grads{sums.view(), grad.const_data_ptr(), grad.stride(0),
                              addend ? grad_addend.mutable_data_ptr() : nullptr};
  const auto kernel = SPANBERT_KERNEL(span_linear_backward);
  walk_back(p, [&](const void* factors, int64_t tile) { kernel(p.call, grads, factors, tile); });
  if (!addend) grad_addend = torch::stable::new_zeros(projected, {0});
  return std::tuple_cat(sums.finished(p), std::make_tuple(grad_addend));
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("span_linear_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("span_linear_backward", SPANBERT_BOX(&spanbert::backward));
}
