// Pair pooling on a CPU. Forward: every pair's row of the output is written once, part by part. Backward: every row's
// gradient is the sum over the pairs that read it, in their order (LongSums), so a result depends neither on the number
// of threads nor on how the columns are tiled.

#include <algorithm>
#include <cstring>

#include "common/sums.h"
#include "pair_pool/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

template <class V>
V sign_of(V x) {
  return (x > 0 ? V{} + 1 : V{}) - (x < 0 ? V{} + 1 : V{});
}

template <class V>
V distance_of(V x) {
  return x < 0 ? -x : x;
}

template <class V>
V combine(PairOperation operation, V left, V right) {
  switch (operation) {
    case PairOperation::product:
      return left * right;
    case PairOperation::sum:
      return left + right;
    case PairOperation::difference:
      return left - right;
    case PairOperation::quotient:
      return left / right;
    case PairOperation::distance:
      return distance_of(left - right);
    default:
      return left;
  }
}

// The derivative of `combine` by the left or by the right.
template <class V>
V slope(PairOperation operation, V left, V right, bool by_left) {
  switch (operation) {
    case PairOperation::product:
      return by_left ? right : left;
    case PairOperation::difference:
      return by_left ? V{} + 1 : V{} - 1;
    case PairOperation::quotient:
      return by_left ? 1 / right : -left / (right * right);
    case PairOperation::distance:
      return by_left ? sign_of(left - right) : -sign_of(left - right);
    default:
      return V{} + 1;
  }
}

template <class S>
struct Pairs {
  using A = typename Accumulator<S>::type;
  using V = Vector<A>;

  const PairPoolCall& call;

  const S* row(int64_t pair, int side) const {
    const int64_t index = call.pairs[2 * pair + side];
    const PairRows& from = call.side[side];
    return index < 0 ? static_cast<const S*>(from.sentinel) : static_cast<const S*>(from.rows) + index * from.stride;
  }
  const S* feature(int64_t pair) const {
    return static_cast<const S*>(call.features) + call.feature_rows[pair] * call.feature_columns;
  }

  // f(column, lanes in use) for every vector of columns begin .. end - 1.
  template <class F>
  static void each(int64_t begin, int64_t end, const F& f) {
    for (int64_t c = begin; c < end; c += lanes<A>) f(c, static_cast<int>(std::min<int64_t>(lanes<A>, end - c)));
  }

  // Rows without columns may be nowhere.
  static void copy(S* to, const S* from, int64_t count) {
    if (count > 0) std::memcpy(to, from, count * sizeof(S));
  }

  void write(int64_t pair, S* out) const {
    const S* const rows[2] = {row(pair, 0), row(pair, 1)};
    for (int64_t p = 0; p < call.part_count; ++p) {
      const PairPart& part = call.parts[p];
      S* to = out + part.offset;
      if (part.operation == PairOperation::feature) {
        copy(to, feature(pair), call.feature_columns);
      } else if (part.operation == PairOperation::take) {
        copy(to, rows[part.left], call.side[part.left].columns);
      } else {
        const S *left = rows[part.left], *right = rows[part.right];
        each(0, call.side[part.left].columns, [&](int64_t c, int n) {
          store_up_to(to + c, combine(part.operation, load_up_to(left + c, n), load_up_to(right + c, n)), n);
        });
      }
    }
  }

  void write_sum(int64_t pair, S* out) const {
    const S* const rows[2] = {row(pair, 0), row(pair, 1)};
    each(0, call.output_columns, [&](int64_t c, int n) {
      V sum{};
      for (int64_t p = 0; p < call.part_count; ++p) {
        const PairPart& part = call.parts[p];
        if (part.operation == PairOperation::feature) {
          sum += load_up_to(feature(pair) + c, n);
        } else {
          sum += combine(part.operation, load_up_to(rows[part.left] + c, n), load_up_to(rows[part.right] + c, n));
        }
      }
      store_up_to(out + c, sum, n);
    });
  }

  void add_features(const PairPoolGrads& grads, int64_t pair, int64_t left, int64_t right, A* sums) const {
    for (int64_t p = 0; p < call.part_count; ++p) {
      if (call.parts[p].operation != PairOperation::feature) continue;
      const S* grad = static_cast<const S*>(grads.output) + pair * grads.output_stride + call.parts[p].offset;
      each(left, right, [&](int64_t c, int n) {
        A* sum = sums + c - left;
        store_up_to(sum, load_up_to(sum, n) + load_up_to(grad + c, n), n);
      });
    }
  }

  void add_rows(const PairPoolGrads& grads, int side, int64_t pair, int64_t left, int64_t right, A* sums) const {
    const S* const rows[2] = {row(pair, 0), row(pair, 1)};
    for (int64_t p = 0; p < call.part_count; ++p) {
      const PairPart& part = call.parts[p];
      if (!part.reads(side)) continue;
      const S* grad = static_cast<const S*>(grads.output) + pair * grads.output_stride + part.offset;
      const bool alone = part.operation == PairOperation::take || part.operation == PairOperation::sum;
      const bool by_left = part.left == side;
      const bool by_right = part.operation != PairOperation::take && part.right == side;
      each(left, right, [&](int64_t c, int n) {
        const V incoming = load_up_to(grad + c, n);
        A* sum = sums + c - left;
        V total = load_up_to(sum, n);
        if (alone) {
          total += by_left && by_right ? incoming + incoming : incoming;
        } else {
          const V x = load_up_to(rows[part.left] + c, n), y = load_up_to(rows[part.right] + c, n);
          if (by_left) total += incoming * slope(part.operation, x, y, true);
          if (by_right) total += incoming * slope(part.operation, x, y, false);
        }
        store_up_to(sum, total, n);
      });
    }
  }
};

template <class S>
void gradients(const PairPoolGrads& grads, int side, int64_t first, int64_t last, int64_t left, int64_t right) {
  using A = typename Accumulator<S>::type;
  const Pairs<S> pairs{grads.call};
  LongSums<A> sums(1, right - left);
  for (int64_t r = first; r < last; ++r) {
    sums.clear(0);
    for (int64_t i = grads.begin[r]; i < grads.begin[r + 1]; ++i) {
      if (side == 2) {
        pairs.add_features(grads, grads.readers[i], left, right, sums.next(0));
      } else {
        pairs.add_rows(grads, side, grads.readers[i], left, right, sums.next(0));
      }
    }
    S* to = r == grads.rows ? static_cast<S*>(grads.sentinel) : static_cast<S*>(grads.gradient) + r * grads.columns;
    const A* sum = sums.sum(0);
    Pairs<S>::each(left, right, [&](int64_t c, int n) { store_up_to(to + c, load_up_to(sum + c - left, n), n); });
  }
}

}  // namespace

void pair_pool_forward(const PairPoolCall& call, int64_t first, int64_t last) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    const Pairs<S> pairs{call};
    for (int64_t pair = first; pair < last; ++pair) {
      S* out = static_cast<S*>(call.output) + pair * call.output_columns;
      if (!call.kept(pair)) {
        std::memset(static_cast<void*>(out), 0, call.output_columns * sizeof(S));
      } else if (call.summed) {
        pairs.write_sum(pair, out);
      } else {
        pairs.write(pair, out);
      }
    }
  });
}

void pair_pool_backward(const PairPoolGrads& grads, int side, int64_t first, int64_t last, int64_t left,
                        int64_t right) {
  with_storage(grads.call.storage, [&](auto s) { gradients<decltype(s)>(grads, side, first, last, left, right); });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
