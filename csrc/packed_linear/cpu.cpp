// The CPU binding of packed_linear.

#include "common/arguments.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/tensors.h"
#include "packed_linear/kernels.h"

namespace spanbert {
namespace {

constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kRowsPerTask = 16;   // to be prepared: with fewer rows it isn't worth waking a thread
constexpr int64_t kWholeVectors = 16;  // elements: the widest vector of float32

bool has(int64_t precision) { return SPANBERT_KERNEL_ALL(packed_linear_has)(static_cast<Precision>(precision)); }

int64_t width(const Tensor& weight) { return SPANBERT_KERNEL_ALL(packed_linear_width)(storage_of(weight)); }

ScalarType type_of_panels(Precision precision, const Tensor& x) {
  if (precision == Precision::bfloat16) return ScalarType::BFloat16;
  return precision == Precision::int8 ? ScalarType::Char : x.scalar_type();
}

int64_t elements_of_a_step(Precision precision) {
  return precision == Precision::float32 ? 1 : precision == Precision::bfloat16 ? 2 : 4;
}

const void* dense_of(const OptionalTensor& tensor, const Tensor& x, int64_t numel, OptionalTensor* kept) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(tensor->numel() == numel && tensor->scalar_type() == x.scalar_type(),
                  "bias and residual must have the output's columns and shape, and the dtype of x");
  *kept = torch::stable::contiguous(*tensor);
  return (*kept)->const_data_ptr();
}

// Rows of x in the format of the products.
struct Rows {
  Tensor made, wide, scales;

  // Where x has that format already, the call takes it as it is.
  Rows(const Tensor& x, LinearCall* call) : made(x), wide(x), scales(x) {
    call->x = x.const_data_ptr();
    call->x_row = x.stride(0) * static_cast<int64_t>(x.element_size());
    const bool float32 = call->precision == Precision::float32;
    if (call->storage == Storage::float64 || (float32 && call->storage == Storage::float32)) return;
    if (call->precision == Precision::bfloat16 && call->storage == Storage::bfloat16 && call->in_features % 2 == 0) {
      return;
    }
    const int64_t columns = (call->in_features + kWholeVectors - 1) / kWholeVectors * kWholeVectors;
    wide = torch::stable::new_empty(x, {call->rows, columns}, ScalarType::Float);
    made = float32 ? wide : torch::stable::new_empty(x, {call->rows, columns}, ScalarType::BFloat16);
    scales = torch::stable::new_empty(x, {call->rows}, ScalarType::Float);
    auto* floats = static_cast<float*>(wide.mutable_data_ptr());
    auto* steps = static_cast<float*>(scales.mutable_data_ptr());
    auto* to = static_cast<char*>(made.mutable_data_ptr());
    const auto* from = static_cast<const char*>(call->x);
    const int64_t from_row = call->x_row, row_bytes = columns * static_cast<int64_t>(made.element_size());
    const auto kernel = SPANBERT_KERNEL_ALL(packed_linear_prepare);
    parallel_tasks((call->rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
      for (int64_t row = task * kRowsPerTask; row < std::min(call->rows, (task + 1) * kRowsPerTask); ++row) {
        steps[row] = kernel(call->precision, call->storage, from + row * from_row, call->in_features,
                            floats + row * columns, to + row * row_bytes);
      }
    });
    call->x = to;
    call->x_row = row_bytes;
    call->x_scales = steps;
  }
};

Tensor forward(const Tensor& x_any, const Tensor& panels_any, const OptionalTensor& by_column, int64_t out_features,
               const OptionalTensor& bias, const OptionalTensor& residual, int64_t precision) {
  const Tensor x = with_dense_rows(x_any), panels = torch::stable::contiguous(panels_any);
  LinearCall call{};
  call.precision = static_cast<Precision>(precision);
  STD_TORCH_CHECK(has(precision), "this processor's kernels have no products of that precision, ", precision);
  STD_TORCH_CHECK(call.precision == Precision::float32 || x.scalar_type() != ScalarType::Double,
                  "products of float64 have no other precision");
  const int64_t columns = width(x), elements = elements_of_a_step(call.precision);
  STD_TORCH_CHECK(x.dim() == 2 && panels.dim() == 3 && panels.size(1) == (x.size(1) + elements - 1) / elements,
                  "x must be [T, in] and the panels [panels, steps, width]");
  STD_TORCH_CHECK(panels.scalar_type() == type_of_panels(call.precision, x), "x and the panels must have one dtype");
  STD_TORCH_CHECK(panels.size(2) == columns * elements, "the weight was packed in panels of ", panels.size(2),
                  ", this processor's kernel takes ", columns * elements);
  STD_TORCH_CHECK(out_features <= panels.size(0) * columns, "out_features ", out_features, " exceeds the panels");
  if (call.precision == Precision::int8) {
    STD_TORCH_CHECK(by_column && by_column->scalar_type() == ScalarType::Int && by_column->is_contiguous() &&
                        by_column->numel() == 2 * panels.size(0) * columns,
                    "a weight in 8 bits has a step and a sum for every column");
    call.by_column = by_column->const_data_ptr();
  }
  const Tensor output = torch::stable::new_empty(x, {x.size(0), out_features});
  OptionalTensor kept_bias, kept_residual;
  call.storage = storage_of(x);
  call.rows = x.size(0);
  call.in_features = x.size(1);
  call.out_features = out_features;
  call.panels = panels.const_data_ptr();
  call.bias = dense_of(bias, x, out_features, &kept_bias);
  call.residual = dense_of(residual, x, output.numel(), &kept_residual);
  call.output = output.mutable_data_ptr();
  const Rows rows(x, &call);

  const int64_t count = (out_features + columns - 1) / columns;
  const int64_t tasks_wanted = kTasksPerThread * torch::stable::get_num_threads();
  const int64_t per_task = std::max<int64_t>(1, (count + tasks_wanted - 1) / tasks_wanted);
  const auto kernel = SPANBERT_KERNEL_ALL(packed_linear);
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
STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CompositeExplicitAutograd, library) {
  library.impl("packed_linear_has", TORCH_BOX(&spanbert::has));
  library.impl("packed_linear_memory", TORCH_BOX(&spanbert::memory));
}
