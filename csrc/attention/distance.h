// Attention of a document with itself on a CPU, with terms by distance and within a window. Only for kernel files.
//
// A block of queries meets all keys that it sees at once, so that its rows of scores are whole. A term q_i . keys[x] is
// made of products of kOwn queries with the rows of the table that their distances need, some more than there are keys,
// and each query's products are added to its scores at the place of their distance: where rows follow each other as
// distances do, whole vectors. k_j . queries[x] is the same with keys and queries in each other's places; its products
// lie by key and are transposed in registers. The backward goes the same way back: the slopes of the scores are added
// up by row of the table, for each query and for each key, and multiply the tables for dQ and dK, queries and keys for
// the tables' gradients, which each part of the work keeps apart until all are added in order.
//
// Where there is a window, a block's products run over keys that some of its queries do not see, with weight 0. If a
// number is not finite, blocks are of one query, and their ranges exact.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "attention/distance_call.h"
#include "attention/thread_memory.h"
#include "common/product.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

constexpr int64_t kOwn = 32;            // rows that meet a table together, at most; a multiple of a vector
constexpr int64_t kBlockQueries = 128;  // a multiple of kOwn
constexpr int64_t kBlockScores = int64_t{1} << 18;
constexpr int64_t kKeptNumbers = int64_t{1} << 20;  // that a thread keeps from call to call
constexpr int64_t kDepth = 512;  // sums of so many products: sums of blocks round less than one long sum

// A head's tables in `DistanceCall::packed`: columns of the transpose, for products with the rows, and the rows.
template <class A>
struct PackedTables {
  Panels<A> columns[2], rows[2];  // the keys', the queries'
  A* bias;                        // by distance, at distance 0

  PackedTables(const DistanceCall& call, int64_t head) {
    const int64_t dim = call.attention.head_dim;
    A* next = static_cast<A*>(call.packed) + head * call.packed_numbers();
    for (int side = 0; side < 2; ++side) {
      columns[side] = {next, dim, call.columns};
      next += call.columns * dim;
      rows[side] = {next, call.columns, dim};
      next += call.columns * call.wide();
    }
    bias = call.bias.data != nullptr ? next + call.most : nullptr;
  }
};

template <class S>
class ByDistance {
  using A = typename Accumulator<S>::type;
  using V = Vector<A>;
  static constexpr int kLanes = lanes<A>;

 public:
  // `next`: what this thread takes afterwards.
  ByDistance(const DistanceCall& call, int64_t head, const DistanceNext& next = {})
      : call(call), attention(call.attention), head(head), next(next), tables(call, head) {}

  // Fills the head's part of `packed`.
  void prepare(bool backward) const {
    const std::unique_ptr<S[]> zeros(new S[dim]());
    const auto one = [&](const DistanceSide& side, const Panels<A>& columns, const Panels<A>& rows) {
      if (side.table.data == nullptr) return;
      const auto row_of = [&](int64_t column) -> const S* {
        const int64_t index = side.reversed ? side.shift - column : column - side.shift;
        return index >= 0 && index < call.rows ? row(side.table, index) : zeros.get();
      };
      pack_transposed<A>(row_of, call.columns, dim, const_cast<A*>(columns.first));
      if (backward) pack<A>(row_of, call.columns, dim, const_cast<A*>(rows.first));
    };
    one(call.keys, tables.columns[0], tables.rows[0]);
    one(call.queries, tables.columns[1], tables.rows[1]);
    for (int64_t s = -call.most; tables.bias != nullptr && s <= call.most; ++s) {
      tables.bias[s] = to_accumulator(*row(call.bias, call.index[s]));
    }
  }

