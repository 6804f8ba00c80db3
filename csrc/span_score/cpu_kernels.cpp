// span_score on a CPU: the walks of span_linear/walk.h, with an activation, dropout, a norm and a second layer behind.
//
// A block of columns of the layer between is reduced against the second layer's weight as soon as it is there. Few
// scores are vectors of partial sums, more of them the product of a batch of spans with rows of the transposed weight.
// The backward has the same blocks again, and multiplies a batch's gradients by the weight, and by the layer between.
//
// The norm needs no second pass: (x - mean) / deviation times a weight's row is (x . row - mean * sum of the row) /
// deviation, with mean and deviation from sums of x and x^2. What is summed is x less a number near the mean, the mean
// of the span's first columns, so that nothing cancels.

#include <algorithm>

#include "common/product.h"
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

// Sums over the columns of the layer between, of some spans: of the products with the weight's rows.
template <class A>
struct FewScores {
  using V = Vector<A>;

  const A* weight;
  const int64_t stride, scores;
  const std::unique_ptr<V[]> sums;

  FewScores(const SpanScoreCall& call, int64_t document, int64_t spans)
      : weight(static_cast<const A*>(call.out_weight) + document * call.out_document),
        stride(call.out_stride),
        scores(call.scores),
        sums(new V[spans * scores]) {
    for (int64_t i = 0; i < spans * scores; ++i) sums[i] = V{};
  }

  template <int N>
  [[gnu::always_inline]] void add(int64_t i, int64_t c, int used, const V (&values)[N]) const {
    V* const sum = sums.get() + i * scores;
    for (int64_t s = 0; s < scores; ++s) {
      const A* row = weight + s * stride + c;
      V total = sum[s];
      for (int v = 0; v < N; ++v) total += values[v] * load_up_to(row + v * lanes<A>, used);
      sum[s] = total;
    }
  }
  A sum(int64_t i, int64_t s) const { return sum_of<A>(sums[i * scores + s]); }
};

template <class A>
struct ManyScores {
  using V = Vector<A>;

  const Panels<A> panels;
  const int64_t spans, padded;
  const std::unique_ptr<A[]> sums, batch{new A[kBatch * kProjectedTile]};

  ManyScores(const SpanScoreCall& call, int64_t document, int64_t spans)
      : panels{static_cast<const A*>(call.panels) + document * call.panel_size, call.inner.columns, call.scores},
        spans(spans),
        padded(whole_vectors<A>(call.scores)),
        sums(new A[spans * padded]()) {}

  template <int N>
  [[gnu::always_inline]] void add(int64_t i, int64_t c, int used, const V (&values)[N]) const {
    A* const to = batch.get() + i % kBatch * kProjectedTile;
    for (int v = 0; v < N; ++v) store(to + v * lanes<A>, values[v]);
    if ((i + 1) % kBatch == 0 || i + 1 == spans) multiply(i, c, N == 1 ? used : kProjectedTile);
  }
  // The batch that ends with span i.
  [[gnu::noinline]] void multiply(int64_t i, int64_t c, int64_t depth) const {
    const int64_t first = i - i % kBatch;
    product(i + 1 - first, depth, batch.get(), kProjectedTile, 1, panels, c, sums.get() + first * padded, padded, true);
  }
  A sum(int64_t i, int64_t s) const { return sums[i * padded + s]; }
};

// Of the norm: what the values of every span add up to, less the mean of the first ones, and the values' squares.
template <class A>
struct Moments {
  using V = Vector<A>;

  const std::unique_ptr<A[]> shifts;
  const std::unique_ptr<V[]> sums, squares;

  explicit Moments(int64_t spans) : shifts(new A[spans]), sums(new V[spans]), squares(new V[spans]) {
    for (int64_t i = 0; i < spans; ++i) sums[i] = squares[i] = V{};
  }

  // Shifts the values.
  template <int N>
  [[gnu::always_inline]] void add(int64_t i, int64_t c, int used, V (&values)[N]) const {
    if (c == 0) {
      V sum{};
      for (int v = 0; v < N; ++v) sum += values[v];
      shifts[i] = sum_of<A>(sum) / static_cast<A>(N == 1 ? used : N * lanes<A>);
    }
    const A shift = shifts[i];
    V sum = sums[i], square = squares[i];
    for (int v = 0; v < N; ++v) {
      values[v] -= shift;
      if (N == 1) {
        for (int lane = used; lane < lanes<A>; ++lane) values[v][lane] = 0;
      }
      sum += values[v];
      square += values[v] * values[v];
    }
    sums[i] = sum;
    squares[i] = square;
  }
  // The mean of what was shifted, and 1 / the deviation.
  std::pair<A, A> of(int64_t i, int64_t columns, double epsilon) const {
    const A mean = sum_of<A>(sums[i]) / static_cast<A>(columns);
    const A variance = sum_of<A>(squares[i]) / static_cast<A>(columns) - mean * mean;
    return {mean, 1 / std::sqrt((variance < 0 ? A(0) : variance) + static_cast<A>(epsilon))};
  }
};

