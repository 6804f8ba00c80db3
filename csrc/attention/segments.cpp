#include "attention/segments.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "common/dropout.h"

namespace spanbert {
namespace {

std::vector<int64_t> numbers(const OptionalTensor& tensor) {
  if (!tensor) return {};
  const Tensor kept = as_int64(*tensor);
  const int64_t* values = kept.const_data_ptr<int64_t>();
  return {values, values + kept.numel()};
}

// Documents of tokens follow each other from 0 to the last row; anchors are row d or none.
void check_rows(const int64_t* begin, const int64_t* end, int64_t documents, int64_t rows, bool anchors) {
  int64_t next = 0;
  for (int64_t d = 0; d < documents; ++d) {
    const bool good = anchors ? begin[d] == d && (end[d] == d || end[d] == d + 1) : begin[d] == next && end[d] >= next;
    STD_TORCH_CHECK(good, "cu_seqlens must ascend from 0, but document ", d, " has rows ", begin[d], " to ", end[d]);
    next = end[d];
  }
  const int64_t found = anchors ? documents : next;
  STD_TORCH_CHECK(found == rows, "cu_seqlens must run from 0 to the number of tokens: the documents have ", found,
                  " rows, the tensor has ", rows);
}

// All pairs of a cluster may cost so many times what the linked ones do: in whole blocks they are that much faster.
constexpr int64_t kDense = 8;

std::atomic<int64_t> pairs{0};

}  // namespace

Segments::Segments(const AttentionArguments& work, int64_t query_rows, int64_t key_rows, const PairArguments* pairs)
    : include_self_(work.include_self), linked_(work.links.has_value()), query_rows_(query_rows) {
  STD_TORCH_CHECK(work.documents.dim() == 2 && work.documents.size(0) == 6, "documents must have shape [6, D]");
  const int64_t count = work.documents.size(1);
  const std::vector<int64_t> table = numbers(work.documents);
  const int64_t *q_begin = table.data(), *q_end = q_begin + count, *k_begin = q_end + count, *k_end = k_begin + count;
  const int64_t *first = k_end + count, *last = first + count;
  check_rows(q_begin, q_end, count, query_rows, work.anchor_queries);
  check_rows(k_begin, k_end, count, key_rows, work.anchor_keys);
  link_offsets_ = numbers(work.link_offsets);
  links_ = numbers(work.links);
  STD_TORCH_CHECK(!linked_ || std::ssize(link_offsets_) == count + 1, "link_offsets must have D + 1 entries");
  STD_TORCH_CHECK(!linked_ || count == 0 ||
                      (link_offsets_[0] >= 0 && link_offsets_[count] <= std::ssize(links_) &&
                       std::is_sorted(link_offsets_.begin(), link_offsets_.end())),
                  "link_offsets must ascend within the links");
  if (pairs != nullptr) {
    slots_ = numbers(pairs->slots);
    STD_TORCH_CHECK(!linked_ || slots_.size() == links_.size(), "slots must have one entry per link");
  }

  for (int64_t d = 0; d < count; d = last[d]) {
    STD_TORCH_CHECK(first[d] == d && last[d] > d && last[d] <= count, "clusters must follow each other, got ", first[d],
                    " to ", last[d], " at document ", d);
    Cluster cluster{d, last[d] - d, std::ssize(all), 0, false, {k_begin[d], k_end[last[d] - 1] - k_begin[d]}};
    if (work.anchor_keys) cluster.keys.count = cluster.documents;
    const Side queries = side_of(cluster, q_begin, q_end), keys = side_of(cluster, k_begin, k_end);
    queries_ += queries.first[cluster.documents];
    keys_ += keys.first[cluster.documents];
    cluster.sparse = linked_ && (pairs != nullptr || is_sparse(cluster, queries, keys));
    if (pairs != nullptr) {
      cluster.sparse ? add_linked_pairs(cluster, queries, keys, *pairs) : add_pairs(cluster, queries, keys, *pairs);
    } else {
      cluster.sparse ? add_documents(cluster, queries, keys) : add_cluster(cluster, queries, keys);
    }
    cluster.count = std::ssize(all) - cluster.first;
    clusters.push_back(cluster);
  }
}

Segments::Side Segments::side_of(const Cluster& cluster, const int64_t* begin, const int64_t* end) {
  int64_t* first = numbers_.take(cluster.documents + 1);
  first[0] = 0;
  for (int64_t i = 0; i < cluster.documents; ++i) {
    const int64_t document = cluster.first_document + i;
    first[i + 1] = first[i] + end[document] - begin[document];
  }
  int64_t* rows = numbers_.take(first[cluster.documents]);
  for (int64_t i = 0; i < cluster.documents; ++i) {
    std::iota(rows + first[i], rows + first[i + 1], begin[cluster.first_document + i]);
  }
  return {first, rows};
}

template <class F>
void Segments::each_link(const Cluster& cluster, int64_t place, const F& f) const {
  const int64_t document = cluster.first_document + place;
  for (int64_t link = link_offsets_[document]; link < link_offsets_[document + 1]; ++link) {
    if (links_[link] < 0) continue;  // to be passed over
    const int64_t target = links_[link] - cluster.first_document;
    STD_TORCH_CHECK(0 <= target && target < cluster.documents, "document ", document, " links to document ",
                    links_[link], ", which is not of its cluster");
    f(link, target);
  }
}

bool Segments::is_sparse(const Cluster& cluster, const Side& queries, const Side& keys) const {
  const int64_t n = cluster.documents;
  if (queries.first[n] <= kSmall && keys.first[n] <= kSmall) return false;
  double linked = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t rows = queries.first[i + 1] - queries.first[i];
    each_link(cluster, i, [&](int64_t, int64_t j) {
      linked += static_cast<double>(rows) * static_cast<double>(keys.first[j + 1] - keys.first[j]);
    });
  }
  return static_cast<double>(queries.first[n]) * static_cast<double>(keys.first[n]) > kDense * linked;
}

