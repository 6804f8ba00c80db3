#include "span_linear/prepare.h"

#include "common/results.h"

namespace spanbert {
namespace {

// O, from what there is: the projected blocks, the width table or the addend.
int64_t columns_of(const Tensor& projected, int64_t blocks, const OptionalTensor& table, const OptionalTensor& addend) {
  if (blocks > 0) {
    STD_TORCH_CHECK(projected.size(1) % blocks == 0, "projected must have ", blocks, " blocks of O columns, got ",
                    projected.size(1), " columns");
    return projected.size(1) / blocks;
  }
  return table ? table->size(1) : addend ? addend->size(1) : 0;
}

}  // namespace

PreparedProjection::PreparedProjection(const Tensor& projected_, const SpanArguments& work,
                                       const ProjectedArguments& inputs, const OptionalTensor& addend_)
    : spans(GroupedSpans::of(work, projected_.size(0))), projected(with_dense_rows(projected_)) {
  const auto& [scores_, width_projected, width_index, bias_, parts, activation] = inputs;
  const int64_t num_spans = work.num_spans;
  STD_TORCH_CHECK(projected.dim() == 2, "projected must have shape [T, B * O]");
  STD_TORCH_CHECK(0 <= activation && activation <= 2, "activation must be 0 to 2, got ", activation);

  call.storage = storage_of(projected);
  STD_TORCH_CHECK(call.storage == Storage::float32 || call.storage == Storage::float64,
                  "projected must be float32 or float64");
  call.activation = static_cast<Activation>(activation);
  call.groups = spans.view();
  call.empty = spans.empty.data();
  call.empties = static_cast<int64_t>(spans.empty.size());
  call.tokens = projected.size(0);
  std::fill(std::begin(call.block), std::end(call.block), -1);
  bool has_width = false;
  for (const int64_t part : parts) {
    STD_TORCH_CHECK(part >= 0 && part < kParts && part != kMax && call.block[part] < 0, "bad or repeated part ", part);
    STD_TORCH_CHECK(part != kAttention || scores_, "part attention needs scores");
    STD_TORCH_CHECK(part != kWidth || width_projected, "part width needs width_projected");
    has_width = has_width || part == kWidth;
    if (part == kWidth) continue;
    call.block[part] = call.blocks;
    call.blocks += part == kAttention ? scores_->size(1) : 1;
  }
  call.columns = columns_of(projected, call.blocks, width_projected, addend_);
  call.projected = projected.const_data_ptr();
  call.projected_stride = projected.stride(0);
  const auto check = [&](const char* name, const Tensor& tensor, int64_t count) {
    STD_TORCH_CHECK(tensor.scalar_type() == projected.scalar_type() && tensor.size(tensor.dim() - 1) == call.columns &&
                        (count < 0 || tensor.size(0) == count),
                    name, " must have ", call.columns, " columns and the dtype of projected");
  };
  if (call.has(kAttention)) {
    STD_TORCH_CHECK(
        scores_->dim() == 2 && scores_->size(0) == call.tokens && scores_->scalar_type() == projected.scalar_type(),
        "scores must have shape [T, heads] and the dtype of projected");
    scores = torch::stable::contiguous(*scores_);
    call.scores = scores->const_data_ptr();
    call.heads = scores->size(1);
  }
  if (has_width) {
    check("width_projected", *width_projected, -1);
    table = with_dense_rows(*width_projected);
    call.table = table->const_data_ptr();
    call.table_stride = table->stride(0);
    call.table_rows = table->size(0);
    if (width_index) {
      table_index = as_int64(*width_index);
      call.table_index = table_index->const_data_ptr<int64_t>();
      STD_TORCH_CHECK(table_index->numel() == num_spans, "width_index must have one entry per span");
      for (int64_t n = 0; n < num_spans; ++n) {
        STD_TORCH_CHECK(call.table_index[n] >= 0 && call.table_index[n] < call.table_rows, "width_index[", n, "] is ",
                        call.table_index[n], ", but width_projected has ", call.table_rows, " rows");
      }
    }
  }
  if (bias_) {
    check("bias", *bias_, -1);
    bias = torch::stable::contiguous(*bias_);
    call.bias = bias->const_data_ptr();
  }
  if (addend_) {
    check("addend", *addend_, num_spans);
    addend = with_dense_rows(*addend_);
    call.addend = addend->const_data_ptr();
    call.addend_stride = addend->stride(0);
  }
}

std::vector<std::pair<int64_t, int64_t>> PreparedProjection::ranges(int64_t size, const int64_t* documents) const {
  std::vector<std::pair<int64_t, int64_t>> result;
  const SpanGroups& groups = call.groups;
  int64_t begin = 0, spans = 0, steps = 0;
  for (int64_t group = 0; group < groups.count; ++group) {
    const int64_t next = groups.first[group + 1];
    spans += next - groups.first[group];
    steps += groups.end(group, next - 1) - groups.start[group];
    bool full = std::max(spans, steps) * std::max<int64_t>(1, call.heads) >= size || group + 1 == groups.count;
    if (documents && !full) {
      while (groups.start[group] >= documents[1]) ++documents;
      full = groups.start[group + 1] >= documents[1];
    }
    if (full) {
      result.emplace_back(begin, group + 1);
      begin = group + 1;
      spans = steps = 0;
    }
  }
  return result;
}

ProjectionGradients::ProjectionGradients(const PreparedProjection& prepared) {
  const ProjectedCall& call = prepared.call;
  const auto zeros = [&](std::vector<int64_t> sizes) { return torch::stable::new_zeros(prepared.projected, sizes); };
  // Rows that meet few sets of a cache do so all the more where their memory is one piece (ops/large.py).
  constexpr int64_t kAlike = 1024;
  const int64_t columns = call.blocks * call.columns;
  const bool alike = columns * static_cast<int64_t>(prepared.projected.element_size()) % kAlike == 0;
  projected = alike ? zeros({call.tokens, columns}) : new_zero_result(prepared.projected, {call.tokens, columns});
  partial_scores = zeros({call.heads ? prepared.tiles() : 0, call.tokens, call.heads});
  table = prepared.table ? zeros({call.table_rows, call.columns}) : zeros({0});
  bias = zeros({call.bias ? call.columns : 0});
}

ProjectedGrads ProjectionGradients::view() const {
  return {projected.mutable_data_ptr(), partial_scores.mutable_data_ptr(), table.mutable_data_ptr(),
          bias.numel() ? bias.mutable_data_ptr() : nullptr};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ProjectionGradients::finished(const PreparedProjection& prepared) const {
  Tensor scores = torch::stable::new_zeros(projected, {0});
  if (prepared.scores) {
    scores = torch::stable::new_zeros(*prepared.scores, prepared.scores->sizes());
    const int64_t count = scores.numel(), tiles = partial_scores.size(0);
    const auto add_tiles = [&](auto* total, const auto* part) {
      for (int64_t tile = 0; tile < tiles; ++tile) {
        for (int64_t i = 0; i < count; ++i) total[i] += part[tile * count + i];
      }
    };
    if (scores.scalar_type() == ScalarType::Double) {
      add_tiles(scores.mutable_data_ptr<double>(), partial_scores.const_data_ptr<double>());
    } else {
      add_tiles(scores.mutable_data_ptr<float>(), partial_scores.const_data_ptr<float>());
    }
  }
  return {projected, scores, table, bias};
}

}  // namespace spanbert