// The sum of every row of a document's weight.
template <class A>
std::unique_ptr<A[]> row_sums(const SpanScoreCall& call, int64_t document) {
  std::unique_ptr<A[]> sums(new A[call.scores]);
  for (int64_t s = 0; s < call.scores; ++s) {
    const A* row = static_cast<const A*>(call.out_weight) + document * call.out_document + s * call.out_stride;
    Vector<A> sum{};
    each_block<A>(call.inner.columns, [&](auto n, int64_t c, int count) {
      for (int v = 0; v < n; ++v) sum += load_up_to(row + c + v * lanes<A>, n == 1 ? count : lanes<A>);
    });
    sums[s] = sum_of<A>(sum);
  }
  return sums;
}

template <class A, class Scores>
void forward(const SpanScoreCall& call, A* output, A* statistics, int64_t first, int64_t last) {
  using V = Vector<A>;
  const ProjectedCall& inner = call.inner;
  const Factors<A> factors(inner, first, last);
  const Activate<A> activate(inner.activation);
  const int64_t spans = first == last ? inner.empties : inner.groups.first[last] - inner.groups.first[first];
  int64_t document = 0;
  if (call.documents && first < last) {
    const int64_t* end = call.documents + call.document_count + 1;
    document = std::upper_bound(call.documents, end, inner.groups.start[first]) - call.documents - 1;
  }
  const Scores scores(call, document, spans);
  const bool normed = call.normed();
  const Moments<A> moments(normed ? spans : 0);
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
    if (normed) moments.add(i, c, used, values);
    scores.add(i, c, used, values);
  });
  const auto sums_of_rows = normed ? row_sums<A>(call, document) : nullptr;
  for (int64_t i = 0; i < spans; ++i) {
    const int64_t row = row_of(i);
    A* to = output + row * call.scores;
    if (!normed) {
      for (int64_t s = 0; s < call.scores; ++s) to[s] = scores.sum(i, s);
      continue;
    }
    const auto [mean, scale] = moments.of(i, inner.columns, call.epsilon);
    for (int64_t s = 0; s < call.scores; ++s) to[s] = (scores.sum(i, s) - mean * sums_of_rows[s]) * scale;
    statistics[row * 2] = moments.shifts[i] + mean;
    statistics[row * 2 + 1] = scale;
  }
}

// C [rows, kProjectedTile] += A [rows, depth] B [depth, kProjectedTile].
template <class A>
inline void tile_product(int64_t rows, int64_t depth, const A* a, int64_t a_row, int64_t a_column, const A* b, A* c) {
  for (int64_t column = 0; column < kProjectedTile; column += kPanel<A>) {
    product_panel<A>(panel_vectors<A>(column, kProjectedTile), rows, depth, a, a_row, a_column, b + column, 0,
                     kProjectedTile, c + column, kProjectedTile, true);
  }
}

template <class A>
struct ScoreLoss {
  using V = Vector<A>;
  static constexpr int kTileVectors = kProjectedTile / lanes<A>;

  const SpanScoreCall& call;
  const SpanScoreGrads& grads;
  const int64_t left, width, scores = call.scores;
  const Activate<A> activate{call.inner.activation};
  int64_t known = 0, opened = kNoDocument;  // documents: the last that was asked for, and the one whose weight is here
  // [S, kProjectedTile] of a document, and [kBatch, kProjectedTile] of a batch of spans.
  const std::unique_ptr<A[]> weight{new A[scores * kProjectedTile]};
  LongSums<A, 8> grad_weight{1, scores * kProjectedTile};  // of batches
  const std::unique_ptr<A[]> values{new A[kBatch * kProjectedTile]}, slopes{new A[kBatch * kProjectedTile]};
  const std::unique_ptr<A[]> kept{new A[kBatch * kProjectedTile]};

  ScoreLoss(const SpanScoreCall& call, const SpanScoreGrads& grads, int64_t tile)
      : call(call),
        grads(grads),
        left(tile * kProjectedTile),
        width(std::min(call.inner.columns - left, kProjectedTile)) {}
  ~ScoreLoss() { close(); }

  int64_t document(int64_t token) {
    if (!call.documents) return 0;
    while (token >= call.documents[known + 1]) ++known;
    return known;
  }

  void open(int64_t document) {
    if (document == opened) return;
    close();
    opened = document;
    for (int64_t s = 0; s < scores; ++s) {
      const A* from =
          static_cast<const A*>(call.out_weight) + document * call.out_document + s * call.out_stride + left;
      for (int64_t c = 0; c < kProjectedTile; ++c) weight[s * kProjectedTile + c] = c < width ? from[c] : A(0);
    }
  }
  // Hands the gradient of the document's weight over.
  void close() {
    if (opened == kNoDocument) return;
    A* to = static_cast<A*>(grads.out_weight) + opened * scores * call.inner.columns + left;
    const A* from = grad_weight.sum(0);
    for (int64_t s = 0; s < scores; ++s, to += call.inner.columns, from += kProjectedTile) {
      for (int64_t c = 0; c < width; ++c) to[c] += from[c];
    }
    grad_weight.clear(0);
  }

