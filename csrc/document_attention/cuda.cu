// The raw CUDA operations of document_attention, which cross_document_attention calls as well: buffers and launches.
// No host code waits for the GPU.

#include <tuple>

#include "attention/cuda_backward.cuh"
#include "attention/cuda_call.h"
#include "attention/cuda_forward.cuh"
#include "attention/cuda_rows.cuh"

namespace spanbert {
namespace {

// Wider heads go row by row.
constexpr int kWidestTile = 128;

// Calls f with a head size that the matrix kernels are made for: f(std::integral_constant<int, D>{}).
template <class F>
void with_tile_columns(int dim, const F& f) {
  if (dim <= 32) return f(std::integral_constant<int, 32>{});
  if (dim <= 64) return f(std::integral_constant<int, 64>{});
  if (dim <= 96) return f(std::integral_constant<int, 96>{});
  return f(std::integral_constant<int, 128>{});
}

// A side goes row by row where it is one of anchors, of which a tile would hold one, or where heads are too wide.
template <class S>
bool by_rows(const AttentionWork& work, const Side& side) {
  return sizeof(S) == 4 || side.anchors || work.dim > kWidestTile;
}

// Tiles of a side. There is at least one: the first blocks also clear the rows of no document.
int64_t tile_blocks(const PreparedAttention& p, int64_t tiles) {
  STD_TORCH_CHECK(tiles > 0, "there are documents, but no tiles");
  return blocks_for(tiles, 1, p.work.heads);
}

template <class S>
void launch_forward(const PreparedAttention& p, const Stream& stream) {
  const AttentionWork& work = p.work;
  if (by_rows<S>(work, work.queries)) {
    with_columns(work.dim, [&](auto n) {
      const auto kernel = rows::forward<S, decltype(n)::value>;
      SPANBERT_LAUNCH(kernel, row_blocks(work, work.queries), rows::kThreads, stream, work);
    });
    return;
  }
  if constexpr (sizeof(S) == 2) {
    with_tile_columns(work.dim, [&](auto d) {
      using Shared = forward::Tiles<S, decltype(d)::value>;
      const auto kernel = forward::tiles<S, decltype(d)::value>;
      SPANBERT_LAUNCH_SHARED(kernel, Shared, tile_blocks(p, p.query_tiles), forward::kThreads, stream, work);
    });
  }
}

template <class S, bool Keys>
void launch_backward(const PreparedAttention& p, const Stream& stream) {
  const AttentionWork& work = p.work;
  const Side& side = Keys ? work.keys : work.queries;
  if (by_rows<S>(work, side)) {
    with_columns(work.dim, [&](auto n) {
      const auto kernel = rows::backward<S, decltype(n)::value, Keys>;
      SPANBERT_LAUNCH(kernel, row_blocks(work, side), rows::kThreads, stream, work);
    });
    return;
  }
  if constexpr (sizeof(S) == 2) {
    with_tile_columns(work.dim, [&](auto d) {
      constexpr int D = decltype(d)::value;
      using Shared = backward::Tiles<S, D>;
      constexpr int threads = backward::kThreads<D, Keys>;
      const auto kernel = backward::tiles<S, D, Keys>;
      SPANBERT_LAUNCH_SHARED(kernel, Shared, tile_blocks(p, Keys ? p.key_tiles : p.query_tiles), threads, stream, work);
    });
  }
}

std::tuple<Tensor, Tensor> forward_operator(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const AttentionArguments& arguments, double scale,
                                            const DropoutArguments& dropout) {
  const Stream stream(q);
  PreparedAttention p = prepare(q, k, v, arguments, scale, dropout);
  if (p.empty_queries()) {
    Tensor lse = torch::stable::new_zeros(q, {q.size(1), q.size(0)}, ScalarType::Float);
    return {torch::stable::new_zeros(q, q.sizes()), torch::stable::fill_(lse, -INFINITY)};
  }
  Tensor output = torch::stable::new_empty(q, q.sizes());
  Tensor lse = torch::stable::new_empty(q, {q.size(1), q.size(0)}, ScalarType::Float);
  p.work.output = p.rows(output);
  p.work.lse = lse.mutable_data_ptr<float>();
  with_gpu_storage(q, [&](auto s) { launch_forward<decltype(s)>(p, stream); });
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward_operator(const Tensor& grad_output, const Tensor& q, const Tensor& k,
                                                     const Tensor& v, const Tensor& lse,
                                                     const AttentionArguments& arguments, double scale,
                                                     const DropoutArguments& dropout) {
  const Stream stream(q);
  PreparedAttention p = prepare(q, k, v, arguments, scale, dropout);
  if (p.empty_queries() || p.empty_keys()) {
    return {torch::stable::new_zeros(q, q.sizes()), torch::stable::new_zeros(k, k.sizes()),
            torch::stable::new_zeros(v, v.sizes())};
  }
  AttentionWork& work = p.work;
  work.grad_output = p.like(grad_output, q, "grad_output");
  work.lse = p.statistics(lse, q.size(1) * q.size(0), "lse");
  Tensor statistics = torch::stable::new_empty(q, {2, q.size(1), q.size(0)}, ScalarType::Float);
  work.delta = statistics.mutable_data_ptr<float>();
  work.inverse = work.delta + q.size(1) * q.size(0);
  Tensor grad_q = torch::stable::new_empty(q, q.sizes()), grad_k = torch::stable::new_empty(k, k.sizes());
  Tensor grad_v = torch::stable::new_empty(v, v.sizes());
  work.grad_q = p.rows(grad_q);
  work.grad_k = p.rows(grad_k);
  work.grad_v = p.rows(grad_v);
  with_gpu_storage(q, [&](auto s) {
    launch_backward<decltype(s), false>(p, stream);  // leaves delta and the masses for the keys
    launch_backward<decltype(s), true>(p, stream);
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(SPANBERT_NAMESPACE, SPANBERT_KEY, library) {
  library.impl("document_attention_forward", SPANBERT_BOX(&spanbert::forward_operator));
  library.impl("document_attention_backward", SPANBERT_BOX(&spanbert::backward_operator));
}