void Segments::add_cluster(const Cluster& cluster, const Side& queries, const Side& keys) {
  const int64_t n = cluster.documents, *key_first = keys.first;
  const int64_t begin_link = linked_ ? link_offsets_[cluster.first_document] : 0;
  const int64_t most = linked_ ? link_offsets_[cluster.first_document + n] - begin_link : 2 * n;
  int64_t* range_first = numbers_.take(n + 1);
  Range* ranges = ranges_.take(most);
  int64_t found = 0;
  const auto put = [&](int64_t document, int64_t begin, int64_t end) {
    if (begin == end) return;
    if (found > range_first[document] && ranges[found - 1].end == begin) {
      ranges[found - 1].end = end;
    } else {
      ranges[found++] = {begin, end};
    }
  };
  for (int64_t i = 0; i < n; ++i) {
    range_first[i] = found;
    if (linked_) {
      each_link(cluster, i, [&](int64_t, int64_t j) { put(i, key_first[j], key_first[j + 1]); });
    } else if (include_self_) {
      put(i, 0, key_first[n]);
    } else {
      put(i, 0, key_first[i]);
      put(i, key_first[i + 1], key_first[n]);
    }
  }
  range_first[n] = found;
  all.push_back(
      {n, queries.first[n], key_first[n], queries.first, queries.rows, keys.rows, range_first, ranges, !linked_});
  int64_t* places = numbers_.take(n);
  std::iota(places, places + n, int64_t{0});
  key_documents.push_back({key_first, places, n});
}

void Segments::add_pairs(const Cluster& cluster, const Side& queries, const Side& keys, const PairArguments& pairs) {
  const int64_t n = cluster.documents;
  STD_TORCH_CHECK(n * query_rows_ <= pairs.size, "the statistics of ", n, " documents do not fit into ", pairs.size);
  for (int64_t j = 0; j < n; ++j) {
    const int64_t rows = keys.first[j + 1] - keys.first[j];
    if (rows == 0) continue;
    int64_t* range_first = numbers_.take(n + 1);
    Range* ranges = ranges_.take(n);
    int64_t found = 0;
    for (int64_t i = 0; i < n; ++i) {
      range_first[i] = found;
      if (include_self_ || i != j) ranges[found++] = {0, rows};
    }
    range_first[n] = found;
    all.push_back(
        {n, queries.first[n], rows, queries.first, queries.rows, keys.rows + keys.first[j], range_first, ranges, true});
    statistics.push_back(j * query_rows_);
  }
}

