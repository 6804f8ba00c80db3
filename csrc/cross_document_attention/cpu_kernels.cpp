// Document weights, and a softmax for each pair of documents, on a CPU.
//
// The weights are sums of exp(score - lse) over each document's keys; the scores are computed again, block by block.
// Pairwise, the keys of one document at a time meet all queries of the cluster, or of one document, in one task
// (attention/attention.h, few.h), and the results are averaged.

#include <span>

#include "attention/attention.h"
#include "attention/few.h"
#include "cross_document_attention/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

// 1 / n for every query of the cluster.
template <class A>
std::unique_ptr<A[]> shares(const Pairs& pairs) {
  const Segment& segment = pairs.all[0];
  std::unique_ptr<A[]> share(new A[segment.queries]);
  for (int64_t document = 0; document < segment.documents; ++document) {
    int64_t seen = 0;
    for (int64_t i = 0; i < pairs.count; ++i) {
      seen += pairs.all[i].range_first[document] < pairs.all[i].range_first[document + 1];
    }
    std::fill(share.get() + segment.query_first[document], share.get() + segment.query_first[document + 1],
              seen > 0 ? A(1) / static_cast<A>(seen) : A(0));
  }
  return share;
}

// f(kernel, the Attention that knows its rows) with the kernel for a segment.
template <class S, class F>
void with_kernel(const AttentionCall& call, const Segment& segment, int64_t head, const F& f) {
  if (is_few(segment)) {
    FewQueries<S> kernel(call, segment, head);
    f(kernel);
  } else {
    Attention<S> kernel(call, segment, head);
    f(kernel);
  }
}

}  // namespace

void cross_document_attention_weights(const AttentionCall& call, const Segment& segment, const KeyDocuments& documents,
                                      int64_t head, int64_t most_places, float* weights) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    using A = typename Accumulator<S>::type;
    Attention<S> attention(call, segment, head);
    const A* lse = static_cast<const A*>(call.lse) + head * call.query_rows;
    attention.each_scores([&](int64_t query, const A* scores, int64_t first, int64_t count) {
      const int64_t row = segment.query_rows[query];
      const A pivot = lse[row] == -INFINITY ? A(0) : lse[row];
      float* to = weights + (row * call.heads + head) * most_places;
      A chunk[lanes<A>];
      int64_t document = 0;
      for (const Range& span : attention.spans) {
        for (int64_t j = span.begin; j < span.end; j += lanes<A>) {
          store(chunk, exponential(load(scores + j) * attention.score_factor - pivot));
          for (int64_t lane = 0; lane < lanes<A> && j + lane < count; ++lane) {
            while (documents.first[document + 1] <= first + j + lane) ++document;
            to[documents.places[document]] += static_cast<float>(chunk[lane]);
          }
        }
      }
    });
  });
}

void cross_document_attention_pairwise_forward(const AttentionCall& call, const Pairs& pairs, int64_t head,
                                               int64_t size) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    using A = typename Accumulator<S>::type;
    const Segment& segment = pairs.all[0];
    const auto share = shares<A>(pairs);
    const Attention<S> rows(call, segment, head);
    const auto mean = rows.zeros(segment.queries * rows.wide);
    for (int64_t i = 0; i < pairs.count; ++i) {
      with_kernel<S>(call, pairs.all[i], head, [&](auto& kernel) {
        kernel.forward(0, segment.queries, [&](int64_t query, const A* sums, A maximum, A total, bool any) {
          if (!any) return;
          static_cast<A*>(call.lse)[head * size + pairs.statistics[i] + segment.query_rows[query]] =
              maximum + std::log(total);
          for (int64_t c = 0; c < rows.wide; ++c) mean[query * rows.wide + c] += sums[c] / total;
        });
      });
    }
    for (int64_t query = 0; query < segment.queries; ++query) {
      rows.narrow(mean.get() + query * rows.wide, share[query], rows.row(call.output, segment.query_rows[query]));
    }
  });
}

void cross_document_attention_pairwise_backward(const AttentionCall& call, const AttentionGrads& grads,
                                                const Pairs* all, int64_t count, const RowRange& keys, int64_t head) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    using A = typename Accumulator<S>::type;
    const bool sparse = all[0].all[0].sparse;
    const KeySums<A> sums(call, sparse ? keys : RowRange{0, 0});
    for (const Pairs& pairs : std::span(all, count)) {
      const Segment& segment = pairs.all[0];
      const auto share = shares<A>(pairs);
      const Attention<S> rows(call, segment, head);
      const auto grad_queries = rows.zeros(segment.queries * rows.wide);
      for (const Segment& pair : std::span(pairs.all, pairs.count)) {
        if (is_few(pair)) {
          FewQueries<S>(call, pair, head).backward(grads, share.get(), grad_queries.get(), sums);
          continue;
        }
        Attention<S> attention(call, pair, head, &grads);
        if (sparse) {
          attention.backward(grads, nullptr, share.get(), grad_queries.get(), sums.adding(pair));
        } else {
          attention.backward(grads, nullptr, share.get(), grad_queries.get());
        }
      }
      for (int64_t query = 0; query < segment.queries; ++query) {
        rows.narrow(grad_queries.get() + query * rows.wide, static_cast<A>(call.scale),
                    rows.row(grads.q, segment.query_rows[query]));
      }
    }
    if (sparse) sums.template write<S>(call, grads, head);
  });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
