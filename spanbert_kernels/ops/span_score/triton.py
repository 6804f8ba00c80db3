"""span_score in Triton: its launches, and what they compile."""

from __future__ import annotations

from functools import partial

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.aot import AotConfiguration, configurations_of, meta, meta_spans
from spanbert_kernels.ops.choices import PARTS
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_linear.operators import Gradients, ProjectedInputs, zero_gradients
from spanbert_kernels.ops.span_linear.triton import meta_inputs
from spanbert_kernels.ops.span_linear.triton_call import KernelCall, add_gradients, new_call
from spanbert_kernels.ops.span_score.operators import span_score_backward, span_score_forward
from spanbert_kernels.ops.span_score.triton_kernels import score_backward, score_forward
from spanbert_kernels.ops.triton_arguments import dense_rows, matrix, on, philox_of

CHUNK_BYTES = 2**26  # of the layer between that the backward holds at a time
SCORES = 8  # of a program, at most


@span_score_forward.triton
def forward(
    projected: Tensor, work: SpanWork, inputs: ProjectedInputs, out_weight: Tensor, dropout: philox.Dropout
) -> Tensor:
    num_spans, activation = work.num_spans, inputs.activation
    num_scores, outputs = out_weight.shape
    output = projected.new_empty(num_spans, num_scores)
    if output.numel() == 0 or outputs == 0:
        return output.zero_()
    call = new_call(projected, work, inputs, outputs)
    group = min(SCORES, triton.next_power_of_2(num_scores))
    with on(projected.device):
        score_forward[(triton.cdiv(num_spans, call.tile()), triton.cdiv(num_scores, group))](
            **call.with_softmax().inputs(),
            dropout=philox_of(dropout),
            out_weight=out_weight.contiguous(),
            output=output,
            num_scores=num_scores,
            ACTIVATION=activation,
            SCORES=group,
        )
    return output


@span_score_backward.triton
def backward(
    grad_output: Tensor,
    projected: Tensor,
    work: SpanWork,
    inputs: ProjectedInputs,
    out_weight: Tensor,
    dropout: philox.Dropout,
) -> Gradients:
    num_spans, activation, bias = work.num_spans, inputs.activation, inputs.bias
    num_scores, outputs = out_weight.shape
    if num_spans == 0 or outputs == 0:
        return zero_gradients(projected, inputs, out_weight)
    call = new_call(projected, work, inputs, outputs)
    grad_output, out_weight = dense_rows(grad_output), out_weight.contiguous()
    chunk = max(1, CHUNK_BYTES // (outputs * projected.element_size()))
    chunked = num_spans > chunk
    with on(projected.device):
        sums = call.new_sums(accumulate=chunked)
        grad_bias = projected.new_zeros(outputs, dtype=torch.float32)
        grad_weight = projected.new_zeros(num_scores, outputs, dtype=torch.float32)
        for low in range(0, num_spans, chunk):
            part = (call.chunk(low, min(low + chunk, num_spans)) if chunked else call).with_softmax()
            grad, partial_weight = _before_activation(part, grad_output, out_weight, activation, dropout)
            add_gradients(part, grad, None, sums)
            grad_bias += grad.sum(0, dtype=torch.float32)
            grad_weight += partial_weight.sum(0)
        absent = projected.new_empty(0)
        return (
            *call.gradients(sums),
            absent if bias is None else grad_bias.to(bias.dtype),
            grad_weight.to(out_weight.dtype),
        )


def _before_activation(
    call: KernelCall, grad_output: Tensor, out_weight: Tensor, activation: int, dropout: philox.Dropout
) -> tuple[Tensor, Tensor]:
    """The gradient before the activation `[N, O]`, and that of `out_weight` by tiles of spans."""
    tiles = triton.cdiv(len(call), call.tile())
    grad = call.projection.data.new_empty(len(call), call.outputs)
    partial_weight = grad.new_empty(tiles, *out_weight.shape, dtype=torch.float32)
    score_backward[(tiles * call.column_blocks(),)](
        **call.inputs(),
        dropout=philox_of(dropout),
        out_weight=out_weight,
        grad_output=matrix(grad_output),
        grad=grad,
        partial_weight=partial_weight,
        num_scores=len(out_weight),
        ACTIVATION=activation,
    )
    return grad, partial_weight


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile whose rows are multiples of 16 columns, with everything and in chunks."""
    inputs, dropout = (
        meta_inputs(*(part for part in PARTS if part != "max")),
        philox.Dropout(0.5, meta(1, dtype=torch.int64)),
    )
    spans, projected, out_weight = meta_spans(20000, 2000), meta(2000, 7 * 1024), meta(SCORES, 1024)
    return configurations_of(
        {
            "forward": partial(forward, projected, spans, inputs, out_weight, dropout),
            "gradient": partial(backward, meta(20000, SCORES), projected, spans, inputs, out_weight, dropout),
        }
    )
