// From the tensors of a raw call of attention to what its CUDA kernels take.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "attention/arguments.h"
#include "attention/cuda_rows.h"
#include "common/cuda_tensors.h"

namespace spanbert {

constexpr int64_t kMostColumns = 256;  // of a head

// A raw call with everything it points to kept alive.
struct PreparedAttention {
  std::vector<Tensor> kept;
  AttentionWork work{};
  int64_t query_tiles = 0, key_tiles = 0, element = 0, links = 0;

  HeadRows rows(const Tensor& tensor) {
    HeadRows rows{const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1), false};
    rows.aligned = all_multiples(16, {address(rows.data), rows.row * element, rows.head * element, work.dim * element});
    kept.push_back(tensor);
    return rows;
  }
  // A gradient, which must be like q.
  HeadRows like(const Tensor& tensor, const Tensor& q, const char* name) {
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.scalar_type() == q.scalar_type(), name, " must be like q");
    for (int64_t d = 0; d < 3; ++d) STD_TORCH_CHECK(tensor.size(d) == q.size(d), name, " must be like q");
    return rows(with_dense_rows(tensor));
  }
  // float32 statistics of the forward.
  float* statistics(const Tensor& tensor, int64_t count, const char* name) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.numel() == count, name,
                    " must be the forward's");
    kept.push_back(torch::stable::contiguous(tensor));
    return const_cast<float*>(kept.back().const_data_ptr<float>());
  }
  bool empty_queries() const { return work.queries.documents == 0 || work.queries.rows == 0 || work.heads == 0; }
  bool empty_keys() const { return work.queries.documents == 0 || work.keys.rows == 0 || work.heads == 0; }
};

inline const int32_t* tiles_of(const OptionalTensor& tensor, const char* name, PreparedAttention& p, int64_t* count) {
  STD_TORCH_CHECK(tensor && tensor->dim() == 2 && tensor->size(1) == 2 && tensor->scalar_type() == ScalarType::Int,
                  name, " must be int32 [tiles, 2]");
  p.kept.push_back(torch::stable::contiguous(*tensor));
  *count = tensor->size(0);
  return p.kept.back().const_data_ptr<int32_t>();
}

inline PreparedAttention prepare(const Tensor& q, const Tensor& k, const OptionalTensor& v,
                                 const AttentionArguments& arguments, double scale, const DropoutArguments& dropout) {
  STD_TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && q.size(1) == k.size(1) && q.size(2) == k.size(2) &&
                      q.scalar_type() == k.scalar_type(),
                  "q and k must have shape [rows, heads, head_dim] and one dtype");
  STD_TORCH_CHECK(q.size(2) <= kMostColumns, "the CUDA kernels take heads of up to ", kMostColumns,
                  " columns, but head_dim is ", q.size(2), ": backend \"eager\" takes any");
  PreparedAttention p;
  AttentionWork& work = p.work;
  p.element = q.element_size();
  STD_TORCH_CHECK(q.size(1) < (int64_t{1} << 31), "at most 2^31 - 1 heads");
  work.heads = static_cast<unsigned>(q.size(1));
  work.dim = static_cast<int>(q.size(2));
  work.q = p.rows(with_dense_rows(q));
  work.k = p.rows(with_dense_rows(k));
  if (v) {
    STD_TORCH_CHECK(v->scalar_type() == k.scalar_type() && v->dim() == 3 && v->size(0) == k.size(0) &&
                        v->size(1) == k.size(1) && v->size(2) == k.size(2),
                    "k and v must have one shape and dtype");
    work.v = p.rows(with_dense_rows(*v));
  }
  work.scale = static_cast<float>(scale);
  work.dropout_scale = 1;
  if (dropout.p > 0) {
    work.seed = dropout.seed_data();
    p.kept.push_back(*dropout.seed);
    work.threshold = dropout.threshold();
    work.dropout_scale = static_cast<float>(1.0 / (1.0 - dropout.p));
  }

  STD_TORCH_CHECK(arguments.documents.dim() == 2 && arguments.documents.size(0) == 6 &&
                      arguments.documents.scalar_type() == ScalarType::Long,
                  "documents must be int64 [6, documents]");
  p.kept.push_back(torch::stable::contiguous(arguments.documents));
  const int64_t* bounds = p.kept.back().const_data_ptr<int64_t>();
  const int64_t count = arguments.documents.size(1);
  work.queries = {bounds, bounds + count, count, q.size(0), arguments.anchor_queries};
  work.keys = {bounds + 2 * count, bounds + 3 * count, count, k.size(0), arguments.anchor_keys};
  STD_TORCH_CHECK((!arguments.anchor_queries || q.size(0) == count) && (!arguments.anchor_keys || k.size(0) == count),
                  "anchors must have one row for each of ", count, " documents");
  work.cluster_first = bounds + 4 * count;
  work.cluster_last = bounds + 5 * count;
  if (arguments.links) {
    p.links = arguments.links->numel();
    work.link_offsets = indices(arguments.link_offsets, count + 1, "link_offsets", p.kept);
    work.links = indices(arguments.links, arguments.links->numel(), "links", p.kept);
    work.back_offsets = indices(arguments.back_offsets, count + 1, "back_offsets", p.kept);
    work.back_links = indices(arguments.back_links, arguments.links->numel(), "back_links", p.kept);
  }
  work.include_self = arguments.include_self;
  work.query_tiles = tiles_of(arguments.query_tiles, "query_tiles", p, &p.query_tiles);
  work.key_tiles = tiles_of(arguments.key_tiles, "key_tiles", p, &p.key_tiles);
  return p;
}

// For kernels of rows::kWarps rows a block.
inline int64_t row_blocks(const AttentionWork& work, const Side& side) {
  return blocks_for(side.rows, rows::kWarps, work.heads);
}

// Calls f with the columns that a lane of a warp has of a row: f(std::integral_constant<int, N>{}).
template <class F>
inline void with_columns(int dim, const F& f) {
  if (dim <= 2 * kLanes) return f(std::integral_constant<int, 2>{});
  if (dim <= 4 * kLanes) return f(std::integral_constant<int, 4>{});
  return f(std::integral_constant<int, 8>{});
}

}  // namespace spanbert
