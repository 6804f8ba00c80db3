// What the bindings share: storage formats and layouts of tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "common/storage.h"

namespace spanbert {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::float32;
    case ScalarType::BFloat16:
      return Storage::bfloat16;
    case ScalarType::Half:
      return Storage::float16;
    case ScalarType::Double:
      return Storage::float64;
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16, float16 or float64");
  }
}

// The tensor itself where its last dimension is dense (every other stride is free), else a copy.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const bool dense = tensor.size(tensor.dim() - 1) <= 1 || tensor.stride(tensor.dim() - 1) == 1;
  return dense ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor as_int64(const Tensor& tensor) {
  if (tensor.scalar_type() == ScalarType::Long) return torch::stable::contiguous(tensor);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Int, "expected an int32 or int64 tensor");
  Tensor wide = torch::stable::new_empty(tensor, tensor.sizes(), ScalarType::Long);
  return torch::stable::copy_(wide, tensor);
}

}  // namespace spanbert
