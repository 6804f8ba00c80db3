// Attention of few queries of one document on a CPU, row by row. Only for kernel files.
//
// A key that few queries see is not worth packing: each query reads the rows of its keys where they lie, which costs as
// much as there are pairs. The backward makes the softmax again from the scores, and delta = rowsum(P * dP) from the
// slopes. Gradients of keys and values are added to sums that the caller keeps.
#pragma once

#include "attention/attention.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

// Where the blocks of attention.h would be mostly empty, or cost more to set up than to multiply.
constexpr int64_t kFewPairs = 512;
inline bool is_few(const Segment& segment) {
  return segment.sparse && (segment.queries < kRows || segment.queries * segment.keys <= kFewPairs);
}

// Sums of the gradients of keys and values, [rows, wide], of rows of the tensors that several segments share.
template <class A>
class KeySums {
 public:
  KeySums(const AttentionCall& call, const RowRange& rows)
      : rows(rows), wide(whole_vectors<A>(call.head_dim)), sums(new A[2 * rows.count * wide]()) {}

  A* key(int64_t row) const { return sums.get() + (row - rows.first) * wide; }
  A* value(int64_t row) const { return key(row) + rows.count * wide; }
  // What Attention::backward emits to.
  auto adding(const Segment& segment) const {
    return [this, &segment](int64_t key_index, const A* grad_key, const A* grad_value) {
      A *to_key = key(segment.key_rows[key_index]), *to_value = value(segment.key_rows[key_index]);
      for (int64_t c = 0; c < wide; ++c) to_key[c] += grad_key[c], to_value[c] += grad_value[c];
    };
  }
  template <class S>
  void write(const AttentionCall& call, const AttentionGrads& grads, int64_t head) const {
    const Segment none{};
    const Attention<S> to(call, none, head);
    for (int64_t row = rows.first; row < rows.first + rows.count; ++row) {
      to.narrow(key(row), to.score_factor, to.row(grads.k, row));
      to.narrow(value(row), 1, to.row(grads.v, row));
    }
  }

 private:
  const RowRange rows;
  const int64_t wide;
  const std::unique_ptr<A[]> sums;
};

template <class S>
class FewQueries {
  using A = typename Accumulator<S>::type;
  using V = Vector<A>;

 public:
  const Attention<S> rows;  // the segment's rows of a head

  FewQueries(const AttentionCall& call, const Segment& segment, int64_t head)
      : rows(call, segment, head),
        columns(whole_vectors<A>(segment.keys)),
        arrays({columns, columns, columns, wide, wide}) {}

  // As that of Attention.
  template <class Emit>
  void forward(int64_t first, int64_t last, const Emit& emit) {
    const auto [weights, factors, slopes, query, sum] = arrays.array;
    for (int64_t q = first; q < last; ++q) {
      rows.widen(rows.query(call.q, q), 1, rows.query_factor, query);
      const auto [maximum, total] = weigh(query, weights);
      find_factors(q, factors);
      std::fill(sum, sum + wide, A(0));
      for (int64_t j = 0; j < segment.keys; ++j) {
        add(rows.row(call.v, segment.key_rows[j]), weights[j] * factors[j], sum);
      }
      emit(q, sum, maximum, total, segment.keys > 0);
    }
  }

  // As that of Attention, without statistics of the forward.
  void backward(const AttentionGrads& grads, const A* share, A* grad_queries, const KeySums<A>& sums) {
    const auto [weights, factors, slopes, query, incoming] = arrays.array;
    for (int64_t q = 0; q < segment.queries; ++q) {
      rows.widen(rows.query(call.q, q), 1, rows.query_factor, query);
      rows.widen(rows.query(grads.output, q), 1, share != nullptr ? share[q] : A(1), incoming);
      const A total = weigh(query, weights).total, inverse = total == 0 ? A(0) : 1 / total;
      find_factors(q, factors);
      A delta = 0;
      for (int64_t j = 0; j < segment.keys; ++j) {
        weights[j] *= inverse;
        slopes[j] = dot(incoming, rows.row(call.v, segment.key_rows[j])) * factors[j];
        delta += weights[j] * slopes[j];
      }
      for (int64_t j = 0; j < segment.keys; ++j) {
        const int64_t row = segment.key_rows[j];
        A *to_key = sums.key(row), *to_value = sums.value(row);
        // A softmax over one key is 1 whatever its score.
        const A slope = segment.keys == 1 ? A(0) : weights[j] * (slopes[j] - delta), weight = weights[j] * factors[j];
        add(rows.row(call.k, row), slope, grad_queries + q * wide);
        for (int64_t c = 0; c < wide; c += lanes<A>) {
          store(to_key + c, load(to_key + c) + load(query + c) * slope);
          store(to_value + c, load(to_value + c) + load(incoming + c) * weight);
        }
      }
    }
  }

 private:
  const AttentionCall& call = rows.call;
  const Segment& segment = rows.segment;
  const int64_t wide = rows.wide, columns;
  const Arrays<A, 5> arrays;

  struct Softmax {
    A maximum, total;
  };

  A dot(const A* first, const S* second) const {
    V sum{};
    rows.each_vector([&](int64_t c, auto n) { sum += load(first + c) * load_up_to(second + c, n); });
    return sum_of<A>(sum);
  }
  void add(const S* from, A factor, A* to) const {
    rows.each_vector([&](int64_t c, auto n) { store(to + c, load(to + c) + load_up_to(from + c, n) * factor); });
  }

  // Weights relative to the largest score, and what they add up to.
  Softmax weigh(const A* query, A* weights) const {
    for (int64_t j = 0; j < segment.keys; ++j) {
      weights[j] = dot(query, rows.row(call.k, segment.key_rows[j])) * rows.score_factor;
    }
    std::fill(weights + segment.keys, weights + columns, -INFINITY);
    V largest = broadcast<A>(-INFINITY), total{};
    for (int64_t j = 0; j < columns; j += lanes<A>) largest = larger(largest, load(weights + j));
    const A maximum = largest_of<A>(largest), pivot = maximum == -INFINITY ? A(0) : maximum;
    for (int64_t j = 0; j < columns; j += lanes<A>) {
      const V weight = exponential(load(weights + j) - pivot);
      store(weights + j, weight);
      total += weight;
    }
    return {maximum, sum_of<A>(total)};
  }

  // What dropout multiplies the weights by.
  void find_factors(int64_t query, A* factors) const {
    std::fill(factors, factors + segment.keys, A(1));
    if (call.dropout.active) rows.find_factors(0, query, 0, segment.keys, factors);
  }
};

}  // namespace
}  // namespace SPANBERT_ISA
}  // namespace spanbert
