// The joint softmax: attention.h and, for small segments, small.h, for few queries few.h say how it works. Which of
// them takes a segment depends on nothing but itself.

#include "attention/attention.h"
#include "attention/few.h"
#include "attention/small.h"
#include "document_attention/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

// `Kernel`: Attention or FewQueries, `rows` the Attention that knows its rows.
template <class S, class Kernel>
void forward_head(Kernel& kernel, const Attention<S>& rows, int64_t first, int64_t last) {
  using A = typename Accumulator<S>::type;
  const AttentionCall& call = rows.call;
  A* lse = static_cast<A*>(call.lse) + rows.head * call.query_rows;
  kernel.forward(first, last, [&](int64_t query, const A* sums, A maximum, A total, bool any) {
    const int64_t row = rows.segment.query_rows[query];
    rows.narrow(sums, any ? 1 / total : A(0), rows.row(call.output, row));
    lse[row] = maximum + std::log(total);
  });
}

template <class S>
void write_queries(const Attention<S>& rows, const AttentionGrads& grads,
                   const typename Accumulator<S>::type* grad_queries) {
  for (int64_t q = 0; q < rows.segment.queries; ++q) {
    rows.narrow(grad_queries + q * rows.wide, static_cast<typename Accumulator<S>::type>(rows.call.scale),
                rows.row(grads.q, rows.segment.query_rows[q]));
  }
}

// `emit...`: as that of Attention::backward, or none, which writes the gradients.
template <class S, class... Emit>
void backward_head(const AttentionCall& call, const AttentionGrads& grads, const Segment& segment, int64_t head,
                   const Emit&... emit) {
  using A = typename Accumulator<S>::type;
  Attention<S> attention(call, segment, head, &grads);
  const auto lse = attention.buffer(segment.queries), grad_queries = attention.zeros(segment.queries * attention.wide);
  for (int64_t q = 0; q < segment.queries; ++q) {
    lse[q] = static_cast<const A*>(call.lse)[head * call.query_rows + segment.query_rows[q]];
  }
  attention.backward(grads, lse.get(), nullptr, grad_queries.get(), emit...);
  write_queries(attention, grads, grad_queries.get());
}

}  // namespace

bool document_attention_forward(const AttentionCall& call, const Segment& segment, const Segment* next, int64_t head,
                                int64_t heads, int64_t first, int64_t last) {
  bool taken = false;
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    const bool few = is_few(segment);
    taken = !few && is_small(segment) && Small<S>(call, segment, next).forward(head, heads);
    if (taken) return;
    for (int64_t h = head; h < head + heads; ++h) {
      if (few) {
        FewQueries<S> kernel(call, segment, h);
        forward_head(kernel, kernel.rows, first, last);
      } else {
        Attention<S> kernel(call, segment, h);
        forward_head(kernel, kernel, first, last);
      }
    }
  });
  return taken;
}

bool document_attention_backward(const AttentionCall& call, const AttentionGrads& grads, const Segment& segment,
                                 const Segment* next, int64_t head, int64_t heads) {
  bool taken = false;
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    taken = is_small(segment) && Small<S>(call, segment, next).backward(grads, head, heads);
    if (taken) return;
    for (int64_t h = head; h < head + heads; ++h) backward_head<S>(call, grads, segment, h);
  });
  return taken;
}

void document_attention_sparse_backward(const AttentionCall& call, const AttentionGrads& grads, const Segment* all,
                                        int64_t count, const RowRange& keys, int64_t head) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    using A = typename Accumulator<S>::type;
    const KeySums<A> sums(call, keys);
    for (int64_t i = 0; i < count; ++i) {
      const Segment& segment = all[i];
      if (is_few(segment)) {
        FewQueries<S> kernel(call, segment, head);
        const auto grad_queries = kernel.rows.zeros(segment.queries * kernel.rows.wide);
        kernel.backward(grads, nullptr, grad_queries.get(), sums);
        write_queries(kernel.rows, grads, grad_queries.get());
      } else {
        backward_head<S>(call, grads, segment, head, sums.adding(segment));
      }
    }
    sums.template write<S>(call, grads, head);
  });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
