// Who attends to whom, laid out for the CPU kernels, and the arguments that the attention bindings share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "attention/arguments.h"
#include "attention/call.h"

namespace spanbert {

// Memory that does not move when more is taken.
template <class T>
class Arena {
 public:
  T* take(int64_t count) {
    if (count > left_) {
      left_ = std::max(count, kBlock);
      blocks_.emplace_back(new T[left_]);
      next_ = blocks_.back().get();
    }
    left_ -= count;
    next_ += count;
    return next_ - count;
  }

 private:
  static constexpr int64_t kBlock = 4096;
  std::vector<std::unique_ptr<T[]>> blocks_;
  T* next_ = nullptr;
  int64_t left_ = 0;
};

// What runs together: a cluster is one segment or, in pairs, one for each document with keys, whose keys are that
// document's. Where few documents see each other, so that all pairs would be many times the work of those linked, each
// query document has a segment of its own: all keys that it sees or, in pairs, one for each document that it sees.
class Segments {
 public:
  // Throws where the documents are not those of tensors with so many rows, or links leave their cluster.
  Segments(const AttentionArguments& work, int64_t query_rows, int64_t key_rows, const PairArguments* pairs = nullptr);
  Segments(const Segments&) = delete;

  struct Cluster {
    int64_t first_document, documents;
    int64_t first, count;  // of `all`
    bool sparse;           // each query document has its own
    RowRange keys;         // rows of the tensors
  };
  std::vector<Segment> all;
  std::vector<Cluster> clusters;
  // Of each segment in pairs: where the statistics of query row 0 would lie.
  std::vector<int64_t> statistics;
  // Of the others, for weights: the first key of each of its documents, their number, and their places in the cluster.
  std::vector<KeyDocuments> key_documents;
  // Whether all rows of tensors with so many belong to some document.
  bool has_queries(int64_t rows) const { return queries_ == rows; }
  bool has_keys(int64_t rows) const { return keys_ == rows; }

 private:
  // The rows of a cluster's documents, counted from its first one.
  struct Side {
    int64_t* first;  // [documents + 1]
    int64_t* rows;
  };
  Side side_of(const Cluster& cluster, const int64_t* begin, const int64_t* end);
  bool is_sparse(const Cluster& cluster, const Side& queries, const Side& keys) const;
  void add_cluster(const Cluster& cluster, const Side& queries, const Side& keys);
  void add_pairs(const Cluster& cluster, const Side& queries, const Side& keys, const PairArguments& pairs);
  void add_documents(const Cluster& cluster, const Side& queries, const Side& keys);
  void add_linked_pairs(const Cluster& cluster, const Side& queries, const Side& keys, const PairArguments& pairs);
  Segment of_document(const Side& queries, int64_t document, int64_t keys, const int64_t* key_rows);
  // f(link, place in the cluster) for every document that a document of a cluster sees, ascending.
  template <class F>
  void each_link(const Cluster& cluster, int64_t place, const F& f) const;

  bool include_self_, linked_;
  int64_t query_rows_, queries_ = 0, keys_ = 0;
  std::vector<int64_t> link_offsets_, links_, slots_;
  Arena<int64_t> numbers_;
  Arena<Range> ranges_;
};

// Pairs of a query and a key row, over all heads, that attention of either kind went through since the library was
// loaded, seen or not.
void count_pairs(const Segments& segments, int64_t heads);
void count_pairs(int64_t met);
int64_t pairs_met();

Rows rows_of(const Tensor& tensor);

// Throws where the tensors do not fit each other.
AttentionCall attention_call(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                             const DropoutArguments& dropout);

// float64 for float64, else float32.
ScalarType accumulator_of(const Tensor& tensor);

}  // namespace spanbert
