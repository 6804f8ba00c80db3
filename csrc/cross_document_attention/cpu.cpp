// The raw CPU operations of cross_document_attention: document weights and the pairwise softmax.

#include <limits>
#include <tuple>
#include <vector>

#include "attention/segments.h"
#include "common/parallel.h"
#include "cross_document_attention/kernels.h"

namespace spanbert {
namespace {

Tensor weights(const Tensor& q_any, const Tensor& k_any, const Tensor& lse_any, const AttentionArguments& work,
               int64_t places, double scale) {
  const Tensor q = with_dense_rows(q_any), k = with_dense_rows(k_any), lse = torch::stable::contiguous(lse_any);
  AttentionCall call = attention_call(q, k, k, scale, {});
  STD_TORCH_CHECK(lse.scalar_type() == accumulator_of(q) && lse.numel() == call.heads * call.query_rows,
                  "lse must be the forward's");
  call.lse = const_cast<void*>(lse.const_data_ptr());
  const Segments segments(work, q.size(0), k.size(0));
  const Tensor result = torch::stable::new_zeros(q, {call.query_rows, call.heads, places}, ScalarType::Float);
  for (const auto& cluster : segments.clusters) {
    STD_TORCH_CHECK(cluster.documents <= places, "too few places: ", places);
  }
  float* to = result.mutable_data_ptr<float>();
  const auto kernel = SPANBERT_KERNEL(cross_document_attention_weights);
  parallel_tasks(std::ssize(segments.all) * call.heads, [&](int64_t task) {
    const int64_t i = task / call.heads;
    kernel(call, segments.all[i], segments.key_documents[i], task % call.heads, places, to);
  });
  return result;
}

// A cluster's segments by the queries that they have.
std::vector<Pairs> pairs_of(const Segments& segments, const Segments::Cluster& cluster) {
  std::vector<Pairs> found;
  for (int64_t i = cluster.first; i < cluster.first + cluster.count; ++i) {
    if (found.empty() || found.back().all->query_rows != segments.all[i].query_rows) {
      found.push_back({segments.all.data() + i, segments.statistics.data() + i, 0});
    }
    ++found.back().count;
  }
  return found;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                                   const AttentionArguments& work, const PairArguments& statistics, double scale,
                                   const DropoutArguments& dropout) {
  const Tensor q = with_dense_rows(q_any), k = with_dense_rows(k_any), v = with_dense_rows(v_any);
  AttentionCall call = attention_call(q, k, v, scale, dropout);
  const Segments segments(work, q.size(0), k.size(0), &statistics);
  count_pairs(segments, call.heads);
  const Tensor output = torch::stable::new_zeros(q, q.sizes());
  Tensor lse = torch::stable::new_empty(q, {call.heads, statistics.size}, accumulator_of(q));
  lse = torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
  call.output = rows_of(output);
  call.lse = lse.mutable_data_ptr();
  const auto kernel = SPANBERT_KERNEL(cross_document_attention_pairwise_forward);
  std::vector<Pairs> pairs;
  for (const auto& cluster : segments.clusters) {
    const std::vector<Pairs> found = pairs_of(segments, cluster);
    pairs.insert(pairs.end(), found.begin(), found.end());
  }
  parallel_tasks(std::ssize(pairs) * call.heads,
                 [&](int64_t task) { kernel(call, pairs[task / call.heads], task % call.heads, statistics.size); });
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_any, const Tensor& q_any, const Tensor& k_any,
                                            const Tensor& v_any, const Tensor& lse_any, const AttentionArguments& work,
                                            const PairArguments& statistics, double scale,
                                            const DropoutArguments& dropout) {
  const Tensor q = with_dense_rows(q_any), k = with_dense_rows(k_any), v = with_dense_rows(v_any);
  const Tensor grad = with_dense_rows(grad_any), lse = torch::stable::contiguous(lse_any);
  AttentionCall call = attention_call(q, k, v, scale, dropout);
  STD_TORCH_CHECK(grad.scalar_type() == q.scalar_type() && lse.scalar_type() == accumulator_of(q),
                  "grad_output and lse must have the forward's dtypes");
  STD_TORCH_CHECK(grad.numel() == q.numel() && lse.numel() == call.heads * statistics.size,
                  "grad_output and lse must have the forward's shapes");
  call.lse = const_cast<void*>(lse.const_data_ptr());
  const Segments segments(work, q.size(0), k.size(0), &statistics);
  count_pairs(segments, call.heads);
  const Tensor grad_q = torch::stable::new_zeros(q, q.sizes()), grad_k = torch::stable::new_zeros(k, k.sizes());
  const Tensor grad_v = torch::stable::new_zeros(v, v.sizes());
  const AttentionGrads grads{rows_of(grad), rows_of(grad_q), rows_of(grad_k), rows_of(grad_v)};
  const auto kernel = SPANBERT_KERNEL(cross_document_attention_pairwise_backward);
  std::vector<std::vector<Pairs>> pairs;
  for (const auto& cluster : segments.clusters) pairs.push_back(pairs_of(segments, cluster));
  parallel_tasks(std::ssize(segments.clusters) * call.heads, [&](int64_t task) {
    const int64_t i = task / call.heads;
    if (pairs[i].empty()) return;
    kernel(call, grads, pairs[i].data(), std::ssize(pairs[i]), segments.clusters[i].keys, task % call.heads);
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("cross_document_attention_weights", SPANBERT_BOX(&spanbert::weights));
  library.impl("cross_document_attention_pairwise_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("cross_document_attention_pairwise_backward", SPANBERT_BOX(&spanbert::backward));
}
