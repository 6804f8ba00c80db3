// The raw CPU operations of document_attention with a window and terms by distance: tables, tasks, threads.

#include <algorithm>
#include <atomic>
#include <memory>
#include <tuple>
#include <vector>

#include "attention/segments.h"
#include "common/parallel.h"
#include "common/results.h"
#include "document_attention/kernels.h"

namespace spanbert {
namespace {

// Queries of one forward task: a multiple of those of a block.
constexpr int64_t kTaskQueries = 512;
// The tables' gradients are summed in parts of the documents, which do not depend on the threads: at most so many, of
// at least so many pairs of a query and a key, as each part has sums of its own to be cleared and added.
constexpr int64_t kParts = 8, kPartPairs = int64_t{1} << 15;

// The places of distances -most .. most in a packed table.
class Placed {
 public:
  // `row(s)`: the table's row for distance s.
  template <class Row>
  Placed(const Rows& table, int64_t rows, int64_t most, const Row& row)
      : most_(most), column_(2 * most + 1), ascending_(2 * most + 1, 1), equal_(2 * most + 1, 1) {
    int64_t up = 0, down = 0;
    for (int64_t s = -most; s < most; ++s) {
      up += row(s + 1) == row(s) + 1;
      down += row(s + 1) == row(s) - 1;
    }
    const bool reversed = down > up;
    // The column of distance 0 is the last of a panel: products of kOwn rows then begin with one.
    const int64_t first = reversed ? rows - 1 - row(0) : row(0);
    const int64_t before = (2 * kTableAlignment - 1 - first % kTableAlignment) % kTableAlignment;
    side = {nullptr, nullptr, nullptr, reversed ? before + rows - 1 : before, reversed, table};
    int64_t low = side.column_of(row(0)), high = low;
    for (int64_t s = -most; s <= most; ++s) {
      low = std::min(low, side.column_of(row(s)));
      high = std::max(high, side.column_of(row(s)));
    }
    low = low / kTableAlignment * kTableAlignment;
    side.shift -= low;
    columns = (high - low) / kTableAlignment * kTableAlignment + kTableAlignment;
    for (int64_t s = most; s >= -most; --s) {
      const int64_t at = s + most;
      column_[at] = static_cast<int32_t>(side.column_of(row(s)));
      if (s == most) continue;
      const int64_t step = column_[at + 1] - column_[at];
      if (step == 1) ascending_[at] = static_cast<uint8_t>(std::min(ascending_[at + 1] + 1, 255));
      if (step == 0) equal_[at] = static_cast<uint8_t>(std::min(equal_[at + 1] + 1, 255));
    }
  }
  DistanceSide placed() const {
    DistanceSide result = side;
    result.column = column_.data() + most_;
    result.ascending = ascending_.data() + most_;
    result.equal = equal_.data() + most_;
    return result;
  }

  DistanceSide side;
  int64_t columns;

 private:
  int64_t most_;
  std::vector<int32_t> column_;
  std::vector<uint8_t> ascending_, equal_;
};

// A call with everything that it points to.
class Prepared {
 public:
  Prepared(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any, const AttentionArguments& work,
           const DistanceArguments& terms, double scale, const DropoutArguments& dropout)
      : q(with_dense_rows(q_any)), k(with_dense_rows(k_any)), v(with_dense_rows(v_any)) {
    call.attention = attention_call(q, k, v, scale, dropout);
    const Segments segments(work, q.size(0), k.size(0));
    for (const Segment& one : segments.all) {
      STD_TORCH_CHECK(one.documents == 1 && one.queries == one.keys,
                      "a window and terms by distance are for documents that see themselves alone");
      if (one.queries > 0) documents.push_back({one.query_rows[0], one.queries, 0, one.queries});
      longest_ = std::max(longest_, one.queries);
    }
    call.window = terms.window < 0 ? longest_ : std::min(terms.window, longest_);
    if (terms.index) place(terms);
  }

  // Packs the tables.
  void prepare(bool backward) {
    if (!terms_) return;
    const bool doubled = call.attention.storage == Storage::float64;
    packed_.reset(new char[call.attention.heads * call.packed_numbers() * (doubled ? 8 : 4)]);
    call.packed = packed_.get();
    const auto kernel = SPANBERT_KERNEL(distance_attention_prepare);
    parallel_tasks(call.attention.heads, [&](int64_t head) { kernel(call, head, backward); });
  }
  bool has_tables() const { return terms_; }

  // Pairs that a document's queries see, or a few more.
  int64_t pairs_of(const DistanceTask& document) const {
    return document.tokens * std::min(document.tokens, 2 * call.window + 1);
  }

