// The raw CPU operations of document_attention: buffers, work list, threads.

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/parallel.h"
#include "common/tensors.h"
#include "document_attention/kernels.h"

namespace spanbert {
namespace {

// Queries of one forward task: long documents are shared out, short ones are one task a head.
constexpr int64_t kTaskQueries = 480;

struct Work {
  int64_t begin, end, first, last;
};

Rows rows_of(const Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

std::vector<Work> work_list(const Tensor& cu_seqlens, int64_t tokens, int64_t task_queries) {
  const Tensor kept = as_int64(cu_seqlens);
  const int64_t* offsets = kept.const_data_ptr<int64_t>();
  const int64_t documents = kept.numel() - 1;
  STD_TORCH_CHECK(documents >= 0 && offsets[0] == 0 && offsets[documents] == tokens,
                  "cu_seqlens must run from 0 to the number of tokens, ", tokens);
  std::vector<Work> work;
  for (int64_t d = 0; d < documents; ++d) {
    const int64_t length = offsets[d + 1] - offsets[d];
    STD_TORCH_CHECK(length >= 0, "cu_seqlens must ascend, but cu_seqlens[", d + 1, "] = ", offsets[d + 1],
                    " comes after ", offsets[d]);
    for (int64_t first = 0; first < length; first += task_queries) {
      work.push_back({offsets[d], offsets[d + 1], first, std::min(length, first + task_queries)});
    }
  }
  // Longest first: the short ones fill the gaps at the end.
  std::stable_sort(work.begin(), work.end(),
                   [](const Work& a, const Work& b) { return a.end - a.begin > b.end - b.begin; });
  return work;
}

AttentionCall make_call(const Tensor& q, const Tensor& k, const Tensor& v, double scale, double dropout_p,
                        const std::optional<Tensor>& seed) {
  STD_TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3, "q, k, v must have shape [T, heads, head_dim]");
  for (int64_t d = 0; d < 3; ++d) {
    STD_TORCH_CHECK(k.size(d) == q.size(d) && v.size(d) == q.size(d), "q, k, v must have the same shape");
  }
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                  "q, k, v must have one dtype");
  AttentionCall call{};
  call.storage = storage_of(q);
  call.tokens = q.size(0);
  call.heads = q.size(1);
  call.head_dim = q.size(2);
  call.scale = scale;
  call.q = rows_of(q);
  call.k = rows_of(k);
  call.v = rows_of(v);
  if (dropout_p > 0) {
    STD_TORCH_CHECK(seed && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
                    "dropout needs one int64 seed");
    call.dropout.active = true;
    call.dropout.seed = static_cast<uint64_t>(*seed->const_data_ptr<int64_t>());
    call.dropout.threshold = static_cast<uint32_t>(std::min(dropout_p * 4294967296.0, 4294967295.0));
    call.dropout.scale = 1.0 / (1.0 - dropout_p);
  }
  return call;
}

ScalarType accumulator_of(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                                   const Tensor& cu_seqlens, double scale, double dropout_p,
                                   const std::optional<Tensor>& seed) {
  const Tensor q = with_dense_rows(q_any), k = with_dense_rows(k_any), v = with_dense_rows(v_any);
  AttentionCall call = make_call(q, k, v, scale, dropout_p, seed);
  const Tensor output = torch::stable::new_empty(q, q.sizes());
  const Tensor lse = torch::stable::new_empty(q, {call.heads, call.tokens}, accumulator_of(q));
  call.output = rows_of(output);
  call.lse = lse.mutable_data_ptr();
  const auto work = work_list(cu_seqlens, call.tokens, kTaskQueries);
  const auto kernel = SPANBERT_KERNEL(document_attention_forward);
  parallel_tasks(static_cast<int64_t>(work.size()) * call.heads, [&](int64_t task) {
    const Work& w = work[task / call.heads];
    kernel(call, task % call.heads, w.begin, w.end, w.first, w.last);
  });
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_any, const Tensor& q_any, const Tensor& k_any,
                                            const Tensor& v_any, const Tensor& output_any, const Tensor& lse_any,
                                            const Tensor& cu_seqlens, double scale, double dropout_p,
                                            const std::optional<Tensor>& seed) {
  const Tensor q = with_dense_rows(q_any), k = with_dense_rows(k_any), v = with_dense_rows(v_any);
  const Tensor grad = with_dense_rows(grad_any), output = with_dense_rows(output_any);
  const Tensor lse = torch::stable::contiguous(lse_any);
  AttentionCall call = make_call(q, k, v, scale, dropout_p, seed);
  STD_TORCH_CHECK(grad.scalar_type() == q.scalar_type() && output.scalar_type() == q.scalar_type() &&
                      lse.scalar_type() == accumulator_of(q),
                  "grad_output, output and lse must have the forward's dtypes");
  STD_TORCH_CHECK(grad.numel() == q.numel() && output.numel() == q.numel() && lse.numel() == call.heads * call.tokens,
                  "grad_output, output and lse must have the forward's shapes");
  call.output = rows_of(output);
  call.lse = const_cast<void*>(lse.const_data_ptr());
  const Tensor grad_q = torch::stable::new_empty(q, q.sizes()), grad_k = torch::stable::new_empty(q, q.sizes());
  const Tensor grad_v = torch::stable::new_empty(q, q.sizes());
  const AttentionGrads grads{rows_of(grad), rows_of(grad_q), rows_of(grad_k), rows_of(grad_v)};
  const auto work = work_list(cu_seqlens, call.tokens, std::max<int64_t>(1, call.tokens));
  const auto kernel = SPANBERT_KERNEL(document_attention_backward);
  parallel_tasks(static_cast<int64_t>(work.size()) * call.heads, [&](int64_t task) {
    const Work& w = work[task / call.heads];
    kernel(call, grads, task % call.heads, w.begin, w.end);
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("document_attention_forward", TORCH_BOX(&spanbert::forward));
  library.impl("document_attention_backward", TORCH_BOX(&spanbert::backward));
}