  // Returns the pairs of a query and a key that it went through, seen or not.
  int64_t forward(const DistanceTask& task) {
    own = std::max<int64_t>(16, kLanes);
    begin_document(task, task.first, task.last, attention.v);
    const int64_t count = last_key - first_key;
    Scratch scratch;
    A* value_memory;
    layout(scratch, [&](auto& take) {
      take_keys(take, count);
      value_memory = take(count * wide);
      take_block(take, 1);
    });
    const Panels<A> keys = pack_keys(count);
    const Panels<A> values = pack<A>(rows_from(attention.v, first_key), count, dim, value_memory);
    A* const lse = static_cast<A*>(attention.lse) + head * attention.query_rows;
    int64_t pairs = 0;
    for (int64_t q = task.first; q < task.last; q += block) {
      begin_block(q, std::min(q + block, task.last));
      pairs += queries() * span();
      score(keys);
      for (int64_t r = 0; r < queries(); ++r) {
        A* const weights = scores + r * room;
        ask_for(first_query - task.first + r, attention.q, attention.k, attention.v);
        const A maximum = finish(weights, r), total = weigh(weights, r, maximum);
        if (attention.dropout.active) {
          find_factors(r, factors);
          for (int64_t j = seen_first(r); j < seen_last(r); ++j) weights[j] *= factors[j - seen_first(r)];
        }
        shares[r] = 1 / total;
        lse[document + first_query + r] = maximum + std::log(total);
      }
      sum_rows(scores, values, results, false);
      for (int64_t r = 0; r < queries(); ++r) {
        narrow(results + r * wide, shares[r], row(attention.output, document + first_query + r));
      }
    }
    return pairs;
  }

  // Adds to the sums of the part `part` of the work.
  int64_t backward(const DistanceTask& task, const DistanceGrads& grads, int64_t part) {
    begin_document(task, 0, task.tokens, attention.q, attention.k, attention.v, grads.attention.output);
    const int64_t n = task.tokens, packed = whole_vectors<A>(n) * dim;
    Scratch scratch;
    A *value_memory, *row_memory, *grad_keys, *grad_values, *incoming, *query_panels, *grad_panels;
    layout(scratch, [&](auto& take) {
      take_keys(take, n);
      value_memory = take(packed);
      row_memory = take(n * wide);
      grad_keys = take(n * wide);
      grad_values = take(n * wide);
      take_block(take, 2);
      incoming = take(block * wide);
      query_panels = take(block * wide);
      grad_panels = take(block * wide);
    });
    const Panels<A> keys = pack_keys(n);
    const Panels<A> values = pack_transposed<A>(rows_from(attention.v, 0), n, dim, value_memory);
    const Panels<A> key_panels = pack<A>(rows_from(attention.k, 0), n, dim, row_memory);
    std::fill(grad_keys, grad_keys + n * wide, A(0));
    std::fill(grad_values, grad_values + n * wide, A(0));
    const A* const lse = static_cast<const A*>(attention.lse) + head * attention.query_rows;
    A* const sums = static_cast<A*>(grads.sums) + (part * attention.heads + head) * call.sum_numbers();
    A *const key_sums = sums, *const query_sums = sums + call.columns * call.wide();
    A* const bias_sums = query_sums + call.columns * call.wide() + call.most;
    int64_t pairs = 0;
    for (int64_t q = 0; q < n; q += block) {
      begin_block(q, std::min(q + block, n));
      pairs += queries() * span();
      score(keys);
      widen(rows_from(grads.attention.output, q), queries(), incoming);
      multiply_columns(queries(), incoming, values, column_first, column_last, slopes, room);
      for (int64_t r = 0; r < queries(); ++r) {
        ask_for(q + r, attention.q, attention.k, attention.v, grads.attention.output);
        finish(scores + r * room, r);
        slope(scores + r * room, slopes + r * room, r, lse[document + q + r]);
        if (tables.bias == nullptr) continue;
        A* const to = bias_sums + first_column() - (q + r);
        for (int64_t j = seen_first(r); j < seen_last(r); ++j) to[j] += slopes[r * room + j];
      }
      const Panels<A> incoming_rows = pack<A>(plain(incoming), queries(), dim, grad_panels);
      const Panels<A> query_rows = pack<A>(plain(query), queries(), dim, query_panels);
      for (int64_t from = first_seen; from < last_seen; from += kDepth) {
        const int64_t some = std::min(kDepth, last_seen - from), column = from - first_column();
        product<A>(some, queries(), scores + column, 1, room, incoming_rows, 0, grad_values + from * wide, wide, true);
        product<A>(some, queries(), slopes + column, 1, room, query_rows, 0, grad_keys + from * wide, wide, true);
      }
      sum_rows(slopes, key_panels, results, false);
      if (call.keys.table.data != nullptr) {
        each_own_queries([&](int64_t first, int64_t count, int64_t from, int64_t to) {
          const Columns used = columns_of(call.keys, first, count, from, to);
          clear(count, used);
          for (int64_t r = 0; r < count; ++r) {
            const A* const slope = slopes + (first + r - first_query) * room - first_column();
            A* const sum = terms + r * term_room - used.first;
            for (int64_t j = from; j < to; j += kLanes) put(sum, call.keys, j - (first + r), load(slope + j));
          }
          const int64_t at = first - first_query;
          product<A>(count, used.count(), terms, term_room, 1, tables.rows[0], used.first, results + at * wide, wide,
                     true);
          product<A>(used.count(), count, terms, 1, term_room, query_rows, at, key_sums + used.first * wide, wide,
                     true);
        });
      }
      if (call.queries.table.data != nullptr) {
        each_own_keys([&](int64_t first, int64_t count, int64_t from, int64_t to) {
          const Columns used = columns_of(call.queries, first, count, from, to);
          clear(count, used);
          for (int64_t j = 0; j < count; j += kLanes) {
            const int64_t column = first + j - first_column();
            for (int64_t i = from; i < to; i += kLanes) {
              V tile[kLanes];
              for (int64_t r = 0; r < kLanes; ++r) {
                tile[r] = i + r < last_query ? load(slopes + (i + r - first_query) * room + column) : V{};
              }
              transpose<A>(tile);
              for (int64_t r = 0; r < std::min<int64_t>(kLanes, count - j); ++r) {
                put(terms + (j + r) * term_room - used.first, call.queries, i - (first + j + r), tile[r]);
              }
            }
          }
          product<A>(count, used.count(), terms, term_room, 1, tables.rows[1], used.first, grad_keys + first * wide,
                     wide, true);
          product<A>(used.count(), count, terms, 1, term_room, key_panels, first, query_sums + used.first * wide, wide,
                     true);
        });
      }
      for (int64_t r = 0; r < queries(); ++r) {
        narrow(results + r * wide, scale, row(grads.attention.q, document + q + r));
      }
    }
    for (int64_t j = 0; j < n; ++j) {
      narrow(grad_keys + j * wide, scale, row(grads.attention.k, document + j));
      narrow(grad_values + j * wide, 1, row(grads.attention.v, document + j));
    }
    return pairs;
  }

