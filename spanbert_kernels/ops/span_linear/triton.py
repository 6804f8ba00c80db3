"""span_linear in Triton: its launches, and what they compile."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops.aot import AotConfiguration, configurations_of, meta, meta_spans
from spanbert_kernels.ops.choices import ACTIVATIONS, PARTS
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_linear import triton_widths
from spanbert_kernels.ops.span_linear.operators import (
    Gradients,
    ProjectedInputs,
    outputs_of,
    span_linear_backward,
    span_linear_forward,
    span_linear_rounded,
    zero_gradients,
)
from spanbert_kernels.ops.span_linear.triton_call import KernelCall, add_gradients, new_call
from spanbert_kernels.ops.span_linear.triton_enumerated import Layer, enumerated_linear_forward
from spanbert_kernels.ops.span_linear.triton_forward import linear_forward
from spanbert_kernels.ops.triton_arguments import contiguous, dense_rows, matrix, on


def _launch_forward(
    call: KernelCall,
    work: SpanWork,
    addend: Tensor | None,
    grad_output: Tensor | None,
    output: Tensor,
    activation: int,
) -> None:
    if triton_widths.applies(call, work):
        enumerated = triton_widths.EnumeratedCall(call, work)
        layer = Layer(output, contiguous(addend), contiguous(grad_output), None)
        _launch_enumerated(enumerated, enumerated.inputs(), layer, activation)
        return
    if call.weights is None:
        call = call.with_softmax()
    linear_forward[(triton.cdiv(len(call), call.tile()) * call.column_blocks(),)](
        **call.inputs(),
        addend=None if addend is None else matrix(addend),
        grad_output=None if grad_output is None else matrix(grad_output),
        output=output,
        ACTIVATION=activation,
    )


def _launch_enumerated(
    enumerated: triton_widths.EnumeratedCall, inputs: dict[str, Any], layer: Layer, activation: int
) -> None:
    enumerated_linear_forward[(enumerated.groups * enumerated.column_blocks(),)](
        **inputs, layer=layer, spans=len(enumerated.call), ACTIVATION=activation
    )


@span_linear_forward.triton
def forward(projected: Tensor, work: SpanWork, inputs: ProjectedInputs, addend: Tensor | None) -> Tensor:
    return rounded_forward(projected, projected, work, inputs, addend)


@span_linear_rounded.triton
def rounded_forward(
    projected: Tensor, like: Tensor, work: SpanWork, inputs: ProjectedInputs, addend: Tensor | None
) -> Tensor:
    outputs = outputs_of(projected, inputs, addend)
    output = like.new_empty(work.num_spans, outputs)
    if output.numel():
        with on(projected.device):
            _launch_forward(new_call(projected, work, inputs, outputs), work, addend, None, output, inputs.activation)
    return output


@span_linear_backward.triton
def backward(
    grad_output: Tensor, projected: Tensor, work: SpanWork, inputs: ProjectedInputs, addend: Tensor | None
) -> Gradients:
    num_spans, activation, bias = work.num_spans, inputs.activation, inputs.bias
    outputs = grad_output.shape[1]
    if grad_output.numel() == 0:
        return zero_gradients(projected, inputs, addend)
    call = new_call(projected, work, inputs, outputs)
    if triton_widths.gradients_apply(call, work):
        with on(projected.device):
            return _enumerated_backward(call, work, inputs, grad_output.contiguous(), contiguous(addend))
    grad_output = dense_rows(grad_output)
    with on(projected.device):
        call = call.with_softmax()
        grad = grad_output
        if activation:
            grad = projected.new_empty(num_spans, outputs)
            _launch_forward(call, work, addend, grad_output, grad, activation)
        sums = call.new_sums(accumulate=False)
        add_gradients(call, grad, call.spans.rows, sums)
        absent = projected.new_empty(0)
        grad_bias = absent if bias is None else grad.sum(0, dtype=torch.float32).to(bias.dtype)
        grad_addend = absent.clone() if addend is None else grad.clone() if grad is grad_output else grad
    return (*call.gradients(sums), grad_bias, grad_addend)


def _enumerated_backward(
    call: KernelCall, work: SpanWork, inputs: ProjectedInputs, grad_output: Tensor, addend: Tensor | None
) -> Gradients:
    enumerated = triton_widths.EnumeratedCall(call, work)
    given = enumerated.inputs()
    grad, deltas = grad_output, None
    if inputs.activation:
        grad = torch.empty_like(grad_output)
    if call.heads:
        deltas = grad.new_empty(enumerated.column_blocks(), call.heads, len(call), dtype=torch.float32)
    if inputs.activation or call.heads:
        layer = Layer(grad if inputs.activation else None, addend, grad_output, deltas)
        _launch_enumerated(enumerated, given, layer, inputs.activation)
    total = None if deltas is None else deltas.sum(0)
    gradients = triton_widths.EnumeratedGradients(call, given["enumeration"], work.max_width, grad, total)
    absent = grad.new_empty(0)
    of_bias = absent if inputs.bias is None else gradients.of_bias().to(inputs.bias.dtype)
    of_addend = absent.clone() if addend is None else grad.clone() if grad is grad_output else grad
    return (*gradients.found(), of_bias, of_addend)


def meta_inputs(*parts: str) -> ProjectedInputs:
    """Of 1000 spans over 2000 tokens, for `configurations_of`."""
    entries, codes = meta(1000, dtype=torch.int64), [PARTS.index(part) for part in parts]
    return ProjectedInputs(meta(2000, 3), meta(8, 1024), entries, meta(1024), codes, ACTIVATIONS.index("gelu"))


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile whose rows are multiples of 16 columns: gathers alone, and a gradient with everything."""
    spans, layer = meta_spans(1000, 2000), meta(1000, 1024)
    some, everything = meta_inputs("start", "end", "width"), meta_inputs(*(part for part in PARTS if part != "max"))
    enumeration, two_heads = meta_spans(1000, 2000, enumerated=True), everything._replace(scores=meta(2000, 2))
    by_width = two_heads._replace(width_index=None)
    mention = meta_inputs("start", "end", "attention", "width")._replace(scores=meta(2000, 1), width_index=None)
    summed, like = meta(2000, 6 * 1024), meta(0, dtype=torch.bfloat16)
    return configurations_of(
        {
            "enumeration": partial(rounded_forward, summed, like, enumeration, two_heads, layer),
            "gradient of an enumeration, seldom": partial(backward, layer, summed, enumeration, by_width, layer),
            "gradient of an enumeration with widths of its own, seldom": partial(
                backward, layer, summed, enumeration, two_heads, layer
            ),
            "gradient of all up to 30 wide, seldom": partial(
                backward, layer, meta(2000, 3 * 1024), enumeration._replace(max_width=30), mention, None
            ),
            "gathers": partial(forward, meta(2000, 2 * 1024), spans, some, layer),
            "gradient": partial(backward, layer, meta(2000, 7 * 1024), spans, everything, layer),
        }
    )
