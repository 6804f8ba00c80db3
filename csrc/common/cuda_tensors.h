// What the CUDA bindings share: the device and stream of a call, launches, alignment.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "common/arguments.h"
#include "common/cuda_spans.h"
#include "common/cuda_threads.h"

// Tests register the same operators elsewhere, for tensors on a CPU.
#ifndef SPANBERT_NAMESPACE
#define SPANBERT_NAMESPACE spanbert_kernels
#define SPANBERT_KEY CUDA
#endif

#ifdef __CUDACC__
// Every launch is checked: a bad one would show in a later call that has nothing to do with it.
#define SPANBERT_LAUNCH(kernel, blocks, threads, stream, ...)                          \
  do {                                                                                 \
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream.handle>>>(__VA_ARGS__); \
    STD_CUDA_KERNEL_LAUNCH_CHECK();                                                    \
  } while (0)
// Of a kernel whose asked_memory is a `layout`.
#define SPANBERT_LAUNCH_SHARED(kernel, layout, blocks, threads, stream, ...)                             \
  do {                                                                                                   \
    constexpr int spanbert_bytes = sizeof(layout);                                                       \
    if (spanbert_bytes > 48 * 1024) {                                                                    \
      STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),                         \
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, spanbert_bytes)); \
    }                                                                                                    \
    kernel<<<static_cast<unsigned>(blocks), threads, spanbert_bytes, stream.handle>>>(__VA_ARGS__);      \
    STD_CUDA_KERNEL_LAUNCH_CHECK();                                                                      \
  } while (0)
#endif

namespace spanbert {

#ifdef __CUDACC__
// PyTorch's current stream on a tensor's device, which is made the current device for as long as this lives.
struct Stream {
  explicit Stream(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    handle = static_cast<cudaStream_t>(current);
  }

  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t handle;
};
#else
struct Stream {
  explicit Stream(const Tensor&) {}
};
#endif

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The number of blocks where each takes `piece` of the `work`, once for each of `times`.
inline int64_t blocks_for(int64_t work, int64_t piece, int64_t times) {
  const int64_t blocks = ceil_divide(work, piece) * times;
  STD_TORCH_CHECK(blocks < (int64_t{1} << 31), "more than 2^31 blocks of work");
  return blocks;
}

// Whether all these addresses or distances, in bytes, are multiples of `bytes`.
inline bool all_multiples(int64_t bytes, std::initializer_list<int64_t> values) {
  for (const int64_t value : values) {
    if (value % bytes != 0) return false;
  }
  return true;
}

inline int64_t address(const void* pointer) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer)); }

// The entries of an index tensor, which `kept` keeps alive.
inline const int64_t* indices(const OptionalTensor& tensor, int64_t count, const char* name,
                              std::vector<Tensor>& kept) {
  STD_TORCH_CHECK(tensor && tensor->dim() == 1 && tensor->numel() == count, name, " must have ", count, " entries");
  kept.push_back(as_int64(*tensor));
  return kept.back().const_data_ptr<int64_t>();
}

inline SortedSpans sorted_spans(const SpanArguments& work, int64_t tokens, std::vector<Tensor>& kept) {
  const int64_t count = work.num_spans;
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  STD_TORCH_CHECK(tokens <= kMost && count <= kMost, "at most 2^31 - 1 tokens and spans");
  return {indices(work.starts, count, "starts", kept),
          indices(work.ends, count, "ends", kept),
          work.rows ? indices(work.rows, count, "rows", kept) : nullptr,
          indices(work.first, tokens + 1, "first", kept),
          indices(work.reach, tokens, "reach", kept),
          count,
          tokens};
}

// The tensor [T, H] itself where 16 bytes can be read at once from any of its rows, also at their end; else a copy with
// rows of a multiple of 16 bytes.
inline Tensor with_aligned_rows(const Tensor& tensor) {
  const int64_t element = tensor.element_size(), columns = tensor.size(1), step = 16 / element;
  const bool dense = columns <= 1 || tensor.stride(1) == 1;
  if (dense && all_multiples(16, {address(tensor.const_data_ptr()), tensor.stride(0) * element, columns * element})) {
    return tensor;
  }
  Tensor padded = torch::stable::new_empty(tensor, {tensor.size(0), ceil_divide(columns, step) * step});
  Tensor rows = torch::stable::narrow(padded, 1, 0, columns);
  torch::stable::copy_(rows, tensor);
  return rows;
}

// Calls f with a value of the storage type: f(S{}).
template <class F>
inline void with_gpu_storage(const Tensor& tensor, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(bfloat16{});
    case ScalarType::Half:
      return f(float16{});
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16");
  }
}

}  // namespace spanbert
