// The raw CPU operations of document_attention: buffers, tasks, threads.

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "common/parallel.h"
#include "document_attention/neighbourhoods.h"

namespace spanbert {
namespace {

// Queries of one forward task where a neighbourhood is shared out.
constexpr int64_t kTaskQueries = 480;

struct Task {
  const Neighbourhood* near;
  int64_t head, first, last;
};

// Largest first: the small ones fill the gaps at the end. A neighbourhood that would keep one thread busy for long
// after the others is shared out, at the price of packing its keys several times.
std::vector<Task> forward_tasks(const std::vector<Neighbourhood>& all, int64_t heads) {
  double total = 0;
  std::vector<const Neighbourhood*> ordered;
  const auto size = [](const Neighbourhood& near) { return static_cast<double>(near.queries) * near.keys; };
  for (const Neighbourhood& near : all) {
    total += size(near) * heads;
    if (near.queries > 0) ordered.push_back(&near);
  }
  std::stable_sort(ordered.begin(), ordered.end(), [&](auto* a, auto* b) { return size(*a) > size(*b); });
  std::vector<Task> tasks;
  for (const Neighbourhood* near : ordered) {
    const bool shared = size(*near) * 8 * torch::stable::get_num_threads() > total;
    const int64_t piece = shared ? kTaskQueries : near->queries;
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t first = 0; first < near->queries; first += piece) {
        tasks.push_back({near, head, first, std::min(near->queries, first + piece)});
      }
    }
  }
  return tasks;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                                   const Tensor& documents, const OptionalTensor& link_offsets,
                                   const OptionalTensor& links, const OptionalTensor& /*back_offsets*/,
                                   const OptionalTensor& /*back_links*/, const OptionalTensor& /*query_tiles*/,
                                   const OptionalTensor& /*key_tiles*/, int64_t /*most_queries*/, int64_t /*most_keys*/,
                                   bool include_self, bool anchor_queries, bool anchor_keys, bool /*clustered*/,
                                   double scale, double dropout_p, const OptionalTensor& seed) {
  const Tensor q = with_dense_rows(q_any), k = with_dense_rows(k_any), v = with_dense_rows(v_any);
  AttentionCall call = attention_call(q, k, v, scale, dropout_p, seed);
  const Neighbourhoods near({documents, link_offsets, links, include_self, anchor_queries, anchor_keys}, q.size(0),
                            k.size(0), false);
  // Anchors of empty documents belong to no task.
  const Tensor output =
      anchor_queries ? torch::stable::new_zeros(q, q.sizes()) : torch::stable::new_empty(q, q.sizes());
  Tensor lse = torch::stable::new_empty(q, {call.heads, call.query_rows}, accumulator_of(q));
  if (anchor_queries) lse = torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
  call.output = rows_of(output);
  call.lse = lse.mutable_data_ptr();
  const auto tasks = forward_tasks(near.all, call.heads);
  const auto kernel = SPANBERT_KERNEL(document_attention_forward);
  parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[i];
    kernel(call, *task.near, task.head, task.first, task.last);
  });
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_any, const Tensor& q_any, const Tensor& k_any,
                                            const Tensor& v_any, const Tensor& output_any, const Tensor& lse_any,
                                            const Tensor& documents, const OptionalTensor& link_offsets,
                                            const OptionalTensor& links, const OptionalTensor& /*back_offsets*/,
                                            const OptionalTensor& /*back_links*/, const OptionalTensor& /*query_tiles*/,
                                            const OptionalTensor& /*key_tiles*/, int64_t /*most_queries*/,
                                            int64_t /*most_keys*/, bool include_self, bool anchor_queries,
                                            bool anchor_keys, bool /*clustered*/, double scale, double dropout_p,
                                            const OptionalTensor& seed) {
  const Tensor q = with_dense_rows(q_any), k = with_dense_rows(k_any), v = with_dense_rows(v_any);
  const Tensor grad = with_dense_rows(grad_any), output = with_dense_rows(output_any);
  const Tensor lse = torch::stable::contiguous(lse_any);
  AttentionCall call = attention_call(q, k, v, scale, dropout_p, seed);
  STD_TORCH_CHECK(grad.scalar_type() == q.scalar_type() && output.scalar_type() == q.scalar_type() &&
                      lse.scalar_type() == accumulator_of(q),
                  "grad_output, output and lse must have the forward's dtypes");
  STD_TORCH_CHECK(
      grad.numel() == q.numel() && output.numel() == q.numel() && lse.numel() == call.heads * call.query_rows,
      "grad_output, output and lse must have the forward's shapes");
  call.output = rows_of(output);
  call.lse = const_cast<void*>(lse.const_data_ptr());
  const Neighbourhoods near({documents, link_offsets, links, include_self, anchor_queries, anchor_keys}, q.size(0),
                            k.size(0), false);
  const auto gradient = [](const Tensor& like, bool anchors) {
    return anchors ? torch::stable::new_zeros(like, like.sizes()) : torch::stable::new_empty(like, like.sizes());
  };
  const Tensor grad_q = gradient(q, anchor_queries), grad_k = gradient(k, anchor_keys);
  const Tensor grad_v = gradient(v, anchor_keys);
  const AttentionGrads grads{rows_of(grad), rows_of(grad_q), rows_of(grad_k), rows_of(grad_v)};
  std::vector<const Neighbourhood*> ordered;
  for (const Neighbourhood& each : near.all) ordered.push_back(&each);
  std::stable_sort(ordered.begin(), ordered.end(), [](auto* a, auto* b) {
    return static_cast<double>(a->queries) * a->keys > static_cast<double>(b->queries) * b->keys;
  });
  const auto kernel = SPANBERT_KERNEL(document_attention_backward);
  parallel_tasks(static_cast<int64_t>(ordered.size()) * call.heads,
                 [&](int64_t task) { kernel(call, grads, *ordered[task / call.heads], task % call.heads); });
  return {grad_q, grad_k, grad_v};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("document_attention_forward", TORCH_BOX(&spanbert::forward));
  library.impl("document_attention_backward", TORCH_BOX(&spanbert::backward));
}
