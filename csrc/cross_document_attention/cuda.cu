// The raw CUDA operations of cross_document_attention besides its joint softmax, which is document_attention's: buffers
// and launches. No host code waits for the GPU.

#include <tuple>

#include "attention/cuda_call.h"
#include "cross_document_attention/cuda_documents.cuh"

namespace spanbert {
namespace {

using documents::DocumentsWork;

Tensor weights_operator(const Tensor& q, const Tensor& k, const Tensor& lse, const AttentionArguments& arguments,
                        int64_t places, double scale) {
  const Stream stream(q);
  PreparedAttention p = prepare(q, k, {}, arguments, scale, {});
  if (p.empty_queries()) return torch::stable::new_zeros(q, {q.size(0), q.size(1), places}, ScalarType::Float);
  Tensor weights = torch::stable::new_empty(q, {q.size(0), q.size(1), places}, ScalarType::Float);
  p.work.lse = p.statistics(lse, q.size(1) * q.size(0), "lse");
  const DocumentsWork work{p.work, places, weights.mutable_data_ptr<float>()};
  with_gpu_storage(q, [&](auto s) {
    with_columns(p.work.dim, [&](auto n) {
      const auto kernel = documents::weights<decltype(s), decltype(n)::value>;
      SPANBERT_LAUNCH(kernel, row_blocks(p.work, p.work.queries), documents::kThreads, stream, work);
    });
  });
  return weights;
}

DocumentsWork pairs_work(PreparedAttention& p, const PairArguments& statistics, float* lse) {
  DocumentsWork pairs{};
  pairs.attention = p.work;
  pairs.size = statistics.size;
  pairs.lse = lse;
  if (p.links > 0) {
    pairs.slots = indices(statistics.slots, p.links, "slots", p.kept);
    pairs.back_slots = indices(statistics.back_slots, p.links, "back_slots", p.kept);
  }
  return pairs;
}

std::tuple<Tensor, Tensor> pairwise_forward_operator(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const AttentionArguments& arguments,
                                                     const PairArguments& statistics, double scale,
                                                     const DropoutArguments& dropout) {
  const Stream stream(q);
  PreparedAttention p = prepare(q, k, v, arguments, scale, dropout);
  Tensor lse = torch::stable::new_empty(q, {q.size(1), statistics.size}, ScalarType::Float);
  lse = torch::stable::fill_(lse, -INFINITY);
  if (p.empty_queries()) return {torch::stable::new_zeros(q, q.sizes()), lse};
  Tensor output = torch::stable::new_empty(q, q.sizes());
  p.work.output = p.rows(output);
  const DocumentsWork work = pairs_work(p, statistics, lse.mutable_data_ptr<float>());
  with_gpu_storage(q, [&](auto s) {
    with_columns(p.work.dim, [&](auto n) {
      const auto kernel = documents::pairwise_forward<decltype(s), decltype(n)::value>;
      SPANBERT_LAUNCH(kernel, row_blocks(p.work, p.work.queries), documents::kThreads, stream, work);
    });
  });
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor> pairwise_backward_operator(const Tensor& grad_output, const Tensor& q,
                                                              const Tensor& k, const Tensor& v, const Tensor& lse,
                                                              const AttentionArguments& arguments,
                                                              const PairArguments& statistics, double scale,
                                                              const DropoutArguments& dropout) {
  const Stream stream(q);
  PreparedAttention p = prepare(q, k, v, arguments, scale, dropout);
  if (p.empty_queries() || p.empty_keys()) {
    return {torch::stable::new_zeros(q, q.sizes()), torch::stable::new_zeros(k, k.sizes()),
            torch::stable::new_zeros(v, v.sizes())};
  }
  p.work.grad_output = p.like(grad_output, q, "grad_output");
  Tensor sums = torch::stable::new_empty(q, {2, q.size(1), statistics.size}, ScalarType::Float);
  Tensor share = torch::stable::new_empty(q, {q.size(1), q.size(0)}, ScalarType::Float);
  Tensor grad_q = torch::stable::new_empty(q, q.sizes()), grad_k = torch::stable::new_empty(k, k.sizes());
  Tensor grad_v = torch::stable::new_empty(v, v.sizes());
  p.work.grad_q = p.rows(grad_q);
  p.work.grad_k = p.rows(grad_k);
  p.work.grad_v = p.rows(grad_v);
  DocumentsWork work = pairs_work(p, statistics, p.statistics(lse, q.size(1) * statistics.size, "lse"));
  work.delta = sums.mutable_data_ptr<float>();
  work.inverse = work.delta + q.size(1) * statistics.size;
  work.share = share.mutable_data_ptr<float>();
  with_gpu_storage(q, [&](auto s) {
    with_columns(p.work.dim, [&](auto n) {
      const auto queries = documents::pairwise_backward_queries<decltype(s), decltype(n)::value>;
      const auto keys = documents::pairwise_backward_keys<decltype(s), decltype(n)::value>;
      // The queries' kernel leaves delta, the masses and share for the keys'.
      SPANBERT_LAUNCH(queries, row_blocks(p.work, p.work.queries), documents::kThreads, stream, work);
      SPANBERT_LAUNCH(keys, row_blocks(p.work, p.work.keys), documents::kThreads, stream, work);
    });
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(SPANBERT_NAMESPACE, SPANBERT_KEY, library) {
  library.impl("cross_document_attention_weights", SPANBERT_BOX(&spanbert::weights_operator));
  library.impl("cross_document_attention_pairwise_forward", SPANBERT_BOX(&spanbert::pairwise_forward_operator));
  library.impl("cross_document_attention_pairwise_backward", SPANBERT_BOX(&spanbert::pairwise_backward_operator));
}