  template <class RowOf>
  void gradients(int64_t document, int64_t position, int64_t spans, const RowOf& row_of, A* rows) {
    open(document == kNoDocument ? 0 : document);
    for (int64_t i = 0; i < spans; i += kBatch) {
      const auto own = [&](int64_t k) { return row_of(i + k); };
      batch(position + i, std::min(kBatch, spans - i), own, rows + i * kProjectedTile);
    }
  }

  static A* at(const std::unique_ptr<A[]>& of, int64_t i) { return of.get() + i * kProjectedTile; }

  // The layer between of a span, less its mean where there is a norm, and the part of its gradient that is the norm's.
  [[gnu::always_inline]] void there(int64_t i, int64_t row, const A* normed, const V (&pre)[kTileVectors],
                                    V (&x)[kTileVectors], V (&g)[kTileVectors]) const {
    activate.forward(pre, x);
    if (call.dropout.active) {
      call.dropout.factors(0, row, left, kProjectedTile, at(kept, i));
      drop(at(kept, i), x);
    }
    for (int v = 0; v < kTileVectors; ++v) {
      if (normed) x[v] -= normed[i * 3];
      g[v] = normed ? normed[i * 3 + 1] + normed[i * 3 + 2] * x[v] : V{};
    }
  }
  // From the gradient of the layer between that of the pre-activations.
  [[gnu::always_inline]] void back(int64_t i, const V (&pre)[kTileVectors], V (&g)[kTileVectors], A* to) const {
    if (call.dropout.active) drop(at(kept, i), g);
    activate.backward(pre, g);
    for (int v = 0; v < kTileVectors; ++v) store(to + v * lanes<A>, g[v]);
  }
  [[gnu::always_inline]] static void read(const A* from, V (&to)[kTileVectors]) {
    for (int v = 0; v < kTileVectors; ++v) to[v] = load(from + v * lanes<A>);
  }

  template <class RowOf>
  void batch(int64_t position, int64_t spans, const RowOf& row_of, A* rows) {
    const A* const incoming = static_cast<const A*>(grads.output) + position * scores;
    // Mean, constant and slope.
    const A* const normed = grads.rows ? static_cast<const A*>(grads.rows) + position * 3 : nullptr;
    A* const of_weight = grad_weight.next(0);
    V pre[kTileVectors], x[kTileVectors], g[kTileVectors];
    if (scores <= kFewScores) {
      for (int64_t i = 0; i < spans; ++i, rows += kProjectedTile) {
        read(rows, pre);
        there(i, row_of(i), normed, pre, x, g);
        for (int64_t s = 0; s < scores; ++s) {
          const A grad = incoming[i * scores + s];
          const A* own = at(weight, s);
          A* to = of_weight + s * kProjectedTile;
          for (int v = 0; v < kTileVectors; ++v) {
            store(to + v * lanes<A>, load(to + v * lanes<A>) + grad * x[v]);
            g[v] += grad * load(own + v * lanes<A>);
          }
        }
        back(i, pre, g, rows);
      }
      return;
    }
    for (int64_t i = 0; i < spans; ++i) {
      read(rows + i * kProjectedTile, pre);
      there(i, row_of(i), normed, pre, x, g);
      for (int v = 0; v < kTileVectors; ++v) {
        store(at(values, i) + v * lanes<A>, x[v]);
        store(at(slopes, i) + v * lanes<A>, g[v]);
      }
    }
    tile_product(scores, spans, incoming, 1, scores, values.get(), of_weight);
    tile_product(spans, scores, incoming, scores, 1, weight.get(), slopes.get());
    for (int64_t i = 0; i < spans; ++i) {
      read(rows + i * kProjectedTile, pre);
      read(at(slopes, i), g);
      back(i, pre, g, rows + i * kProjectedTile);
    }
  }
};

}  // namespace

int64_t span_score_panel_size(const SpanScoreCall& call) {
  int64_t size = 0;
  with_accumulator(call.inner.storage, [&](auto a) {
    size = whole_vectors<decltype(a)>(call.scores) * whole_vectors<decltype(a)>(call.inner.columns);
  });
  return size;
}

void span_score_pack(const SpanScoreCall& call, void* panels, int64_t document) {
  with_accumulator(call.inner.storage, [&](auto a) {
    using A = decltype(a);
    const A* from = static_cast<const A*>(call.out_weight) + document * call.out_document;
    pack_transposed<A>([&](int64_t row) { return from + row * call.out_stride; }, call.scores, call.inner.columns,
                       static_cast<A*>(panels) + document * call.panel_size);
  });
}

void span_score_forward(const SpanScoreCall& call, void* output, void* statistics, int64_t first, int64_t last) {
  with_accumulator(call.inner.storage, [&](auto a) {
    using A = decltype(a);
    const auto of = call.scores <= kFewScores ? &forward<A, FewScores<A>> : &forward<A, ManyScores<A>>;
    of(call, static_cast<A*>(output), static_cast<A*>(statistics), first, last);
  });
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
