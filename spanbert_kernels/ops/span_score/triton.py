"""span_score in Triton: its launches, and what they compile."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.aot import AotConfiguration
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_linear.operators import Gradients, ProjectedInputs, zero_gradients
from spanbert_kernels.ops.span_linear.triton import aot, aot_backward, input_types
from spanbert_kernels.ops.span_linear.triton_call import Call, add_gradients, new_call, on, product_options
from spanbert_kernels.ops.span_linear.triton_call import with_dense_rows as dense
from spanbert_kernels.ops.span_score.operators import span_score_backward, span_score_forward
from spanbert_kernels.ops.span_score.triton_kernels import score_backward, score_forward

CHUNK_BYTES = 2**26  # of the layer between that the backward holds at a time
SCORES = 8  # of a program, at most


def _dropout(dropout: philox.Dropout) -> dict[str, Any]:
    dropout_p, seed = dropout
    return {"seed": seed, "threshold": philox.threshold(dropout_p), "kept_share": 1.0 - dropout_p}


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
            **_dropout(dropout),
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
    grad_output, out_weight = dense(grad_output), out_weight.contiguous()
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
    call: Call, grad_output: Tensor, out_weight: Tensor, activation: int, dropout: philox.Dropout
) -> tuple[Tensor, Tensor]:
    """The gradient before the activation `[N, O]`, and that of `out_weight` by tiles of spans."""
    tiles = triton.cdiv(len(call), call.tile())
    grad = call.projected.new_empty(len(call), call.outputs)
    partial_weight = grad.new_empty(tiles, *out_weight.shape, dtype=torch.float32)
    score_backward[(tiles * call.column_blocks(),)](
        **call.inputs(),
        **_dropout(dropout),
        out_weight=out_weight,
        grad_output=grad_output,
        grad=grad,
        partial_weight=partial_weight,
        num_scores=len(out_weight),
        grad_stride=grad_output.stride(0),
        ACTIVATION=activation,
    )
    return grad, partial_weight


def aot_kernel(what: str) -> AotConfiguration:
    types = input_types("out_weight", "output") | {"seed": "*i64", "threshold": "i64", "kept_share": "fp32"}
    types["num_scores"] = "i32"
    constants: dict[str, Any] = {"ACTIVATION": 2, "BANDED": True, "ATTENTION": True}
    if what == "forward":
        constants["SCORES"] = SCORES
    else:
        del types["output"]
        types |= dict.fromkeys(("grad_output", "grad", "partial_weight"), "*fp32") | {"grad_stride": "i32"}
    kernel = score_forward if what == "forward" else score_backward
    return aot(what, kernel, types, constants, product_options(1024, forward=True))


def aot_configurations() -> list[AotConfiguration]:
    """Every class of configuration that a launch can choose, with all that its kernel may be given."""
    return [
        *(aot_kernel(what) for what in ("forward", "backward")),
        *(aot_backward(what, accumulate=True) for what in ("exact", "weighed")),
    ]
