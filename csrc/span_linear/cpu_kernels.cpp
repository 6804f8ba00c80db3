// span_linear on a CPU: the walks of walk.h, with an activation at their end.

#include "span_linear/activations.h"
#include "span_linear/kernels.h"
#include "span_linear/walk.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

template <class A>
void forward(const ProjectedCall& call, A* output, int64_t first, int64_t last) {
  const Factors<A> factors(call, first, last);
  const Activate<A> activate(call.activation);
  const auto write = [&](int64_t c, int count, int64_t i, const auto& pre) SPANBERT_INLINE {
    constexpr int N = sizeof(pre) / sizeof(pre[0]);
    const int64_t row = first == last ? call.empty[i] : factors.spans[i].row;
    Vector<A> values[N];
    activate.forward(pre, values);
    A* to = output + row * call.columns + c;
    for (int v = 0; v < N; ++v) store_up_to(to + v * lanes<A>, values[v], N == 1 ? count : lanes<A>);
  };
  ForwardWalk<A>(call, factors).run(write);
}

template <class A>
struct LinearLoss {
  using V = Vector<A>;

  const ProjectedCall& call;
  const SpanLinearGrads& grads;
  const int64_t left;
  const Activate<A> activate{call.activation};

  int64_t document(int64_t) const { return 0; }

  template <class RowOf>
  void gradients(int64_t, int64_t, int64_t spans, const RowOf& row_of, A* rows) const {
    const int64_t width = std::min(call.columns - left, kProjectedTile);
    for (int64_t i = 0; i < spans; ++i, rows += kProjectedTile) {
      const A* from = static_cast<const A*>(grads.output) + row_of(i) * grads.output_stride + left;
      A* to = grads.addend ? static_cast<A*>(grads.addend) + row_of(i) * call.columns + left : nullptr;
      each_block<A>(width, [&](auto n, int64_t c, int count) SPANBERT_INLINE {
        const int used = n == 1 ? count : lanes<A>;
        V pre[n], g[n];
        for (int v = 0; v < n; ++v) {
          pre[v] = load(rows + c + v * lanes<A>);
          g[v] = load_up_to(from + c + v * lanes<A>, used);
        }
        activate.backward(pre, g);
        for (int v = 0; v < n; ++v) {
          store(rows + c + v * lanes<A>, g[v]);
          if (to) store_up_to(to + c + v * lanes<A>, g[v], used);
        }
      });
    }
  }
};

}  // namespace

void span_linear_forward(const ProjectedCall& call, void* output, int64_t first, int64_t last) {
  with_accumulator(call.storage, [&](auto a) { forward(call, static_cast<decltype(a)*>(output), first, last); });
}

void* new_projected_factors(const ProjectedCall& call, int64_t first, int64_t last) {
  if (call.storage == Storage::float64) return new Factors<double>(call, first, last);
  return new Factors<float>(call, first, last);
}

void delete_projected_factors(const ProjectedCall& call, void* factors) {
  if (call.storage == Storage::float64) {
    delete static_cast<Factors<double>*>(factors);
  } else {
    delete static_cast<Factors<float>*>(factors);
  }
}

void span_linear_backward(const ProjectedCall& call, const SpanLinearGrads& grads, const void* factors, int64_t tile) {
  with_accumulator(call.storage, [&](auto a) {
    using A = decltype(a);
    LinearLoss<A> loss{call, grads, tile * kProjectedTile};
    const Factors<A> none(call, 0, 0);
    BackwardWalk<A, LinearLoss<A>> walk(call, factors ? *static_cast<const Factors<A>*>(factors) : none, grads.inputs,
                                        loss, tile);
    walk.run();
  });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