  // The gradients of the head's tables: the sums of all parts, in order.
  void add_up(const DistanceGrads& grads) const {
    const auto part = [&](int64_t i) {
      return static_cast<const A*>(grads.sums) + (i * attention.heads + head) * call.sum_numbers();
    };
    const auto table = [&](const DistanceSide& side, int64_t offset, const Rows& to) {
      const std::unique_ptr<A[]> total(new A[wide]);
      for (int64_t index = 0; side.table.data != nullptr && index < call.rows; ++index) {
        const int64_t column = side.column_of(index), place = offset + column * wide;
        std::fill(total.get(), total.get() + wide, A(0));
        for (int64_t i = 0; i < grads.parts && column >= 0 && column < call.columns; ++i) {
          for (int64_t c = 0; c < wide; c += kLanes) {
            store(total.get() + c, load(total.get() + c) + load(part(i) + place + c));
          }
        }
        narrow(total.get(), scale, row(to, index));
      }
    };
    table(call.keys, 0, grads.keys);
    table(call.queries, call.columns * call.wide(), grads.queries);
    if (tables.bias == nullptr) return;
    const std::unique_ptr<A[]> total(new A[call.rows]());
    for (int64_t i = 0; i < grads.parts; ++i) {
      const A* const by_distance = part(i) + 2 * call.columns * call.wide() + call.most;
      for (int64_t s = -call.most; s <= call.most; ++s) total[call.index[s]] += by_distance[s];
    }
    for (int64_t index = 0; index < call.rows; ++index) {
      *row(grads.bias, index) = from_accumulator<S>(total[index]);
    }
  }

