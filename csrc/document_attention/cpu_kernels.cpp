// Attention of one document and head on a CPU.
//
// Forward: queries in blocks, keys in blocks that stay in the cache; one pass with a running maximum and sum (online
// softmax, Milakov and Gimelshein 2018; Rabe and Staats 2021). A document of up to kKeys tokens is one block: no
// rescaling. Backward: P is computed again from the log-sum-exp (Dao et al. 2022), five products a block:
//   dV = P' dO,   dP = dO V',   dS = P * (dP - delta) with delta = rowsum(dO * O),   dQ = dS K scale,   dK = dS' Q
//   scale
// With dropout, the factors (0 or 1 / (1 - p)) multiply P in dV and dP in dS. One task owns a document and head, so
// every sum has one order.

#include <memory>

#include "common/product.h"
#include "document_attention/kernels.h"

namespace spanbert {
namespace SPANBERT_LEVEL {
namespace {

constexpr int64_t kQueries = 48;  // a multiple of kRows: 8 tiles of 6
constexpr int64_t kKeys = 512;

template <class S>
struct Attention {
  using A = typename Accumulator<S>::type;
  using V = Vector<A>;

  const AttentionCall& call;
  const int64_t head, begin, length;
  const int64_t dim = call.head_dim, wide = panels<A>(dim) * kPanel<A>;  // head_dim in whole panels
  const int64_t key_block = length < kKeys ? length : kKeys, key_columns = panels<A>(key_block) * kPanel<A>;

  Attention(const AttentionCall& call, int64_t head, int64_t begin, int64_t end)
      : call(call), head(head), begin(begin), length(end - begin) {}

  S* row(const Rows& rows, int64_t token) const {
    return static_cast<S*>(rows.data) + (begin + token) * rows.row + head * rows.head;
  }
  A* lse() const { return static_cast<A*>(call.lse) + head * call.tokens + begin; }
  static std::unique_ptr<A[]> buffer(int64_t size) { return std::unique_ptr<A[]>(new A[size]); }

  // Rows of q, k or a gradient as plain accumulator rows [count, wide], zeros beyond head_dim.
  void widen(const Rows& rows, int64_t first, int64_t count, A factor, A* to) const {
    for (int64_t r = 0; r < count; ++r) {
      const S* from = row(rows, first + r);
      for (int64_t c = 0; c < wide; c += lanes<A>) {
        const int64_t n = dim - c < 0 ? 0 : dim - c < lanes<A> ? dim - c : lanes<A>;
        store(to + r * wide + c, load_up_to(from + (n ? c : 0), static_cast<int>(n)) * factor);
      }
    }
  }

  void narrow(const A* from, int64_t count, const Rows& rows, int64_t first, A factor) const {
    for (int64_t r = 0; r < count; ++r) {
      S* to = row(rows, first + r);
      for (int64_t c = 0; c < dim; c += lanes<A>) {
        store_up_to(to + c, load(from + r * wide + c) * factor,
                    static_cast<int>(dim - c < lanes<A> ? dim - c : lanes<A>));
      }
    }
  }

  // Scores of the row beyond its last key take no part.
  void mask_tail(A* scores, int64_t keys) const {
    for (int64_t j = keys; j < key_columns; ++j) scores[j] = -INFINITY;
  }