Segment Segments::of_document(const Side& queries, int64_t document, int64_t keys, const int64_t* key_rows) {
  const int64_t rows = queries.first[document + 1] - queries.first[document];
  int64_t *query_first = numbers_.take(2), *range_first = numbers_.take(2);
  query_first[0] = 0, query_first[1] = rows;
  range_first[0] = 0, range_first[1] = keys > 0;
  Range* range = ranges_.take(1);
  *range = {0, keys};
  return {1, rows, keys, query_first, queries.rows + queries.first[document], key_rows, range_first, range, true, true};
}

void Segments::add_documents(const Cluster& cluster, const Side& queries, const Side& keys) {
  for (int64_t i = 0; i < cluster.documents; ++i) {
    if (queries.first[i] == queries.first[i + 1]) continue;
    int64_t seen = 0, rows = 0;
    each_link(cluster, i, [&](int64_t, int64_t j) { ++seen, rows += keys.first[j + 1] - keys.first[j]; });
    int64_t *key_rows = numbers_.take(rows), *first = numbers_.take(seen + 1), *places = numbers_.take(seen);
    int64_t found = 0;
    first[0] = 0;
    each_link(cluster, i, [&](int64_t, int64_t j) {
      std::copy(keys.rows + keys.first[j], keys.rows + keys.first[j + 1], key_rows + first[found]);
      places[found] = j;
      first[found + 1] = first[found] + keys.first[j + 1] - keys.first[j];
      ++found;
    });
    all.push_back(of_document(queries, i, rows, key_rows));
    key_documents.push_back({first, places, seen});
  }
}

void Segments::add_linked_pairs(const Cluster& cluster, const Side& queries, const Side& keys,
                                const PairArguments& pairs) {
  for (int64_t i = 0; i < cluster.documents; ++i) {
    const int64_t rows = queries.first[i + 1] - queries.first[i];
    if (rows == 0) continue;
    const int64_t first_row = queries.rows[queries.first[i]];
    each_link(cluster, i, [&](int64_t link, int64_t j) {
      const int64_t seen = keys.first[j + 1] - keys.first[j];
      if (seen == 0) return;
      STD_TORCH_CHECK(slots_[link] + first_row >= 0 && slots_[link] + first_row + rows <= pairs.size,
                      "slots must lie within ", pairs.size, " statistics");
      all.push_back(of_document(queries, i, seen, keys.rows + keys.first[j]));
      statistics.push_back(slots_[link]);
    });
  }
}

void count_pairs(const Segments& segments, int64_t heads) {
  for (const Segment& one : segments.all) pairs += one.queries * one.keys * heads;
}
void count_pairs(int64_t met) { pairs += met; }
int64_t pairs_met() { return pairs; }

Rows rows_of(const Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

AttentionCall attention_call(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                             const DropoutArguments& dropout) {
  STD_TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3, "q, k, v must have shape [rows, heads, head_dim]");
  for (int64_t d = 0; d < 3; ++d) {
    STD_TORCH_CHECK(k.size(d) == v.size(d) && (d == 0 || k.size(d) == q.size(d)),
                    "q, k, v must have the same heads and head_dim, k and v the same rows");
  }
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                  "q, k, v must have one dtype");
  AttentionCall call{};
  call.storage = storage_of(q);
  call.query_rows = q.size(0);
  call.heads = q.size(1);
  call.head_dim = q.size(2);
  call.scale = scale;
  call.q = rows_of(q);
  call.k = rows_of(k);
  call.v = rows_of(v);
  call.dropout = dropout_of(dropout);
  return call;
}

ScalarType accumulator_of(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace spanbert