 private:
  // Columns of a table, `first` at a whole vector.
  struct Columns {
    int64_t first, last;
    int64_t count() const { return last - first; }
  };
  // Scratch of a task: one piece of memory, kept from call to call unless it is large.
  struct Scratch {
    std::unique_ptr<A[]> memory;
  };

  const DistanceCall& call;
  const AttentionCall& attention;
  const int64_t head, dim = attention.head_dim, wide = whole_vectors<A>(dim);
  const DistanceNext next;
  const A scale = static_cast<A>(attention.scale);
  const PackedTables<A> tables;

  int64_t document = 0, tokens = 0, block = 0;  // of the document: its first row
  int64_t own = kOwn;                           // fewer make fewer columns too many, but shorter sums of the gradients
  int64_t first_key = 0, last_key = 0;          // that the task meets; the first one a multiple of kOwn
  int64_t room = 0, term_room = 0;              // from one row to the next
  A *key_memory = nullptr, *key_rows = nullptr, *query = nullptr, *scores = nullptr, *slopes = nullptr;
  A *results = nullptr, *terms = nullptr, *factors = nullptr, *shares = nullptr;

  // The block in hand, by places in the document: its queries, the keys that any of them sees. Columns of its scores
  // are counted from the whole vector of keys, from `first_key` on, in which the first of these lies.
  int64_t first_query = 0, last_query = 0, first_seen = 0, last_seen = 0, column_first = 0, column_last = 0;

  int64_t queries() const { return last_query - first_query; }
  int64_t span() const { return last_seen - first_seen; }
  int64_t first_column() const { return first_key + column_first; }
  // The columns that a query of the block sees.
  int64_t seen_first(int64_t r) const { return std::max(first_seen, first_query + r - call.window) - first_column(); }
  int64_t seen_last(int64_t r) const { return std::min(last_seen, first_query + r + call.window + 1) - first_column(); }

  S* row(const Rows& rows, int64_t index) const {
    return static_cast<S*>(rows.data) + index * rows.row + head * rows.head;
  }
  auto rows_from(const Rows& rows, int64_t first) const {
    return [this, &rows, first](int64_t r) { return row(rows, document + first + r); };
  }
  auto plain(const A* rows) const {
    return [this, rows](int64_t r) { return rows + r * wide; };
  }
  // f(column, lanes in use) for every vector of a row; whole vectors are known to be whole when this is compiled.
  template <class F>
  void each_vector(const F& f) const {
    int64_t c = 0;
    for (; c + kLanes <= dim; c += kLanes) f(c, std::integral_constant<int, kLanes>{});
    if (c < dim) f(c, static_cast<int>(dim - c));
  }
  template <class Row>
  void widen(const Row& from, int64_t count, A* to) const {
    for (int64_t r = 0; r < count; ++r) {
      const S* values = from(r);
      each_vector([&](int64_t c, auto n) { store(to + r * wide + c, load_up_to(values + c, n)); });
    }
  }
  void narrow(const A* from, A factor, S* to) const {
    each_vector([&](int64_t c, auto n) { store_up_to(to + c, load(from + c) * factor, n); });
  }
  bool finite(const Rows& rows) const {
    V zero{};
    for (int64_t r = 0; r < tokens; ++r) {
      const S* from = row(rows, document + r);
      each_vector([&](int64_t c, auto n) {
        const V x = load_up_to(from + c, n);
        zero += x - x;
      });
    }
    return sum_of<A>(zero) == 0;
  }

