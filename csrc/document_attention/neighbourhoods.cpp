#include "document_attention/neighbourhoods.h"

#include <algorithm>
#include <numeric>

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

}  // namespace

Neighbourhoods::Neighbourhoods(const AttentionWork& work, int64_t query_rows, int64_t key_rows, bool pairs)
    : include_self_(work.include_self), linked_(work.links.has_value()) {
  STD_TORCH_CHECK(work.documents.dim() == 2 && work.documents.size(0) == 6, "documents must have shape [6, D]");
  const int64_t count = work.documents.size(1);
  const std::vector<int64_t> table = numbers(work.documents);
  const int64_t *q_begin = table.data(), *q_end = q_begin + count, *k_begin = q_end + count, *k_end = k_begin + count;
  const int64_t *first = k_end + count, *last = first + count;
  check_rows(q_begin, q_end, count, query_rows, work.anchor_queries);
  check_rows(k_begin, k_end, count, key_rows, work.anchor_keys);
  link_offsets_ = numbers(work.link_offsets);
  links_ = numbers(work.links);
  STD_TORCH_CHECK(!linked_ || static_cast<int64_t>(link_offsets_.size()) == count + 1,
                  "link_offsets must have D + 1 entries");
  STD_TORCH_CHECK(!linked_ || count == 0 || (link_offsets_[0] >= 0 && link_offsets_[count] <= std::ssize(links_)),
                  "link_offsets must lie within the links");

  for (int64_t d = 0; d < count; d = last[d]) {
    STD_TORCH_CHECK(first[d] == d && last[d] > d && last[d] <= count, "clusters must follow each other, got ", first[d],
                    " to ", last[d], " at document ", d);
    clusters.push_back({d, last[d] - d, 0, 0});
  }
  // The tables are pointed into: they must not move when they grow.
  const int64_t tables = count + std::ssize(clusters);
  int64_t squares = 0;
  for (const Cluster& c : clusters) squares += c.documents * (c.documents + 1);
  query_rows_.reserve(query_rows);
  key_rows_.reserve(key_rows);
  query_first_.reserve(tables);
  key_first_.reserve(tables);
  range_first_.reserve(pairs ? squares : tables);
  ranges_.reserve(pairs ? squares : std::max<int64_t>(2 * count, std::ssize(links_)));
  for (Cluster& cluster : clusters) {
    for (int64_t d = cluster.first_document; d < cluster.first_document + cluster.documents; ++d) {
      query_first_.push_back(std::ssize(query_rows_));
      key_first_.push_back(std::ssize(key_rows_));
      for (int64_t row = q_begin[d]; row < q_end[d]; ++row) query_rows_.push_back(row);
      for (int64_t row = k_begin[d]; row < k_end[d]; ++row) key_rows_.push_back(row);
    }
    query_first_.push_back(std::ssize(query_rows_));
    key_first_.push_back(std::ssize(key_rows_));
    add(cluster, pairs);
  }
}

void Neighbourhoods::add(const Cluster& cluster, bool pairs) {
  // Rows are counted from the cluster's first on.
  const int64_t offset = cluster_offset(cluster), n = cluster.documents;
  int64_t *query_first = query_first_.data() + offset, *key_first = key_first_.data() + offset;
  const int64_t query_row = query_first[0], key_row = key_first[0];
  for (int64_t i = 0; i <= n; ++i) query_first[i] -= query_row, key_first[i] -= key_row;
  Neighbourhood near{};
  near.documents = n;
  near.queries = query_first[n];
  near.keys = key_first[n];
  near.query_first = query_first;
  near.query_rows = query_rows_.data() + query_row;
  near.key_rows = key_rows_.data() + key_row;
  near.nearly_all = !linked_;
  Cluster& mine = clusters[&cluster - clusters.data()];
  mine.first = std::ssize(all);
  if (pairs) {
    add_pairs(cluster, near);
  } else {
    near.range_first = range_first_.data() + std::ssize(range_first_);
    const int64_t first_range = std::ssize(ranges_);
    near.ranges = ranges_.data() + first_range;
    const auto put = [&](int64_t begin, int64_t end) {
      if (begin == end) return;
      const bool joins = std::ssize(ranges_) > first_range + range_first_.back() && ranges_.back().end == begin;
      if (joins) {
        ranges_.back().end = end;
      } else {
        ranges_.push_back({begin, end});
      }
    };
    for (int64_t i = 0; i < n; ++i) {
      range_first_.push_back(std::ssize(ranges_) - first_range);
      if (linked_) {
        for (int64_t j = 0; j < n; ++j) {
          if (sees(cluster, i, j)) put(key_first[j], key_first[j + 1]);
        }
      } else if (include_self_) {
        put(0, near.keys);
      } else {
        put(0, key_first[i]);
        put(key_first[i + 1], near.keys);
      }
    }
    range_first_.push_back(std::ssize(ranges_) - first_range);
    all.push_back(near);
  }
  mine.count = std::ssize(all) - mine.first;
}

void Neighbourhoods::add_pairs(const Cluster& cluster, Neighbourhood near) {
  const int64_t* key_first = key_first_.data() + cluster_offset(cluster);
  const int64_t* rows = near.key_rows;
  for (int64_t j = 0; j < cluster.documents; ++j) {
    near.keys = key_first[j + 1] - key_first[j];
    if (near.keys == 0) continue;
    near.key_rows = rows + key_first[j];
    near.range_first = range_first_.data() + std::ssize(range_first_);
    near.ranges = ranges_.data() + std::ssize(ranges_);
    int64_t found = 0;
    for (int64_t i = 0; i < cluster.documents; ++i) {
      range_first_.push_back(found);
      if (!sees(cluster, i, j)) continue;
      ranges_.push_back({0, near.keys});
      ++found;
    }
    range_first_.push_back(found);
    all.push_back(near);
    places.push_back(j);
  }
}

bool Neighbourhoods::sees(const Cluster& cluster, int64_t i, int64_t j) const {
  if (!linked_) return include_self_ || i != j;
  // The targets ascend but for those that are passed over.
  const int64_t document = cluster.first_document + i, target = cluster.first_document + j;
  const auto begin = links_.begin() + link_offsets_[document], end = links_.begin() + link_offsets_[document + 1];
  return std::find(begin, end, target) != end;
}

Rows rows_of(const Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

AttentionCall attention_call(const Tensor& q, const Tensor& k, const Tensor& v, double scale, double dropout_p,
                             const OptionalTensor& seed) {
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
  if (dropout_p > 0) {
    STD_TORCH_CHECK(seed && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
                    "dropout needs one int64 seed");
    call.dropout.active = true;
    call.dropout.seed = static_cast<uint64_t>(*seed->const_data_ptr<int64_t>());
    call.dropout.threshold = static_cast<uint32_t>(std::min(dropout_p * 4294967296.0, 4294967295.0));
    call.dropout.scale = 1.0 / (1.0 - dropout_p);
  }
  return call;
}

ScalarType accumulator_of(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace spanbert
