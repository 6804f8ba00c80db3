// The CPU binding of packed_linear.

#include <optional>

#include "common/parallel.h"
#include "common/tensors.h"
#include "packed_linear/kernels.h"

namespace spanbert {
namespace {

constexpr int64_t kTaskBytes = 192 * 1024;  // panels of one task: they stay in the second-level cache for all rows
constexpr int64_t kTasksPerThread = 4;

int64_t width(const Tensor& weight) { return SPANBERT_KERNEL(packed_linear_width)(storage_of(weight)); }

const void* dense_of(const std::optional<Tensor>& tensor, const Tensor& x, int64_t numel, std::optional<Tensor>* kept) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(tensor->numel() == numel && tensor->scalar_type() == x.scalar_type(),
                  "bias and residual must have the output's columns and shape, and the dtype of x");
  *kept = torch::stable::contiguous(*tensor);
  return (*kept)->const_data_ptr();
}

Tensor forward(const Tensor& x_any, const Tensor& panels_any, int64_t out_features, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& residual) {
  const Tensor x = with_dense_rows(x_any), panels = torch::stable::contiguous(panels_any);
  STD_TORCH_CHECK(x.dim() == 2 && panels.dim() == 3 && panels.size(1) == x.size(1), "x must be [T, in] and the panels ",
                  "[panels, in, width]");
  STD_TORCH_CHECK(panels.scalar_type() == x.scalar_type(), "x and the panels must have one dtype");
  STD_TORCH_CHECK(panels.size(2) == width(x), "the weight was packed in panels of ", panels.size(2),
                  " columns, this processor's kernel takes ", width(x));
  STD_TORCH_CHECK(out_features <= panels.size(0) * panels.size(2), "out_features ", out_features,
                  " exceeds the panels");
  const Tensor output = torch::stable::new_empty(x, {x.size(0), out_features});
  std::optional<Tensor> kept_bias, kept_residual;
  LinearCall call{};
  call.storage = storage_of(x);
  call.rows = x.size(0);
  call.in_features = x.size(1);
  call.out_features = out_features;
  call.panels = panels.const_data_ptr();
  call.bias = dense_of(bias, x, out_features, &kept_bias);
  call.residual = dense_of(residual, x, output.numel(), &kept_residual);
  call.output = output.mutable_data_ptr();

  std::optional<Tensor> widened;
  if (call.storage == Storage::float32 || call.storage == Storage::float64) {
    call.x = x.const_data_ptr();
    call.x_row = x.stride(0);
  } else {
    widened = torch::stable::new_empty(x, {call.rows, call.in_features}, ScalarType::Float);
    const auto* from = static_cast<const uint16_t*>(x.const_data_ptr());
    auto* to = static_cast<float*>(widened->mutable_data_ptr());
    const auto widen = SPANBERT_KERNEL(packed_linear_widen);
    parallel_tasks(call.rows, [&](int64_t row) {
      widen(call.storage, from + row * x.stride(0), call.in_features, to + row * call.in_features);
    });
    call.x = to;
    call.x_row = call.in_features;
  }

  const int64_t count = (out_features + panels.size(2) - 1) / panels.size(2);
  const int64_t bytes = std::max<int64_t>(1, call.in_features * panels.size(2) * panels.element_size());
  const int64_t tasks_wanted = kTasksPerThread * torch::stable::get_num_threads();
  const int64_t per_task =
      std::max<int64_t>(1, std::min(kTaskBytes / bytes, (count + tasks_wanted - 1) / tasks_wanted));
  const auto kernel = SPANBERT_KERNEL(packed_linear);
  parallel_tasks((count + per_task - 1) / per_task,
                 [&](int64_t task) { kernel(call, task * per_task, std::min(count, (task + 1) * per_task)); });
  return output;
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("packed_linear_forward", TORCH_BOX(&spanbert::forward));
  library.impl("packed_linear_width", TORCH_BOX(&spanbert::width));
}