  const Tensor q, k, v;
  DistanceCall call{};
  std::vector<DistanceTask> documents;  // those with tokens

 private:
  void place(const DistanceArguments& terms) {
    const Tensor index = as_int64(*terms.index);
    const int64_t* entries = index.const_data_ptr<int64_t>();
    const int64_t reach = index.numel() / 2;
    STD_TORCH_CHECK(index.dim() == 1 && index.numel() % 2 == 1, "index must have shape [2 * reach + 1]");
    call.rows = -1;
    for (const OptionalTensor* table : {&terms.bias, &terms.keys, &terms.queries}) {
      if (!*table) continue;
      const bool fits = (*table)->scalar_type() == q.scalar_type() &&
                        (*table)->dim() == (table == &terms.bias ? 2 : 3) && (*table)->size(1) == q.size(1) &&
                        (table == &terms.bias || (*table)->size(2) == q.size(2));
      STD_TORCH_CHECK(fits && (call.rows < 0 || call.rows == (*table)->size(0)),
                      "tables must have q's dtype, heads and head_dim, and the same number of rows");
      call.rows = (*table)->size(0);
    }
    if (call.rows < 0) return;
    terms_ = true;
    STD_TORCH_CHECK(
        std::all_of(entries, entries + index.numel(), [&](int64_t row) { return 0 <= row && row < call.rows; }),
        "index must name rows of tables with ", call.rows);
    call.most = longest_ + kDistanceMargin;
    const auto row = [&](int64_t s) { return entries[std::clamp(s, -reach, reach) + reach]; };
    for (int64_t s = -call.most; s <= call.most; ++s) index_.push_back(row(s));
    call.index = index_.data() + call.most;
    if (terms.bias) {
      bias_ = *terms.bias;
      call.bias = rows_of(*bias_);
    }
    keys_ = table_of(terms.keys), queries_ = table_of(terms.queries);
    sides_[0].reset(new Placed(keys_ ? rows_of(*keys_) : Rows{}, call.rows, call.most, row));
    sides_[1].reset(
        new Placed(queries_ ? rows_of(*queries_) : Rows{}, call.rows, call.most, [&](int64_t s) { return row(-s); }));
    call.keys = sides_[0]->placed(), call.queries = sides_[1]->placed();
    call.columns = std::max(sides_[0]->columns, sides_[1]->columns);
  }
  static OptionalTensor table_of(const OptionalTensor& table) {
    return table ? OptionalTensor(with_dense_rows(*table)) : OptionalTensor();
  }

