// span_score on a CPU: the walks of span_linear/walk.h, with an activation, dropout and a second layer at their end.
//
// A block of columns of the layer between is reduced against the second layer's weight as soon as it is there: a span
// keeps one vector of partial sums a score, which the column blocks add to in their order. The backward has the same
// block again, and with it the second layer's gradient, added up group by group.

#include "span_linear/activations.h"
#include "span_linear/walk.h"
#include "span_score/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

// What is dropped is 0 even where it was not finite.
template <class A, int N>
[[gnu::always_inline]] inline void drop(const A* keep_factors, Vector<A> (&values)[N]) {
  for (int v = 0; v < N; ++v) {
    const Vector<A> factor = load(keep_factors + v * lanes<A>);
    values[v] = factor == 0 ? Vector<A>{} : values[v] * factor;
  }
}

template <class A>
void forward(const SpanScoreCall& call, A* output, int64_t first, int64_t last) {
  using V = Vector<A>;
  const ProjectedCall& inner = call.inner;
  const Factors<A> factors(inner, first, last);
  const Activate<A> activate(inner.activation);
  const int64_t spans = first == last ? inner.empties : inner.groups.first[last] - inner.groups.first[first];
  const int64_t scores = call.scores;
  const std::unique_ptr<V[]> sums(new V[spans * scores]);
  for (int64_t i = 0; i < spans * scores; ++i) sums[i] = V{};
  const auto row_of = [&](int64_t i) { return first == last ? inner.empty[i] : factors.spans[i].row; };
  ForwardWalk<A>(inner, factors).run([&](int64_t c, int count, int64_t i, const auto& pre) SPANBERT_INLINE {
    constexpr int N = sizeof(pre) / sizeof(V);
    const int used = N == 1 ? count : lanes<A>;
    V values[N];
    activate.forward(pre, values);
    if (call.dropout.active) {
      A keep_factors[N * lanes<A>];
      call.dropout.factors(0, row_of(i), c, N * lanes<A>, keep_factors);
      drop(keep_factors, values);
    }
    V* const sum = sums.get() + i * scores;
    for (int64_t s = 0; s < scores; ++s) {
      const A* weight = static_cast<const A*>(call.out_weight) + s * call.out_stride + c;
      V total = sum[s];
      for (int v = 0; v < N; ++v) total += values[v] * load_up_to(weight + v * lanes<A>, used);
      sum[s] = total;
    }
  });
  for (int64_t i = 0; i < spans; ++i) {
    A* to = output + row_of(i) * scores;
    for (int64_t s = 0; s < scores; ++s) to[s] = sum_of<A>(sums[i * scores + s]);
  }
}

template <class A>
struct ScoreLoss {
  using V = Vector<A>;

  const SpanScoreCall& call;
  const SpanScoreGrads& grads;
  const int64_t left, width;
  const std::unique_ptr<A[]> weight{new A[call.scores * kProjectedTile]};
  const std::unique_ptr<A[]> group{new A[call.scores * kProjectedTile]};  // gradient of the weight, of one group
  const Activate<A> activate{call.inner.activation};

  ScoreLoss(const SpanScoreCall& call, const SpanScoreGrads& grads, int64_t tile)
      : call(call),
        grads(grads),
        left(tile * kProjectedTile),
        width(call.inner.columns - left < kProjectedTile ? call.inner.columns - left : kProjectedTile) {
    for (int64_t s = 0; s < call.scores; ++s) {
      const A* from = static_cast<const A*>(call.out_weight) + s * call.out_stride + left;
      for (int64_t c = 0; c < kProjectedTile; ++c) {
        weight[s * kProjectedTile + c] = c < width ? from[c] : A(0);
        group[s * kProjectedTile + c] = 0;
      }
    }
  }

  template <int N>
  [[gnu::always_inline]] void gradient(int64_t row, int64_t c, int, const V (&pre)[N], V (&g)[N]) const {
    const int64_t scores = call.scores;
    const A* from = static_cast<const A*>(grads.output) + row * scores;
    const A* own = weight.get() + c;
    A* to = group.get() + c;
    A keep_factors[N * lanes<A>];
    V values[N];
    activate.forward(pre, values);
    if (call.dropout.active) {
      call.dropout.factors(0, row, left + c, N * lanes<A>, keep_factors);
      drop(keep_factors, values);
    }
    for (int v = 0; v < N; ++v) g[v] = V{};
    for (int64_t s = 0; s < scores; ++s, own += kProjectedTile, to += kProjectedTile) {
      const A grad = from[s];
      for (int v = 0; v < N; ++v) {
        store(to + v * lanes<A>, load(to + v * lanes<A>) + grad * values[v]);
        g[v] += grad * load(own + v * lanes<A>);
      }
    }
    if (call.dropout.active) drop(keep_factors, g);
    activate.backward(pre, g);
  }
  void end_group() {
    A* to = static_cast<A*>(grads.out_weight) + left;
    for (int64_t s = 0; s < call.scores; ++s, to += call.inner.columns) {
      A* from = group.get() + s * kProjectedTile;
      for (int64_t c = 0; c < width; ++c) to[c] += from[c];
      for (int64_t c = 0; c < kProjectedTile; ++c) from[c] = 0;
    }
  }
};

}  // namespace

void span_score_forward(const SpanScoreCall& call, void* output, int64_t first, int64_t last) {
  with_accumulator(call.inner.storage, [&](auto a) { forward(call, static_cast<decltype(a)*>(output), first, last); });
}

void span_score_backward(const SpanScoreCall& call, const SpanScoreGrads& grads, const void* factors, int64_t tile) {
  with_accumulator(call.inner.storage, [&](auto a) {
    using A = decltype(a);
    ScoreLoss<A> loss(call, grads, tile);
    const Factors<A> none(call.inner, 0, 0);
    BackwardWalk<A, ScoreLoss<A>> walk(call.inner, factors ? *static_cast<const Factors<A>*>(factors) : none,
                                       grads.inputs, loss, tile);
    walk.run();
  });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
