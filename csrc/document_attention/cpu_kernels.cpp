// The joint softmax: attention.h and, for small neighbourhoods, small.h say how it works. Which of them takes a
// neighbourhood depends on nothing but itself.

#include "document_attention/attention.h"
#include "document_attention/small.h"

namespace spanbert {
namespace SPANBERT_LEVEL {
namespace {

template <class S>
void forward_head(const AttentionCall& call, const Neighbourhood& near, int64_t head, int64_t first, int64_t last) {
  using A = typename Accumulator<S>::type;
  Attention<S> attention(call, near, head);
  A* lse = static_cast<A*>(call.lse) + head * call.query_rows;
  attention.forward(first, last, [&](int64_t query, const A* sums, A maximum, A total, bool any) {
    const int64_t row = near.query_rows[query];
    attention.narrow(sums, any ? 1 / total : A(0), attention.row(call.output, row));
    lse[row] = maximum + std::log(total);
  });
}

template <class S>
void backward_head(const AttentionCall& call, const AttentionGrads& grads, const Neighbourhood& near, int64_t head) {
  using A = typename Accumulator<S>::type;
  Attention<S> attention(call, near, head, &grads);
  const auto lse = attention.buffer(near.queries), delta = attention.buffer(near.queries);
  const auto grad_queries = attention.zeros(near.queries * attention.wide);
  for (int64_t q = 0; q < near.queries; ++q) {
    const int64_t row = near.query_rows[q];
    lse[q] = static_cast<const A*>(call.lse)[head * call.query_rows + row];
    delta[q] = attention.dot(attention.row(grads.output, row), attention.row(call.output, row));
  }
  attention.backward(grads, lse.get(), delta.get(), nullptr, grad_queries.get());
  for (int64_t q = 0; q < near.queries; ++q) {
    attention.narrow(grad_queries.get() + q * attention.wide, static_cast<A>(call.scale),
                     attention.row(grads.q, near.query_rows[q]));
  }
}

}  // namespace

bool document_attention_forward(const AttentionCall& call, const Neighbourhood& near, const Neighbourhood* next,
                                int64_t head, int64_t heads, int64_t first, int64_t last) {
  bool taken = false;
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    taken = is_small(near) && Small<S>(call, near, next).forward(head, heads);
    if (taken) return;
    for (int64_t h = head; h < head + heads; ++h) forward_head<S>(call, near, h, first, last);
  });
  return taken;
}

bool document_attention_backward(const AttentionCall& call, const AttentionGrads& grads, const Neighbourhood& near,
                                 const Neighbourhood* next, int64_t head, int64_t heads) {
  bool taken = false;
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    taken = is_small(near) && Small<S>(call, near, next).backward(grads, head, heads);
    if (taken) return;
    for (int64_t h = head; h < head + heads; ++h) backward_head<S>(call, grads, near, h);
  });
  return taken;
}

}  // namespace SPANBERT_LEVEL
}  // namespace spanbert