  bool terms_ = false;
  int64_t longest_ = 0;
  OptionalTensor bias_, keys_, queries_;
  std::vector<int64_t> index_;
  std::unique_ptr<Placed> sides_[2];
  std::unique_ptr<char[]> packed_;
};

// Numbers of tasks, the largest first.
template <class Cost>
std::vector<int64_t> by_cost(int64_t count, const Cost& cost) {
  std::vector<int64_t> order(count);
  for (int64_t i = 0; i < count; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
  return order;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionArguments& work,
                                   const DistanceArguments& terms, double scale, const DropoutArguments& dropout) {
  Prepared p(q, k, v, work, terms, scale, dropout);
  p.prepare(false);
  const int64_t heads = p.call.attention.heads;
  const Tensor output = new_result(p.q, p.q.sizes()).tensor;
  Tensor lse = torch::stable::new_empty(p.q, {heads, p.call.attention.query_rows}, accumulator_of(p.q));
  p.call.attention.output = rows_of(output);
  p.call.attention.lse = lse.mutable_data_ptr();
  std::vector<DistanceTask> pieces;
  for (const DistanceTask& document : p.documents) {
    for (int64_t first = 0; first < document.tokens; first += kTaskQueries) {
      pieces.push_back({document.begin, document.tokens, first, std::min(first + kTaskQueries, document.tokens)});
    }
  }
  const auto kernel = SPANBERT_KERNEL(distance_attention_forward);
  const auto order = by_cost(std::ssize(pieces), [&](int64_t i) {
    return (pieces[i].last - pieces[i].first) * std::min(pieces[i].tokens, 2 * p.call.window + 1);
  });
  std::atomic<int64_t> pairs{0};
  parallel_tasks_ahead(std::ssize(pieces) * heads, [&](int64_t task, int64_t then) {
    const DistanceTask& after = pieces[order[std::max<int64_t>(then, 0) / heads]];
    const int64_t rows = then < 0 ? 0 : after.last - after.first;
    const DistanceNext next{after.begin + after.first, rows, then % heads};
    pairs += kernel(p.call, pieces[order[task / heads]], task % heads, next);
  });
  count_pairs(pairs);
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_any, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse_any,
    const AttentionArguments& work, const DistanceArguments& terms, double scale, const DropoutArguments& dropout) {
  Prepared p(q, k, v, work, terms, scale, dropout);
  p.prepare(true);
  const int64_t heads = p.call.attention.heads;
  const Tensor grad = with_dense_rows(grad_any), lse = torch::stable::contiguous(lse_any);
  STD_TORCH_CHECK(grad.scalar_type() == p.q.scalar_type() && lse.scalar_type() == accumulator_of(p.q),
                  "grad_output and lse must have the forward's dtypes");
  STD_TORCH_CHECK(grad.numel() == p.q.numel() && lse.numel() == heads * p.call.attention.query_rows,
                  "grad_output and lse must have the forward's shapes");
  p.call.attention.lse = const_cast<void*>(lse.const_data_ptr());
  const auto like = [&](const OptionalTensor& table) {
    return table ? torch::stable::new_empty(*table, table->sizes()) : torch::stable::new_empty(p.q, {0});
  };
  const Tensor grad_q = new_result(p.q, p.q.sizes()).tensor, grad_k = new_result(p.k, p.k.sizes()).tensor;
  const Tensor grad_v = new_result(p.v, p.v.sizes()).tensor;
  const Tensor grad_bias = like(terms.bias), grad_keys = like(terms.keys), grad_queries = like(terms.queries);
  DistanceGrads grads{{rows_of(grad), rows_of(grad_q), rows_of(grad_k), rows_of(grad_v)}, {}, {}, {}, nullptr, 1};
  if (terms.bias) grads.bias = rows_of(grad_bias);
  if (terms.keys) grads.keys = rows_of(grad_keys);
  if (terms.queries) grads.queries = rows_of(grad_queries);

  // Parts of the documents, alike in pairs; without tables there is nothing to sum.
  int64_t total = 0, done = 0;
  for (const DistanceTask& document : p.documents) total += p.pairs_of(document);
  std::vector<int64_t> ends;
  grads.parts = p.has_tables() ? std::clamp<int64_t>(total / kPartPairs, 1, kParts) : std::ssize(p.documents);
  for (int64_t i = 0; i < std::ssize(p.documents); ++i) {
    done += p.pairs_of(p.documents[i]);
    const bool full = done * grads.parts >= total * (std::ssize(ends) + 1);
    if (!p.has_tables() || full || i + 1 == std::ssize(p.documents)) ends.push_back(i + 1);
  }
  grads.parts = std::max<int64_t>(1, std::ssize(ends));
  const bool doubled = p.call.attention.storage == Storage::float64;
  const int64_t bytes = p.has_tables() ? p.call.sum_numbers() * (doubled ? 8 : 4) : 0;
  const std::unique_ptr<char[]> sums(new char[grads.parts * heads * bytes]);
  grads.sums = sums.get();
  const auto first_of = [&](int64_t part) { return part == 0 ? 0 : ends[part - 1]; };
  const auto order = by_cost(std::ssize(ends), [&](int64_t part) {
    int64_t cost = 0;
    for (int64_t i = first_of(part); i < ends[part]; ++i) cost += p.pairs_of(p.documents[i]);
    return cost;
  });
  const auto kernel = SPANBERT_KERNEL(distance_attention_backward);
  std::atomic<int64_t> pairs{0};
  parallel_tasks(std::ssize(ends) * heads, [&](int64_t task) {
    const int64_t part = order[task / heads], head = task % heads;
    std::fill_n(sums.get() + (part * heads + head) * bytes, bytes, char{0});
    for (int64_t i = first_of(part); i < ends[part]; ++i) {
      const DistanceTask& after = p.documents[std::min(i + 1, ends[part] - 1)];
      const DistanceNext next{after.begin, i + 1 < ends[part] ? after.tokens : 0, head};
      pairs += kernel(p.call, grads, p.documents[i], part, head, next);
    }
  });
  count_pairs(pairs);
  if (p.has_tables()) {
    if (ends.empty()) std::fill_n(sums.get(), heads * bytes, char{0});
    const auto add_up = SPANBERT_KERNEL(distance_attention_add_up);
    parallel_tasks(heads, [&](int64_t head) { add_up(p.call, grads, head); });
  }
  return {grad_q, grad_k, grad_v, grad_bias, grad_keys, grad_queries};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("distance_attention_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("distance_attention_backward", SPANBERT_BOX(&spanbert::backward));
}
