// Document weights, and a softmax for each pair of documents, on a CPU.
//
// The weights are sums of exp(score - lse) over each document's keys; the scores are computed again, block by block.
// Pairwise, a cluster and head is one task: the keys of one document at a time meet all queries of the cluster
// (document_attention/attention.h), and the results are averaged. The backward runs each document's forward again for
// delta = rowsum(dO * O_j) / n, where n is the number of documents that the query sees.

#include "cross_document_attention/kernels.h"
#include "document_attention/attention.h"

namespace spanbert {
namespace SPANBERT_LEVEL {
namespace {

// 1 / n for every query of the cluster.
template <class A>
std::unique_ptr<A[]> shares(const Pairs& pairs) {
  const Neighbourhood& near = pairs.all[0];
  std::unique_ptr<A[]> share(new A[near.queries]);
  for (int64_t document = 0; document < near.documents; ++document) {
    int64_t seen = 0;
    for (int64_t i = 0; i < pairs.count; ++i) {
      seen += pairs.all[i].range_first[document] < pairs.all[i].range_first[document + 1];
    }
    std::fill(share.get() + near.query_first[document], share.get() + near.query_first[document + 1],
              seen > 0 ? A(1) / static_cast<A>(seen) : A(0));
  }
  return share;
}

}  // namespace

void cross_document_attention_weights(const AttentionCall& call, const Neighbourhood& near, const int64_t* key_first,
                                      int64_t head, int64_t most_places, float* weights) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    using A = typename Accumulator<S>::type;
    Attention<S> attention(call, near, head);
    const A* lse = static_cast<const A*>(call.lse) + head * call.query_rows;
    attention.each_scores([&](int64_t query, const A* scores, int64_t first, int64_t count) {
      const int64_t row = near.query_rows[query];
      const A pivot = lse[row] == -INFINITY ? A(0) : lse[row];
      float* to = weights + (row * call.heads + head) * most_places;
      A chunk[lanes<A>];
      int64_t place = 0;
      for (const Range& span : attention.spans) {
        for (int64_t j = span.begin; j < span.end; j += lanes<A>) {
          store(chunk, exponential(load(scores + j) * attention.score_factor - pivot));
          for (int64_t lane = 0; lane < lanes<A> && j + lane < count; ++lane) {
            while (key_first[place + 1] <= first + j + lane) ++place;
            to[place] += static_cast<float>(chunk[lane]);
          }
        }
      }
    });
  });
}

void cross_document_attention_pairwise_forward(const AttentionCall& call, const Pairs& pairs, int64_t head,
                                               int64_t most_places) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    using A = typename Accumulator<S>::type;
    const Neighbourhood& near = pairs.all[0];
    const auto share = shares<A>(pairs);
    const int64_t wide = Attention<S>(call, near, head).wide;
    const auto mean = Attention<S>::zeros(near.queries * wide);
    for (int64_t i = 0; i < pairs.count; ++i) {
      Attention<S> attention(call, pairs.all[i], head);
      attention.forward(0, near.queries, [&](int64_t query, const A* sums, A maximum, A total, bool any) {
        if (!any) return;
        const int64_t row = head * call.query_rows + near.query_rows[query];
        static_cast<A*>(call.lse)[row * most_places + pairs.places[i]] = maximum + std::log(total);
        for (int64_t c = 0; c < wide; ++c) mean[query * wide + c] += sums[c] / total;
      });
    }
    const Attention<S> attention(call, near, head);
    for (int64_t query = 0; query < near.queries; ++query) {
      attention.narrow(mean.get() + query * wide, share[query], attention.row(call.output, near.query_rows[query]));
    }
  });
}

void cross_document_attention_pairwise_backward(const AttentionCall& call, const AttentionGrads& grads,
                                                const Pairs& pairs, int64_t head, int64_t most_places) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    using A = typename Accumulator<S>::type;
    const Neighbourhood& near = pairs.all[0];
    const auto share = shares<A>(pairs);
    const int64_t wide = Attention<S>(call, near, head).wide;
    const auto grad_queries = Attention<S>::zeros(near.queries * wide), grad_row = Attention<S>::buffer(wide);
    const auto lse = Attention<S>::buffer(near.queries), delta = Attention<S>::buffer(near.queries);
    for (int64_t i = 0; i < pairs.count; ++i) {
      Attention<S> attention(call, pairs.all[i], head, &grads);
      attention.forward(0, near.queries, [&](int64_t query, const A* sums, A, A total, bool any) {
        const int64_t row = near.query_rows[query];
        lse[query] = static_cast<const A*>(call.lse)[(head * call.query_rows + row) * most_places + pairs.places[i]];
        attention.widen(attention.query(grads.output, query), 1, 1, grad_row.get());
        A dot = 0;
        for (int64_t c = 0; c < wide; ++c) dot += grad_row[c] * sums[c];
        delta[query] = any ? dot * share[query] / total : A(0);
      });
      attention.backward(grads, lse.get(), delta.get(), share.get(), grad_queries.get());
    }
    const Attention<S> attention(call, near, head);
    for (int64_t query = 0; query < near.queries; ++query) {
      attention.narrow(grad_queries.get() + query * wide, static_cast<A>(call.scale),
                       attention.row(grads.q, near.query_rows[query]));
    }
  });
}

}  // namespace SPANBERT_LEVEL
}  // namespace spanbert
