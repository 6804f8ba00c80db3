// The raw CPU operations of span_score: buffers and threads.

#include "common/dropout.h"
#include "span_linear/prepare.h"
#include "span_score/kernels.h"

namespace spanbert {
namespace {

// ops/span_score/operators.py: ScoreLayer
struct ScoreLayerArguments {
  Tensor out_weight;
  OptionalTensor documents;
  double epsilon = -1;

  auto fields() { return std::tie(out_weight, documents, epsilon); }
};

// A raw call with everything it points to kept alive.
struct Prepared {
  PreparedProjection inner;
  Tensor out_weight;
  OptionalTensor documents;
  SpanScoreCall call{};

  Prepared(const Tensor& projected, const SpanArguments& work, const ProjectedArguments& inputs,
           const ScoreLayerArguments& layer, const DropoutArguments& dropout)
      : inner(projected, work, inputs, std::nullopt), out_weight(with_dense_rows(layer.out_weight)) {
    STD_TORCH_CHECK(out_weight.dim() == 3 && out_weight.size(2) == inner.call.columns &&
                        out_weight.scalar_type() == inner.projected.scalar_type(),
                    "out_weight must have shape [D, S, O] and the dtype of projected");
    call.inner = inner.call;
    call.out_weight = out_weight.const_data_ptr();
    call.out_document = out_weight.stride(0);
    call.out_stride = out_weight.stride(1);
    call.scores = out_weight.size(1);
    call.document_count = out_weight.size(0);
    call.epsilon = layer.epsilon;
    call.dropout = dropout_of(dropout);
    if (!layer.documents) {
      STD_TORCH_CHECK(call.document_count == 1, "out_weight must be one of all spans, or documents be given");
      return;
    }
    documents = as_int64(*layer.documents);
    call.documents = documents->const_data_ptr<int64_t>();
    const SpanGroups& groups = call.inner.groups;
    STD_TORCH_CHECK(documents->numel() == call.document_count + 1,
                    "documents must have an offset more than out_weight");
    STD_TORCH_CHECK(groups.count == 0 || (groups.start[0] >= call.documents[0] &&
                                          groups.start[groups.count - 1] < call.documents[call.document_count]),
                    "documents must hold the first token of every span");
  }

  // Rows by output row in the order of the groups, those of the spans without tokens last.
  Tensor sorted(const Tensor& rows) const {
    const SpanGroups& groups = call.inner.groups;
    const Tensor dense = torch::stable::contiguous(rows);
    if (!groups.rows && call.inner.empties == 0) return dense;
    Tensor result = torch::stable::new_empty(dense, dense.sizes());
    const int64_t bytes = dense.size(1) * static_cast<int64_t>(dense.element_size()),
                  spans = groups.first[groups.count];
    const char* from = static_cast<const char*>(dense.const_data_ptr());
    char* to = static_cast<char*>(result.mutable_data_ptr());
    for (int64_t i = 0; i < dense.size(0); ++i) {
      const int64_t row = i < spans ? groups.row(i) : call.inner.empty[i - spans];
      std::memcpy(to + i * bytes, from + row * bytes, bytes);
    }
    return result;
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor& projected, const SpanArguments& work, const ProjectedArguments& inputs,
                                   const ScoreLayerArguments& layer, const DropoutArguments& dropout) {
  Prepared p(projected, work, inputs, layer, dropout);
  SpanScoreCall& call = p.call;
  const Tensor output = torch::stable::new_zeros(projected, {work.num_spans, call.scores});
  const Tensor statistics = torch::stable::new_zeros(projected, {call.normed() ? work.num_spans : 0, 2});
  if (output.numel() == 0 || call.inner.columns == 0) return {output, statistics};
  Tensor panels = torch::stable::new_empty(projected, {0});
  if (call.scores > kFewScores) {
    call.panel_size = SPANBERT_KERNEL(span_score_panel_size)(call);
    panels = torch::stable::new_empty(projected, {call.document_count, call.panel_size});
    void* to = panels.mutable_data_ptr();
    const auto pack = SPANBERT_KERNEL(span_score_pack);
    parallel_tasks(call.document_count, [&](int64_t document) { pack(call, to, document); });
    call.panels = to;
  }
  void *to = output.mutable_data_ptr(), *statistics_to = statistics.mutable_data_ptr();
  // The partial sums of a range should stay in the second cache; every range reads its tokens' projections again.
  const int64_t spans = call.scores > kFewScores ? 256 : std::max<int64_t>(64, 1024 / call.scores);
  const auto ranges = p.inner.ranges(spans, call.documents);
  const auto kernel = SPANBERT_KERNEL(span_score_forward);
  parallel_tasks(static_cast<int64_t>(ranges.size()),
                 [&](int64_t task) { kernel(call, to, statistics_to, ranges[task].first, ranges[task].second); });
  // Of no document: zeros, where the documents' weights differ.
  if (call.inner.empties > 0 && !call.documents) kernel(call, to, statistics_to, 0, 0);
  return {output, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& projected,
                                                            const SpanArguments& work, const ProjectedArguments& inputs,
                                                            const ScoreLayerArguments& layer,
                                                            const DropoutArguments& dropout,
                                                            const OptionalTensor& of_norm) {
  const Prepared p(projected, work, inputs, layer, dropout);
  const auto check = [&](const char* name, const Tensor& tensor, int64_t columns) {
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == work.num_spans && tensor.size(1) == columns &&
                        tensor.scalar_type() == projected.scalar_type(),
                    name, " must have shape [N, ", columns, "] and the dtype of projected");
  };
  check("grad_output", grad_output, p.call.scores);
  const Tensor grad = p.sorted(grad_output);
  OptionalTensor rows;
  if (of_norm) {
    check("of_norm", *of_norm, 3);
    rows = p.sorted(*of_norm);
  }
  const ProjectionGradients sums(p.inner);
  const Tensor grad_out =
      torch::stable::new_zeros(sums.projected, {p.call.document_count, p.call.scores, p.call.inner.columns});
  const SpanScoreGrads grads{sums.view(), grad.const_data_ptr(), rows ? rows->const_data_ptr() : nullptr,
                             grad_out.mutable_data_ptr()};
  const auto kernel = SPANBERT_KERNEL(span_score_backward);
  walk_back(p.inner, [&](const void* factors, int64_t tile) {
    if (factors || !p.call.documents) kernel(p.call, grads, factors, tile);
  });
  return std::tuple_cat(sums.finished(p.inner), std::make_tuple(grad_out));
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("span_score_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("span_score_backward", SPANBERT_BOX(&spanbert::backward));
}