  // Asks for the rows of the thread's next task, one after the other: the processor does not foresee where it lies.
  template <class... Read>
  void ask_for(int64_t row, const Read&... read) const {
    const auto one = [&](const Rows& rows) {
      const char* from = reinterpret_cast<const char*>(static_cast<const S*>(rows.data) +
                                                       (next.begin + row) * rows.row + next.head * rows.head);
      for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(S)); byte += 64) {
        __builtin_prefetch(from + byte, 0, 2);
      }
    };
    if (row < next.rows) (one(read), ...);
  }

  // `read`: what is multiplied by weights that may be 0.
  template <class... Read>
  void begin_document(const DistanceTask& task, int64_t first, int64_t last, const Read&... read) {
    document = task.begin, tokens = task.tokens;
    first_key = std::max<int64_t>(0, first - call.window) / kOwn * kOwn;
    last_key = std::min(tokens, last + call.window);
    block = kBlockQueries;
    if (call.window < tokens - 1) {
      // As many keys outside the window as queries are multiplied with each of them.
      block = std::clamp((call.window / 2 + kOwn - 1) / kOwn * kOwn, kOwn, kBlockQueries);
      if (!(finite(read) && ...)) block = 1;
    }
    const int64_t seen = std::min(last_key - first_key, block + 2 * call.window);
    while (block > kOwn && block * seen > kBlockScores) block -= kOwn;
    room = (whole_vectors<A>(seen + 2 * kLanes) / kLanes | 1) * kLanes;
    term_room = (call.columns / kLanes | 1) * kLanes;
  }

  template <class F>
  void layout(Scratch& scratch, const F& take_all) {
    int64_t total = 0;
    const auto measure = [&](int64_t size) {
      total += size;
      return static_cast<A*>(nullptr);
    };
    take_all(measure);
    A* next;
    if (total <= kKeptNumbers) {
      next = thread_memory<A>(total);
    } else {
      scratch.memory.reset(new A[total]);
      next = scratch.memory.get();
    }
    const auto take = [&](int64_t size) {
      A* const taken = next;
      next += size;
      return taken;
    };
    take_all(take);
  }
  template <class Take>
  void take_keys(const Take& take, int64_t count) {
    key_memory = take(whole_vectors<A>(count) * dim);
    key_rows = take(call.queries.table.data != nullptr ? count * wide : 0);
  }
  template <class Take>
  void take_block(const Take& take, int64_t matrices) {
    const int64_t rows = whole_vectors<A>(block);
    query = take(block * wide);
    scores = take(rows * room);
    slopes = take(matrices > 1 ? rows * room : 0);
    results = take(block * wide);
    terms = take(kOwn * term_room);
    factors = take(room);
    shares = take(block);
  }
  Panels<A> pack_keys(int64_t count) const {
    if (call.queries.table.data != nullptr) widen(rows_from(attention.k, first_key), count, key_rows);
    return pack_transposed<A>(rows_from(attention.k, first_key), count, dim, key_memory);
  }

  void begin_block(int64_t first, int64_t last) {
    first_query = first, last_query = last;
    first_seen = std::max<int64_t>(0, first - call.window);
    last_seen = std::min(tokens, last + call.window);
    column_first = (first_seen - first_key) / kLanes * kLanes;
    column_last = last_seen - first_key;
  }

  // Columns first .. last - 1 of packed columns, the first one at a whole vector: rows [count, wide] times them.
  void multiply_columns(int64_t count, const A* rows, const Panels<A>& packed, int64_t first, int64_t last, A* to,
                        int64_t to_row) const {
    constexpr int64_t P = kPanel<A>;
    for (int64_t column = first; column < last;) {
      const int64_t panel = column / P * P, panel_width = panel_vectors<A>(panel, packed.columns) * kLanes;
      const int64_t end = std::min(panel + panel_width, first + whole_vectors<A>(last - first));
      product_panel<A>((end - column) / kLanes, count, packed.rows, rows, wide, 1,
                       packed.first + panel * packed.rows + (column - panel), 0, panel_width, to + (column - first),
                       to_row, false);
      column = end;
    }
  }

  // f(first, count, from, to) for pieces of kOwn queries of the block and the keys that they see, from a whole vector
  // on; and for pieces of kOwn keys and the queries that see them.
  template <class F>
  void each_own_queries(const F& f) const {
    for (int64_t first = first_query; first < last_query; first += own) {
      const int64_t count = std::min(own, last_query - first);
      const int64_t from = std::max(first_seen, first - call.window) - first_column();
      f(first, count, first_column() + from / kLanes * kLanes, std::min(last_seen, first + count + call.window));
    }
  }
  template <class F>
  void each_own_keys(const F& f) const {
    for (int64_t piece = first_seen / own * own; piece < last_seen; piece += own) {
      const int64_t first = std::max(piece, first_seen), last = std::min(piece + own, last_seen);
      const int64_t from = std::max(first_query, first - call.window) - first_query;
      f(first, last - first, first_query + from / kLanes * kLanes, std::min(last_query, last + call.window));
    }
  }

  // The columns of the distances between rows first .. first + count - 1 and others from .. to - 1, in whole vectors.
  Columns columns_of(const DistanceSide& side, int64_t first, int64_t count, int64_t from, int64_t to) const {
    const int64_t least = from - (first + count - 1), most = from + whole_vectors<A>(to - from) - 1 - first;
    int32_t low = side.column[least], high = low;
    for (int64_t s = least; s <= most; ++s) {
      low = std::min(low, side.column[s]);
      high = std::max(high, side.column[s]);
    }
    return {low / kLanes * kLanes, int64_t{high} + 1};
  }

  void clear(int64_t count, const Columns& used) const {
    for (int64_t r = 0; r < count; ++r) {
      std::fill(terms + r * term_room, terms + r * term_room + whole_vectors<A>(used.count()), A(0));
    }
  }

  // What a row of products, by columns, has for distances s, s + 1, ...
  static V get(const A* row, const DistanceSide& side, int64_t s) {
    const int32_t* column = side.column + s;
    if (side.ascending[s] >= kLanes) return load(row + column[0]);
    if (side.equal[s] >= kLanes) return broadcast(row[column[0]]);
    return gather(row, column);
  }
  static V gather(const A* row, const int32_t* column) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<A, float>) {
      return (V)_mm512_i32gather_ps(_mm512_loadu_si512(column), row, 4);
    }
