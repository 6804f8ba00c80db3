// Who attends to whom, laid out for the CPU kernels, and the arguments that the attention bindings share.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/tensors.h"
#include "document_attention/kernels.h"

namespace spanbert {

using OptionalTensor = std::optional<Tensor>;

// The tensors of an AttentionWork (spanbert_kernels/ops/attention_plans.py) that a CPU needs.
struct AttentionWork {
  const Tensor& documents;
  const OptionalTensor &link_offsets, &links;
  bool include_self, anchor_queries, anchor_keys;
};

// One neighbourhood for each cluster; or, in pairs, one for each document with keys, whose keys are that document's.
class Neighbourhoods {
 public:
  // Throws where the documents are not those of tensors with so many rows.
  Neighbourhoods(const AttentionWork& work, int64_t query_rows, int64_t key_rows, bool pairs);
  Neighbourhoods(const Neighbourhoods&) = delete;

  struct Cluster {
    int64_t first_document, documents;
    int64_t first, count;  // of `all`
  };
  std::vector<Neighbourhood> all;
  std::vector<Cluster> clusters;
  std::vector<int64_t> places;  // of each neighbourhood in pairs: the place in the cluster of the document it is about
  // For weights: the first key of each document of a cluster, counted as a neighbourhood's keys are.
  const int64_t* key_first(const Cluster& cluster) const { return key_first_.data() + cluster_offset(cluster); }
  // Whether all rows of tensors with so many belong to some document.
  bool has_queries(int64_t rows) const { return std::ssize(query_rows_) == rows; }
  bool has_keys(int64_t rows) const { return std::ssize(key_rows_) == rows; }
  // Whether document i of a cluster sees its document j.
  bool sees(const Cluster& cluster, int64_t i, int64_t j) const;

 private:
  int64_t cluster_offset(const Cluster& cluster) const { return cluster.first_document + (&cluster - clusters.data()); }
  void add(const Cluster& cluster, bool pairs);
  void add_pairs(const Cluster& cluster, Neighbourhood near);

  bool include_self_, linked_;
  std::vector<int64_t> link_offsets_, links_;
  std::vector<int64_t> query_rows_, key_rows_, query_first_, key_first_, range_first_;
  std::vector<Range> ranges_;
};

Rows rows_of(const Tensor& tensor);

// Throws where the tensors do not fit each other.
AttentionCall attention_call(const Tensor& q, const Tensor& k, const Tensor& v, double scale, double dropout_p,
                             const OptionalTensor& seed);

// float64 for float64, else float32.
ScalarType accumulator_of(const Tensor& tensor);

}  // namespace spanbert
