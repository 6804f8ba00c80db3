// The CPU binding of encoder_stack.

#include <limits>
#include <vector>

#include "common/arguments.h"
#include "common/memory.h"
#include "encoder_stack/kernels.h"
#include "encoder_stack/team.h"
#include "packed_linear/kernels.h"

namespace spanbert {
namespace {

// Rows a thread below which it pays to share out the columns of the weights instead.
constexpr int64_t kFewRows = 32;
// Multiplications of a step for which another thread is worth the barrier behind it.
constexpr int64_t kWorthAThread = 1 << 18;
// Rows of a block: its intermediate results and a panel of the weights fit into a second-level cache of 1 MiB.
constexpr int64_t kBlockRows = 96;

// ops/encoder_stack/packing.py: a row of the program, in the order of its fields.
enum Field : int {
  kind,
  first,
  second = first + 4,
  activation = second + 4,
  gated,
  keeps,
  centred,
  heads,
  key_heads,
  head_dim,
  window,
  rotary,
  positions,
  reach,
  bias,
  keys,
  queries,
  kFields
};

void check_has(int64_t precision) {
  STD_TORCH_CHECK(SPANBERT_KERNEL_ALL(packed_linear_has)(static_cast<Precision>(precision)),
                  "this processor's kernels do not have precision ", precision);
}

int64_t matrix_bytes(int64_t precision, int64_t out_features, int64_t in_features) {
  check_has(precision);
  return SPANBERT_KERNEL_ALL(encoder_stack_matrix_bytes)(static_cast<Precision>(precision), out_features, in_features);
}

// Of what queries or keys are multiplied by, in attention's precision.
int64_t table_bytes(int64_t precision, int64_t rows, int64_t head_dim) {
  const auto in_float32 = static_cast<int64_t>(Precision::float32);
  return matrix_bytes(precision == in_float32 ? in_float32 : static_cast<int64_t>(Precision::bfloat16), rows, head_dim);
}

// A program, and what it says about the memory that it needs.
struct Program {
  std::vector<Step> steps;
  int64_t qkv_size = 0, inner_size = 0, wide_size = 0;
  int64_t weights = 0;
  int64_t longest = kAnyLength;  // tokens that a document may have

  static constexpr int64_t kAnyLength = std::numeric_limits<int64_t>::max();

  Program(const Tensor& rows, const Tensor& constants, int64_t region_bytes, int64_t precision) {
    STD_TORCH_CHECK(
        rows.dim() == 2 && rows.size(1) == kFields && rows.scalar_type() == ScalarType::Long && rows.is_contiguous(),
        "the program must be int64 [steps, ", int64_t{kFields}, "]");
    STD_TORCH_CHECK(constants.dim() == 1 && constants.size(0) == rows.size(0) &&
                        constants.scalar_type() == ScalarType::Double && constants.is_contiguous(),
                    "a step must have one float64 constant");
    const int64_t* row = rows.const_data_ptr<int64_t>();
    for (int64_t index = 0; index < rows.size(0); ++index, row += kFields) {
      Step step{static_cast<StepKind>(row[kind]),
                {row[first], row[first + 1], row[first + 2], row[first + 3]},
                {row[second], row[second + 1], row[second + 2], row[second + 3]},
                static_cast<StackActivation>(row[activation]),
                row[gated] != 0,
                row[keeps] != 0,
                row[centred] != 0,
                row[heads],
                row[key_heads],
                row[head_dim],
                row[window],
                {row[rotary], row[positions]},
                {row[reach], row[bias], row[keys], row[queries]},
                constants.const_data_ptr<double>()[index]};
      for (const PackedMatrix* matrix : {&step.first, &step.second}) {
        STD_TORCH_CHECK(
            matrix->panels >= 0 && matrix->panels <= region_bytes && matrix->bias >= 0 && matrix->bias <= region_bytes,
            "step ", index, " reads outside of the packed weights");
      }
      const auto check_table = [&](int64_t place, int64_t bytes) {
        STD_TORCH_CHECK(place >= 0 && place + bytes <= region_bytes, "step ", index, " reads outside of the tables");
      };
      if (step.rotary.positions > 0) {
        check_table(step.rotary.table, step.rotary.positions * 2 * Rotary::row(step.head_dim) * int64_t{sizeof(float)});
        longest = std::min(longest, step.rotary.positions);
      }
      if (step.kind == StepKind::attend) {
        const Relative& relative = step.relative;
        if (relative.bias >= 0) check_table(relative.bias, step.heads * relative.rows() * int64_t{sizeof(float)});
        for (const int64_t table : {relative.keys, relative.queries}) {
          if (table >= 0)
            check_table(table, step.heads * aligned(table_bytes(precision, relative.rows(), step.head_dim)));
        }
        inner_size = std::max(inner_size, step.queries_size());
        qkv_size = std::max(qkv_size, step.queries_size() + 2 * step.keys_size());
      }
      if (step.kind == StepKind::project) qkv_size = std::max(qkv_size, step.first.out_features);
      if (step.kind == StepKind::feed_forward) wide_size = std::max(wide_size, step.second.in_features);
      if (step.kind != StepKind::normalize) {
        weights +=
            step.first.in_features * step.first.out_features + step.second.in_features * step.second.out_features;
      }
      steps.push_back(step);
    }
  }
};

void pack(const Tensor& weight_any, const Tensor& to, int64_t precision) {
  const Tensor weight = torch::stable::contiguous(weight_any);
  STD_TORCH_CHECK(weight.dim() == 2, "the weight must be [out, in]");
  STD_TORCH_CHECK(to.numel() == matrix_bytes(precision, weight.size(0), weight.size(1)) && to.element_size() == 1 &&
                      to.is_contiguous(),
                  "a packed weight takes ", matrix_bytes(precision, weight.size(0), weight.size(1)), " bytes, got ",
                  to.numel());
  SPANBERT_KERNEL_ALL(encoder_stack_pack)
  (static_cast<Precision>(precision), storage_of(weight), weight.const_data_ptr(), weight.size(0), weight.size(1),
   to.mutable_data_ptr());
}

// A call but for its memory, and what it points to.
struct Prepared {
  Program program;
  Tensor cu_seqlens;
  int64_t threads = torch::stable::get_num_threads();
  StackCall call{};