#endif
    V x;
    for (int lane = 0; lane < kLanes; ++lane) x[lane] = row[column[lane]];
    return x;
  }
  // Adds to them.
  static void put(A* row, const DistanceSide& side, int64_t s, V x) {
    const int32_t* column = side.column + s;
    if (side.ascending[s] >= kLanes) {
      store(row + column[0], load(row + column[0]) + x);
    } else if (side.equal[s] >= kLanes) {
      row[column[0]] += sum_of<A>(x);
    } else {
      for (int lane = 0; lane < kLanes; ++lane) row[column[lane]] += x[lane];
    }
  }

  // The block's products, also where a query does not see a key.
  void score(const Panels<A>& keys) {
    widen(rows_from(attention.q, first_query), queries(), query);
    multiply_columns(queries(), query, keys, column_first, column_last, scores, room);
    if (call.keys.table.data != nullptr) {
      each_own_queries([&](int64_t first, int64_t count, int64_t from, int64_t to) {
        const Columns used = columns_of(call.keys, first, count, from, to);
        multiply_columns(count, query + (first - first_query) * wide, tables.columns[0], used.first, used.last, terms,
                         term_room);
        for (int64_t r = 0; r < count; ++r) {
          A* const score = scores + (first + r - first_query) * room - first_column();
          const A* const term = terms + r * term_room - used.first;
          for (int64_t j = from; j < to; j += kLanes) {
            store(score + j, load(score + j) + get(term, call.keys, j - (first + r)));
          }
        }
      });
    }
    if (call.queries.table.data != nullptr) {
      each_own_keys([&](int64_t first, int64_t count, int64_t from, int64_t to) {
        const Columns used = columns_of(call.queries, first, count, from, to);
        multiply_columns(count, key_rows + (first - first_key) * wide, tables.columns[1], used.first, used.last, terms,
                         term_room);
        for (int64_t j = 0; j < count; j += kLanes) {
          const int64_t column = first + j - first_column();
          for (int64_t i = from; i < to; i += kLanes) {
            V tile[kLanes];
            for (int64_t r = 0; r < kLanes; ++r) {
              tile[r] = j + r < count ? get(terms + (j + r) * term_room - used.first, call.queries, i - (first + j + r))
                                      : V{};
            }
            transpose<A>(tile);
            for (int64_t r = 0; r < std::min<int64_t>(kLanes, last_query - i); ++r) {
              A* const score = scores + (i + r - first_query) * room + column;
              store(score, load(score) + tile[r]);
            }
          }
        }
      });
    }
  }

  // A row's products become logits, -inf in what is left of its first and its last vector, 0 beyond. Returns the
  // largest.
  A finish(A* row, int64_t r) const {
    const int64_t first = seen_first(r), last = seen_last(r);
    const int64_t from = first / kLanes * kLanes, to = whole_vectors<A>(last);
    const A* const bias = tables.bias != nullptr ? tables.bias + first_column() - (first_query + r) : nullptr;
    V largest = broadcast<A>(-INFINITY);
    for (int64_t j = from; j < to; j += kLanes) {
      V logit = load(row + j) * scale;
      if (bias != nullptr) logit += load(bias + j);
      store(row + j, logit);
      if (j < first || j + kLanes > last) {
        std::fill(row + j, row + std::max(j, first), A(-INFINITY));
        std::fill(row + std::min(j + kLanes, last), row + j + kLanes, A(-INFINITY));
        logit = load(row + j);
      }
      largest = larger(largest, logit);
    }
    std::fill(row, row + from, A(0));
    std::fill(row + to, row + std::max(to, whole_vectors<A>(column_last - column_first)), A(0));
    return largest_of<A>(largest);
  }

  // Logits become weights relative to `maximum`; returns their sum.
  A weigh(A* row, int64_t r, A maximum) const {
    // Logits that are all -inf have no maximum to subtract; 0 leaves their weights 0.
    const A pivot = maximum == -INFINITY ? A(0) : maximum;
    A total = 0;
    const int64_t last = seen_last(r);
    for (int64_t begin = seen_first(r) / kLanes * kLanes; begin < last; begin += kDepth) {
      V sum{};
      for (int64_t j = begin; j < std::min(begin + kDepth, last); j += kLanes) {
        const V weight = exponential(load(row + j) - pivot);
        store(row + j, weight);
        sum += weight;
      }
      total += sum_of<A>(sum);
    }
    return total;
  }

  // Dropout's, of the keys that a query sees.
  void find_factors(int64_t r, A* to) const {
    const int64_t first = seen_first(r);
    attention.dropout.factors(head, document + first_query + r, document + first_column() + first, seen_last(r) - first,
                              to);
  }

  // Logits become the weights that multiplied V, dP the slopes of the logits: as in attention.h.
  void slope(A* row, A* slope, int64_t r, A lse) const {
    const int64_t first = seen_first(r), last = seen_last(r);
    const int64_t from = first / kLanes * kLanes, to = whole_vectors<A>(last);
    std::fill(slope, slope + first, A(0));
    std::fill(slope + last, slope + std::max(to, whole_vectors<A>(column_last - column_first)), A(0));
    if (attention.dropout.active) {
      find_factors(r, factors + first);
      std::fill(factors + from, factors + first, A(0));
      std::fill(factors + last, factors + to, A(0));
      for (int64_t j = from; j < to; j += kLanes) store(slope + j, load(slope + j) * load(factors + j));
    }
    const A share = 1 / weigh(row, r, lse);
    A delta = 0;
    for (int64_t begin = from; begin < to; begin += kDepth) {
      V sum{};
      for (int64_t j = begin; j < std::min(begin + kDepth, to); j += kLanes) sum += load(row + j) * load(slope + j);
      delta += sum_of<A>(sum);
    }
    delta *= share;
    for (int64_t j = from; j < to; j += kLanes) {
      const V weight = load(row + j) * share;
      store(row + j, attention.dropout.active ? weight * load(factors + j) : weight);
      store(slope + j, weight * (load(slope + j) - delta));
    }
    // A softmax over one key is 1 whatever its score.
    if (last - first == 1) slope[first] = 0;
    for (A* const values : {row, slope}) {  // NaN in a row stays with what its query sees
      std::fill(values + from, values + first, A(0));
      std::fill(values + last, values + to, A(0));
    }
  }

  // Rows of weights, over the keys that the block sees, times those of the document: [queries, wide].
  void sum_rows(const A* weights, const Panels<A>& rows, A* to, bool add) const {
    for (int64_t from = first_seen; from < last_seen; from += kDepth, add = true) {
      product<A>(queries(), std::min(kDepth, last_seen - from), weights + from - first_column(), room, 1, rows,
                 from - first_key, to, wide, add);
    }
  }
};

}  // namespace
}  // namespace SPANBERT_ISA
}  // namespace spanbert
