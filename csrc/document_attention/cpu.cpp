// The raw CPU operations of document_attention: buffers, tasks, threads.

#include <algorithm>
#include <atomic>
#include <limits>
#include <tuple>
#include <vector>

#include "attention/segments.h"
#include "common/parallel.h"
#include "common/results.h"
#include "document_attention/kernels.h"

namespace spanbert {
namespace {

// Queries of one forward task where a segment is shared out.
constexpr int64_t kTaskQueries = 480;

struct Task {
  const Segment* segment;
  int64_t head, heads, first, last;
};

double scores_of(const Segment& segment) { return static_cast<double>(segment.queries) * segment.keys; }

// Largest first; the small ones fill the gaps at the end, in the order in which they lie in memory, several heads in a
// task where there are tasks enough. With `share`, a segment that would keep one thread busy for long after the others
// is cut into pieces, at the price of packing its keys several times. Without `sparse`, those are left out.
std::vector<Task> tasks_of(const std::vector<Segment>& all, int64_t heads, bool share, bool sparse) {
  const int64_t threads = torch::stable::get_num_threads();
  double total = 0;
  std::vector<const Segment*> ordered;
  for (const Segment& segment : all) {
    if (segment.sparse && !sparse) continue;
    total += scores_of(segment) * heads;
    ordered.push_back(&segment);
  }
  const auto rank = [](const Segment& segment) { return is_small(segment) ? 0 : scores_of(segment); };
  std::stable_sort(ordered.begin(), ordered.end(), [&](auto* a, auto* b) { return rank(*a) > rank(*b); });
  std::vector<Task> tasks;
  for (const Segment* segment : ordered) {
    const bool cut = share && !is_small(*segment) && scores_of(*segment) * 8 * threads > total;
    const int64_t piece = cut ? kTaskQueries : std::max<int64_t>(1, segment->queries);
    const double fair = total / (16.0 * threads * std::max(1.0, scores_of(*segment)));
    const int64_t together = is_small(*segment) ? std::max<int64_t>(1, std::min<double>(fair, heads)) : 1;
    for (int64_t head = 0; head < heads; head += together) {
      for (int64_t first = 0; first < std::max<int64_t>(1, segment->queries); first += piece) {
        tasks.push_back(
            {segment, head, std::min(together, heads - head), first, std::min(segment->queries, first + piece)});
      }
    }
  }
  return tasks;
}

// Heads of segments, forward and backward, since the library was loaded: by small.h, and by attention.h.
std::atomic<int64_t> small_heads{0}, other_heads{0};

int64_t heads_taken(bool small) { return small ? small_heads : other_heads; }

// f(task, next) says whether small.h took the task. `next` is the segment of which the same thread takes the same heads
// afterwards, or nullptr. A thread draws a task ahead where all of them are small.
template <class F>
void run(const std::vector<Task>& tasks, const F& f) {
  std::vector<char> small(tasks.size());
  if (std::all_of(tasks.begin(), tasks.end(), [](const Task& task) { return is_small(*task.segment); })) {
    parallel_tasks_ahead(std::ssize(tasks), [&](int64_t i, int64_t next) {
      const bool same = next >= 0 && tasks[next].head == tasks[i].head && tasks[next].heads == tasks[i].heads;
      small[i] = f(tasks[i], same ? tasks[next].segment : nullptr);
    });
  } else {
    parallel_tasks(std::ssize(tasks), [&](int64_t i) { small[i] = f(tasks[i], nullptr); });
  }
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (tasks[i].first == 0) (small[i] ? small_heads : other_heads) += tasks[i].heads;
  }
}

// Rows that no task writes, anchors of empty documents, are zero.
Tensor rows_like(const Tensor& like, bool all_written) {
  return all_written ? new_result(like, like.sizes()).tensor : new_zero_result(like, like.sizes());
}

std::tuple<Tensor, Tensor> forward(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                                   const AttentionArguments& work, double scale, const DropoutArguments& dropout) {
  const Tensor q = with_dense_rows(q_any), k = with_dense_rows(k_any), v = with_dense_rows(v_any);
  AttentionCall call = attention_call(q, k, v, scale, dropout);
  const Segments segments(work, q.size(0), k.size(0));
  count_pairs(segments, call.heads);
  const Tensor output = rows_like(q, segments.has_queries(q.size(0)));
  Tensor lse = torch::stable::new_empty(q, {call.heads, call.query_rows}, accumulator_of(q));
  if (!segments.has_queries(q.size(0))) lse = torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
  call.output = rows_of(output);
  call.lse = lse.mutable_data_ptr();
  const auto kernel = SPANBERT_KERNEL(document_attention_forward);
  run(tasks_of(segments.all, call.heads, true, true), [&](const Task& task, const Segment* next) {
    return kernel(call, *task.segment, next, task.head, task.heads, task.first, task.last);
  });
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_any, const Tensor& q_any, const Tensor& k_any,
                                            const Tensor& v_any, const Tensor& lse_any, const AttentionArguments& work,
                                            double scale, const DropoutArguments& dropout) {
  const Tensor q = with_dense_rows(q_any), k = with_dense_rows(k_any), v = with_dense_rows(v_any);
  const Tensor grad = with_dense_rows(grad_any), lse = torch::stable::contiguous(lse_any);
  AttentionCall call = attention_call(q, k, v, scale, dropout);
  STD_TORCH_CHECK(grad.scalar_type() == q.scalar_type() && lse.scalar_type() == accumulator_of(q),
                  "grad_output and lse must have the forward's dtypes");
  STD_TORCH_CHECK(grad.numel() == q.numel() && lse.numel() == call.heads * call.query_rows,
                  "grad_output and lse must have the forward's shapes");
  call.lse = const_cast<void*>(lse.const_data_ptr());
  const Segments segments(work, q.size(0), k.size(0));
  count_pairs(segments, call.heads);
  const Tensor grad_q = rows_like(q, segments.has_queries(q.size(0)));
  const Tensor grad_k = rows_like(k, segments.has_keys(k.size(0)));
  const Tensor grad_v = rows_like(v, segments.has_keys(k.size(0)));
  const AttentionGrads grads{rows_of(grad), rows_of(grad_q), rows_of(grad_k), rows_of(grad_v)};
  const auto kernel = SPANBERT_KERNEL(document_attention_backward);
  run(tasks_of(segments.all, call.heads, false, false), [&](const Task& task, const Segment* next) {
    return kernel(call, grads, *task.segment, next, task.head, task.heads);
  });
  std::vector<Segments::Cluster> sparse;
  std::copy_if(segments.clusters.begin(), segments.clusters.end(), std::back_inserter(sparse),
               [](const auto& cluster) { return cluster.sparse; });
  const auto sparse_kernel = SPANBERT_KERNEL(document_attention_sparse_backward);
  parallel_tasks(std::ssize(sparse) * call.heads, [&](int64_t task) {
    const auto& cluster = sparse[task / call.heads];
    sparse_kernel(call, grads, segments.all.data() + cluster.first, cluster.count, cluster.keys, task % call.heads);
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_FRAGMENT(spanbert_kernels, library) {
  library.def("document_attention_heads_taken(bool small) -> int");
  library.def("document_attention_pairs_met() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CompositeExplicitAutograd, library) {
  library.impl("document_attention_heads_taken", TORCH_BOX(&spanbert::heads_taken));
  library.impl("document_attention_pairs_met", TORCH_BOX(&spanbert::pairs_met));
}

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("document_attention_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("document_attention_backward", SPANBERT_BOX(&spanbert::backward));
}
