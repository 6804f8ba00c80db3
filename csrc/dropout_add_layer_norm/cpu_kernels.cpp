// Dropout, addition and LayerNorm of a row on a CPU, while it is in the first cache. The backward makes the sum again
// from the two summands rather than keep it, and what was dropped from the seed.

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/sums.h"
#include "dropout_add_layer_norm/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

template <class S>
class Rows {
 public:
  using A = typename Accumulator<S>::type;
  static constexpr int kLanes = lanes<A>;

  explicit Rows(const NormCall& call)
      : call_(call),
        count_(static_cast<A>(std::max<int64_t>(1, call.columns))),
        padded_((call.columns + kLanes - 1) / kLanes * kLanes),
        sum_(padded_),
        factor_(call.dropout.active ? padded_ : 0) {}

  int64_t padded() const { return padded_; }
  A* sum() { return sum_.data(); }
  const A* factor() const { return factor_.data(); }

  // f(column, columns from there on, at most a vector).
  template <class F>
  void each(const F& f) const {
    for (int64_t c = 0; c < call_.columns; c += kLanes) {
      f(c, static_cast<int>(std::min<int64_t>(kLanes, call_.columns - c)));
    }
  }

  // x, as far as it is kept, and residual; gives the mean.
  A add(int64_t row) {
    const S* x = static_cast<const S*>(call_.x) + row * call_.x_row;
    const S* residual = static_cast<const S*>(call_.residual) + row * call_.residual_row;
    const bool drops = call_.dropout.active;
    if (drops) call_.dropout.factors(0, row, 0, call_.columns, factor_.data());
    Vector<A> total{};
    each([&](int64_t c, int n) {
      Vector<A> value = load_up_to(x + c, n);
      if (drops) value *= load_up_to(factor_.data() + c, n);
      value += load_up_to(residual + c, n);
      store(sum_.data() + c, value);
      total += value;
    });
    return sum_of<A>(total) / count_;
  }

  // The sum less its mean, zeros after the last column.
  void center(A mean) {
    std::fill(sum_.begin() + call_.columns, sum_.end(), mean);
    const Vector<A> means = broadcast(mean);
    for (int64_t c = 0; c < padded_; c += kLanes) store(sum_.data() + c, load(sum_.data() + c) - means);
  }

  A rstd() const {
    Vector<A> squares{};
    for (int64_t c = 0; c < padded_; c += kLanes) {
      const Vector<A> value = load(sum_.data() + c);
      squares += value * value;
    }
    return 1 / std::sqrt(sum_of<A>(squares) / count_ + static_cast<A>(call_.eps));
  }

 private:
  const NormCall& call_;
  const A count_;
  const int64_t padded_;
  std::vector<A> sum_, factor_;
};

template <class S>
void normalize(const NormCall& call, const NormResult& result, int64_t first, int64_t last) {
  using A = typename Accumulator<S>::type;
  Rows<S> rows(call);
  const S* weight = static_cast<const S*>(call.weight);
  const S* bias = static_cast<const S*>(result.bias);
  for (int64_t row = first; row < last; ++row) {
    const A mean = rows.add(row);
    rows.center(mean);
    const A rstd = rows.rstd();
    static_cast<A*>(result.mean)[row] = mean;
    static_cast<A*>(result.rstd)[row] = rstd;
    S* output = static_cast<S*>(result.output) + row * call.columns;
    const Vector<A> scale = broadcast(rstd);
    rows.each([&](int64_t c, int n) {
      Vector<A> value = load(rows.sum() + c) * scale * load_up_to(weight + c, n);
      if (bias) value += load_up_to(bias + c, n);
      store_up_to(output + c, value, n);
    });
  }
}

template <class S>
void differentiate(const NormCall& call, const NormGrads& grads, int64_t first, int64_t last, void* partial) {
  using A = typename Accumulator<S>::type;
  Rows<S> rows(call);
  // Of the row: the gradient of what was normalised. Of all rows: the sums for weight and bias.
  std::vector<A> weighted(rows.padded()), of_weight(rows.padded(), A(0)), of_bias(rows.padded(), A(0));
  const S* weight = static_cast<const S*>(call.weight);
  for (int64_t row = first; row < last; ++row) {
    rows.add(row);
    rows.center(static_cast<const A*>(grads.mean)[row]);
    const S* grad = static_cast<const S*>(grads.output) + row * grads.output_row;
    const Vector<A> rstd = broadcast(static_cast<const A*>(grads.rstd)[row]);
    Vector<A> total{}, along{};
    rows.each([&](int64_t c, int n) {
      const Vector<A> normal = load(rows.sum() + c) * rstd, g = load_up_to(grad + c, n);
      const Vector<A> own = g * load_up_to(weight + c, n);
      store(rows.sum() + c, normal);
      store(weighted.data() + c, own);
      store(of_weight.data() + c, load(of_weight.data() + c) + g * normal);
      store(of_bias.data() + c, load(of_bias.data() + c) + g);
      total += own;
      along += own * normal;
    });
    const A share = 1 / static_cast<A>(call.columns);
    const Vector<A> level = broadcast(sum_of<A>(total) * share), slope = broadcast(sum_of<A>(along) * share);
    S* of_residual = static_cast<S*>(grads.residual) + row * call.columns;
    S* of_x = grads.x ? static_cast<S*>(grads.x) + row * call.columns : nullptr;
    rows.each([&](int64_t c, int n) {
      const Vector<A> value = rstd * (load(weighted.data() + c) - level - load(rows.sum() + c) * slope);
      store_up_to(of_residual + c, value, n);
      if (of_x) store_up_to(of_x + c, value * load_up_to(rows.factor() + c, n), n);
    });
  }
  A* to = static_cast<A*>(partial);
  std::copy_n(of_weight.data(), call.columns, to);
  std::copy_n(of_bias.data(), call.columns, to + call.columns);
}

template <class A>
void add_up(const A* partials, int64_t count, int64_t size, int64_t first, int64_t last, A* sums) {
  LongSums<A> long_sums(1, last - first);
  for (int64_t i = 0; i < count; ++i) {
    const A* partial = partials + i * size + first;
    A* to = long_sums.next(0);
    for (int64_t c = 0; c < last - first; ++c) to[c] += partial[c];
  }
  std::copy_n(long_sums.sum(0), last - first, sums + first);
}

}  // namespace

void dropout_add_layer_norm_forward(const NormCall& call, const NormResult& result, int64_t first, int64_t last) {
  with_storage(call.storage, [&](auto s) { normalize<decltype(s)>(call, result, first, last); });
}

void dropout_add_layer_norm_backward(const NormCall& call, const NormGrads& grads, int64_t first, int64_t last,
                                     void* partial) {
  with_storage(call.storage, [&](auto s) { differentiate<decltype(s)>(call, grads, first, last, partial); });
}

void dropout_add_layer_norm_sum(Storage storage, const void* partials, int64_t count, int64_t size, int64_t first,
                                int64_t last, void* sums) {
  with_storage(storage, [&](auto s) {
    using A = typename Accumulator<decltype(s)>::type;
    add_up(static_cast<const A*>(partials), count, size, first, last, static_cast<A*>(sums));
  });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