  Prepared(const Tensor& hidden, const Tensor& cu_seqlens_any, int64_t region_bytes, const Tensor& rows,
           const Tensor& constants, int64_t precision)
      : program(rows, constants, region_bytes, precision), cu_seqlens(as_int64(cu_seqlens_any)) {
    check_has(precision);
    STD_TORCH_CHECK(hidden.dim() == 2, "hidden must be [T, H]");
    STD_TORCH_CHECK(hidden.scalar_type() != ScalarType::Double, "hidden must be float32, bfloat16 or float16");
    call.precision = static_cast<Precision>(precision);
    call.storage = storage_of(hidden);
    call.steps = program.steps.data();
    call.last = static_cast<int64_t>(program.steps.size());
    call.tokens = hidden.size(0);
    call.hidden_size = hidden.size(1);
    call.qkv_size = program.qkv_size;
    call.inner_size = program.inner_size;
    call.wide_size = program.wide_size;
    call.cu_seqlens = cu_seqlens.const_data_ptr<int64_t>();
    call.documents = cu_seqlens.numel() - 1;
    STD_TORCH_CHECK(call.documents >= 0 && call.cu_seqlens[0] == 0 && call.cu_seqlens[call.documents] == call.tokens,
                    "cu_seqlens must go from 0 to the ", call.tokens, " tokens");
    for (int64_t document = 0; document < call.documents; ++document) {
      const int64_t length = call.cu_seqlens[document + 1] - call.cu_seqlens[document];
      STD_TORCH_CHECK(length >= 0, "cu_seqlens must ascend");
      call.max_seqlen = std::max(call.max_seqlen, length);
    }
    STD_TORCH_CHECK(call.max_seqlen <= program.longest, "a document has ", call.max_seqlen,
                    " tokens, and the rotary tables end at ", program.longest);
    const int64_t each = call.tokens * program.weights / std::max<int64_t>(1, call.last);
    threads = std::clamp<int64_t>(each / kWorthAThread, 1, threads);
    call.shares_columns = call.tokens <= kFewRows * threads;
    const int64_t blocks = (call.tokens + kBlockRows - 1) / kBlockRows;
    call.blocks = (blocks + threads - 1) / threads * threads;
  }

  int64_t arena_bytes() const { return SPANBERT_KERNEL_ALL(encoder_stack_arena_bytes)(call, threads); }
};

int64_t arena_bytes(const Tensor& hidden, const Tensor& cu_seqlens, const Tensor& region, const Tensor& rows,
                    const Tensor& constants, int64_t precision) {
  return Prepared(hidden, cu_seqlens, region.numel(), rows, constants, precision).arena_bytes();
}

Tensor forward(const Tensor& hidden_any, const Tensor& cu_seqlens, const Tensor& region, const Tensor& rows,
               const Tensor& constants, const OptionalTensor& arena, int64_t precision, int64_t first_step,
               int64_t last_step) {
  const Tensor hidden = with_dense_rows(hidden_any);
  Prepared prepared(hidden, cu_seqlens, region.numel(), rows, constants, precision);
  StackCall& call = prepared.call;
  STD_TORCH_CHECK(first_step >= 0 && first_step <= last_step && last_step <= call.last, "steps ", first_step, " to ",
                  last_step, " are not in a program of ", call.last);
  Tensor output = torch::stable::new_empty(hidden, hidden.sizes());
  if (hidden.numel() == 0) return output;
  if (first_step == last_step) return torch::stable::copy_(output, hidden);
  const int64_t bytes = prepared.arena_bytes();
  const Tensor work = arena && arena->numel() >= bytes ? *arena : memory(bytes);
  call.first = first_step;
  call.last = last_step;
  call.region = static_cast<const char*>(region.const_data_ptr());
  call.input = hidden.const_data_ptr();
  call.input_row = hidden.stride(0);
  call.output = output.mutable_data_ptr();
  call.arena = static_cast<char*>(work.mutable_data_ptr());
  Team team(prepared.threads, kPhases * (last_step - first_step));
  call.team = &team;
  const auto kernel = SPANBERT_KERNEL_ALL(encoder_stack);
  team.run([&](int64_t member) { kernel(call, member); });
  return output;
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("encoder_stack_forward", SPANBERT_BOX(&spanbert::forward));
  library.impl("encoder_stack_pack", TORCH_BOX(&spanbert::pack));
  library.impl("encoder_stack_arena_bytes", TORCH_BOX(&spanbert::arena_bytes));
}
STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CompositeExplicitAutograd, library) {
  library.impl("encoder_stack_matrix_bytes", TORCH_BOX(&spanbert::matrix_bytes));
}