  void forward(int64_t first, int64_t last) {
    const auto keys = buffer(key_columns * dim), values = buffer(panels<A>(dim) * kPanel<A> * key_block);
    const auto queries = buffer(kQueries * wide), scores = buffer(kQueries * key_columns);
    const int64_t count = last - first, blocks = (length + key_block - 1) / key_block;
    const int64_t kept = blocks > 1 ? count : kQueries;  // with several key blocks all the task's sums wait
    const auto sums = buffer(kept * wide), maxima = buffer(kept), totals = buffer(kept);

    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t key = block * key_block, n = length - key < key_block ? length - key : key_block;
      pack_transposed(row(call.k, key), call.k.row, n, dim, keys.get());
      pack(row(call.v, key), call.v.row, n, dim, values.get());
      for (int64_t q = 0; q < count; q += kQueries) {
        const int64_t rows = count - q < kQueries ? count - q : kQueries;
        A* sum = sums.get() + (blocks > 1 ? q * wide : 0);
        A* maximum = maxima.get() + (blocks > 1 ? q : 0);
        A* total = totals.get() + (blocks > 1 ? q : 0);
        widen(call.q, first + q, rows, static_cast<A>(call.scale), queries.get());
        product<A>(rows, n, dim, queries.get(), wide, 1, keys.get(), dim * kPanel<A>, scores.get(), key_columns, false);
        for (int64_t r = 0; r < rows; ++r) {
          soften(scores.get() + r * key_columns, first + q + r, key, n, block == 0, maximum + r, total + r,
                 sum + r * wide);
        }
        product<A>(rows, dim, n, scores.get(), key_columns, 1, values.get(), n * kPanel<A>, sum, wide, block > 0);
        if (block + 1 < blocks) continue;
        for (int64_t r = 0; r < rows; ++r) {
          narrow(sum + r * wide, 1, call.output, first + q + r, 1 / total[r]);
          lse()[first + q + r] = maximum[r] + std::log(total[r]);
        }
      }
    }
  }

  // One row of scores becomes weights relative to the running maximum; what was summed before is rescaled to it.
  void soften(A* scores, int64_t query, int64_t key, int64_t n, bool fresh, A* maximum, A* total, A* sum) const {
    mask_tail(scores, n);
    V largest = load(scores);
    for (int64_t j = lanes<A>; j < key_columns; j += lanes<A>) largest = larger(largest, load(scores + j));
    A now = largest_of<A>(largest);
    if (!fresh && *maximum > now) now = *maximum;
    // Scores that are all -inf have no maximum to subtract; 0 leaves their weights 0.
    const A pivot = now == -INFINITY ? A(0) : now;
    V added{};
    for (int64_t j = 0; j < key_columns; j += lanes<A>) {
      const V weight = exponential(load(scores + j) - pivot);
      added += weight;
      store(scores + j, weight);
    }
    A rescale = 0;
    if (!fresh) {
      rescale = std::exp(*maximum - pivot);
      for (int64_t c = 0; c < wide; c += lanes<A>) store(sum + c, load(sum + c) * rescale);
    }
    *total = (fresh ? A(0) : *total * rescale) + sum_of<A>(added);
    *maximum = now;
    if (call.dropout.active) {
      A factor[kKeys];
      call.dropout.factors(head, begin + query, begin + key, n, factor);
      for (int64_t j = 0; j < n; ++j) scores[j] *= factor[j];
    }
  }

