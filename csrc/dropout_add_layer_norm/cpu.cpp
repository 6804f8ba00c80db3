// The raw CPU operations of dropout_add_layer_norm: checks, results, threads.

#include <tuple>

#include "common/dropout.h"
#include "common/parallel.h"
#include "dropout_add_layer_norm/kernels.h"

namespace spanbert {
namespace {

constexpr int64_t kRowsPerTask = 32;       // of the backward too, whose sums must not depend on the threads
constexpr int64_t kNumbersPerTask = 4096;  // of the sums of partial sums

int64_t tasks_of(int64_t count, int64_t per_task) { return (count + per_task - 1) / per_task; }

// A call and what its pointers point to.
struct Norm {
  Norm(const Tensor& x_any, const Tensor& residual_any, const Tensor& weight_any, const DropoutArguments& dropout,
       double eps)
      : x(with_dense_rows(x_any)),
        residual(with_dense_rows(residual_any)),
        weight(torch::stable::contiguous(weight_any)),
        rows(x.size(0)) {
    STD_TORCH_CHECK(x.dim() == 2 && residual.dim() == 2 && residual.size(0) == rows && residual.size(1) == x.size(1) &&
                        weight.numel() == x.size(1),
                    "x and residual must be [T, H], weight [H]");
    STD_TORCH_CHECK(residual.scalar_type() == x.scalar_type() && weight.scalar_type() == x.scalar_type(),
                    "x, residual and weight must have one dtype");
    call.storage = storage_of(x);
    call.columns = x.size(1);
    call.x = x.const_data_ptr();
    call.x_row = x.stride(0);
    call.residual = residual.const_data_ptr();
    call.residual_row = residual.stride(0);
    call.weight = weight.const_data_ptr();
    call.eps = eps;
    call.dropout = dropout_of(dropout);
  }

  ScalarType accumulator() const { return call.storage == Storage::float64 ? ScalarType::Double : ScalarType::Float; }

  const Tensor x, residual, weight;
  const int64_t rows;
  NormCall call{};
};

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                           const OptionalTensor& bias, const DropoutArguments& dropout, double eps) {
  const Norm norm(x, residual, weight, dropout, eps);
  STD_TORCH_CHECK(!bias || (bias->numel() == norm.call.columns && bias->scalar_type() == x.scalar_type()),
                  "bias must be [H], of the dtype of x");
  const OptionalTensor dense = bias ? OptionalTensor(torch::stable::contiguous(*bias)) : std::nullopt;
  Tensor output = torch::stable::new_empty(x, {norm.rows, norm.call.columns});
  Tensor mean = torch::stable::new_empty(x, {norm.rows}, norm.accumulator());
  Tensor rstd = torch::stable::new_empty(x, {norm.rows}, norm.accumulator());
  const NormResult result{dense ? dense->const_data_ptr() : nullptr, output.mutable_data_ptr(), mean.mutable_data_ptr(),
                          rstd.mutable_data_ptr()};
  const auto kernel = SPANBERT_KERNEL(dropout_add_layer_norm_forward);
  parallel_tasks(tasks_of(norm.rows, kRowsPerTask), [&](int64_t task) {
    kernel(norm.call, result, task * kRowsPerTask, std::min(norm.rows, (task + 1) * kRowsPerTask));
  });
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& x, const Tensor& residual,
                                            const Tensor& weight, const Tensor& mean, const Tensor& rstd,
                                            const DropoutArguments& dropout) {
  const Norm norm(x, residual, weight, dropout, 0);
  const int64_t columns = norm.call.columns, tasks = tasks_of(norm.rows, kRowsPerTask);
  STD_TORCH_CHECK(grad_output.dim() == 2 && grad_output.size(0) == norm.rows && grad_output.size(1) == columns &&
                      grad_output.scalar_type() == x.scalar_type(),
                  "grad_output must have the shape and dtype of x");
  STD_TORCH_CHECK(mean.numel() == norm.rows && rstd.numel() == norm.rows && mean.scalar_type() == norm.accumulator() &&
                      rstd.scalar_type() == norm.accumulator(),
                  "mean and rstd must be those of the forward");
  const Tensor grad = with_dense_rows(grad_output), means = torch::stable::contiguous(mean);
  const Tensor rstds = torch::stable::contiguous(rstd);
  Tensor of_residual = torch::stable::new_empty(x, {norm.rows, columns});
  Tensor of_x = torch::stable::new_empty(x, {norm.call.dropout.active ? norm.rows : 0, columns});
  const Tensor partials = torch::stable::new_empty(x, {tasks, 2, columns}, norm.accumulator());
  Tensor sums = torch::stable::new_empty(x, {2, columns}, norm.accumulator());
  const NormGrads grads{grad.const_data_ptr(),          grad.stride(0),
                        means.const_data_ptr(),         rstds.const_data_ptr(),
                        of_residual.mutable_data_ptr(), norm.call.dropout.active ? of_x.mutable_data_ptr() : nullptr};
  const auto kernel = SPANBERT_KERNEL(dropout_add_layer_norm_backward);
  char* partial = static_cast<char*>(partials.mutable_data_ptr());
  const int64_t bytes = 2 * columns * partials.element_size();
  parallel_tasks(tasks, [&](int64_t task) {
    kernel(norm.call, grads, task * kRowsPerTask, std::min(norm.rows, (task + 1) * kRowsPerTask),
           partial + task * bytes);
  });
  const auto sum = SPANBERT_KERNEL(dropout_add_layer_norm_sum);
  void* to = sums.mutable_data_ptr();
  parallel_tasks(tasks_of(2 * columns, kNumbersPerTask), [&](int64_t task) {
    sum(norm.call.storage, partial, tasks, 2 * columns, task * kNumbersPerTask,
        std::min(2 * columns, (task + 1) * kNumbersPerTask), to);
  });
  return {of_residual, of_x, sums};
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("dropout_add_layer_norm_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("dropout_add_layer_norm_backward", SPANBERT_BOX(&spanbert::backward));
}