  void backward(const AttentionGrads& grads) {
    const auto keys = buffer(key_columns * dim), values = buffer(key_columns * dim);  // transposed panels
    const auto key_rows = buffer(panels<A>(dim) * kPanel<A> * key_block);
    const auto queries = buffer(kQueries * wide), grad_rows = buffer(kQueries * wide);
    const auto query_panels = buffer(kQueries * wide), grad_panels = buffer(kQueries * wide);
    const auto weights = buffer(kQueries * key_columns), slopes = buffer(kQueries * key_columns);
    const auto grad_keys = buffer(key_block * wide), grad_values = buffer(key_block * wide);
    const auto grad_queries = buffer(length * wide), deltas = buffer(length);
    const A scale = static_cast<A>(call.scale);

    for (int64_t key = 0; key < length; key += key_block) {
      const int64_t n = length - key < key_block ? length - key : key_block;
      pack_transposed(row(call.k, key), call.k.row, n, dim, keys.get());
      pack_transposed(row(call.v, key), call.v.row, n, dim, values.get());
      pack(row(call.k, key), call.k.row, n, dim, key_rows.get());
      for (int64_t q = 0; q < length; q += kQueries) {
        const int64_t rows = length - q < kQueries ? length - q : kQueries;
        widen(call.q, q, rows, scale, queries.get());
        widen(grads.output, q, rows, 1, grad_rows.get());
        pack(row(call.q, q), call.q.row, rows, dim, query_panels.get());
        pack(row(grads.output, q), grads.output.row, rows, dim, grad_panels.get());
        if (key == 0) find_deltas(q, rows, grad_rows.get(), deltas.get());

        product<A>(rows, n, dim, queries.get(), wide, 1, keys.get(), dim * kPanel<A>, weights.get(), key_columns,
                   false);
        product<A>(rows, n, dim, grad_rows.get(), wide, 1, values.get(), dim * kPanel<A>, slopes.get(), key_columns,
                   false);
        for (int64_t r = 0; r < rows; ++r) {
          slope(weights.get() + r * key_columns, slopes.get() + r * key_columns, q + r, key, n, deltas[q + r]);
        }
        product<A>(n, dim, rows, weights.get(), 1, key_columns, grad_panels.get(), rows * kPanel<A>, grad_values.get(),
                   wide, q > 0);
        product<A>(n, dim, rows, slopes.get(), 1, key_columns, query_panels.get(), rows * kPanel<A>, grad_keys.get(),
                   wide, q > 0);
        product<A>(rows, dim, n, slopes.get(), key_columns, 1, key_rows.get(), n * kPanel<A>,
                   grad_queries.get() + q * wide, wide, key > 0);
      }
      narrow(grad_keys.get(), n, grads.k, key, scale);
      narrow(grad_values.get(), n, grads.v, key, 1);
    }
    narrow(grad_queries.get(), length, grads.q, 0, scale);
  }

  void find_deltas(int64_t first, int64_t count, const A* grad_rows, A* deltas) const {
    for (int64_t r = 0; r < count; ++r) {
      const S* out = row(call.output, first + r);
      V dot{};
      for (int64_t c = 0; c < dim; c += lanes<A>) {
        const int n = static_cast<int>(dim - c < lanes<A> ? dim - c : lanes<A>);
        dot += load(grad_rows + r * wide + c) * load_up_to(out + c, n);
      }
      deltas[first + r] = sum_of<A>(dot);
    }
  }

  // One row: scores become the weights that multiplied V, dP becomes dS.
  void slope(A* scores, A* slopes, int64_t query, int64_t key, int64_t n, A delta) const {
    mask_tail(scores, n);
    const A lse_of = lse()[query], pivot = lse_of == -INFINITY ? A(0) : lse_of;
    A factor[kKeys + kPanel<A>];
    if (call.dropout.active) call.dropout.factors(head, begin + query, begin + key, n, factor);
    for (int64_t j = n; j < key_columns; ++j) factor[j] = 1;
    for (int64_t j = 0; j < key_columns; j += lanes<A>) {
      const V weight = exponential(load(scores + j) - pivot);
      if (call.dropout.active) {
        store(scores + j, weight * load(factor + j));
        store(slopes + j, weight * (load(slopes + j) * load(factor + j) - delta));
      } else {
        store(scores + j, weight);
        store(slopes + j, weight * (load(slopes + j) - delta));
      }
    }
  }
};

}  // namespace

void document_attention_forward(const AttentionCall& call, int64_t head, int64_t begin, int64_t end, int64_t first,
                                int64_t last) {
  with_storage(call.storage, [&](auto s) { Attention<decltype(s)>(call, head, begin, end).forward(first, last); });
}

void document_attention_backward(const AttentionCall& call, const AttentionGrads& grads, int64_t head, int64_t begin,
                                 int64_t end) {
  with_storage(call.storage, [&](auto s) { Attention<decltype(s)>(call, head, begin, end).backward(grads); });
}

}  // namespace SPANBERT_LEVEL
}  // namespace spanbert
