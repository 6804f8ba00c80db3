"""span_linear in Triton: its launches, and what they compile."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops.aot import AotConfiguration
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_linear.operators import (
    Gradients,
    ProjectedInputs,
    outputs_of,
    span_linear_backward,
    span_linear_forward,
    zero_gradients,
)
from spanbert_kernels.ops.span_linear.triton_backward import attention_deltas, product_backward
from spanbert_kernels.ops.span_linear.triton_call import (
    SOFTMAX_OPTIONS,
    Call,
    add_gradients,
    new_call,
    on,
    product_options,
    table_options,
    with_dense_rows,
)
from spanbert_kernels.ops.span_linear.triton_forward import linear_forward, softmax_of_spans


def _launch_forward(
    call: Call, addend: Tensor | None, grad_output: Tensor | None, output: Tensor, activation: int
) -> None:
    addend = None if addend is None else with_dense_rows(addend)
    linear_forward[(triton.cdiv(len(call), call.tile()) * call.column_blocks(),)](
        **call.inputs(),
        addend=addend,
        grad_output=grad_output,
        output=output,
        addend_stride=0 if addend is None else addend.stride(0),
        grad_stride=0 if grad_output is None else grad_output.stride(0),
        ACTIVATION=activation,
    )


@span_linear_forward.triton
def forward(projected: Tensor, work: SpanWork, inputs: ProjectedInputs, addend: Tensor | None) -> Tensor:
    num_spans, activation, outputs = work.num_spans, inputs.activation, outputs_of(projected, inputs, addend)
    output = projected.new_empty(num_spans, outputs)
    if output.numel() == 0:
        return output
    call = new_call(projected, work, inputs, outputs)
    with on(projected.device):
        _launch_forward(call.with_softmax(), addend, None, output, activation)
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
    grad_output = with_dense_rows(grad_output)
    with on(projected.device):
        call = call.with_softmax()
        grad = grad_output
        if activation:
            grad = projected.new_empty(num_spans, outputs)
            _launch_forward(call, addend, grad_output, grad, activation)
        sums = call.new_sums(accumulate=False)
        add_gradients(call, grad, call.rows, sums)
        absent = projected.new_empty(0)
        grad_bias = absent if bias is None else grad.sum(0, dtype=torch.float32).to(bias.dtype)
        grad_addend = absent.clone() if addend is None else grad.clone() if grad is grad_output else grad
    return (*call.gradients(sums), grad_bias, grad_addend)


SIZES = ("tokens", "spans", "outputs", "heads")
BLOCKS = tuple(f"{name}_block" for name in ("start", "end", "mean", "sum", "attention"))
STATISTICS = ("scores", "peaks", "scales")
DIVISIBLE = ("outputs", "projected_stride", "addend_stride", "grad_stride", "target_stride")


def aot(
    name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, Any]
) -> AotConfiguration:
    """`types` of the arguments that are not constants; the launch's `options` hold constants, too."""
    values = {**constants, **options}
    warps, stages = values.pop("num_warps"), values.pop("num_stages")
    divisible = tuple(name for name in DIVISIBLE if name in types)
    return AotConfiguration(
        name, kernel, {**types, **dict.fromkeys(values, "constexpr")}, values, warps, stages, divisible
    )


def input_types(*more: str) -> dict[str, str]:
    """Of `Call.inputs`, with everything that a call may have, and of `more` tensors."""
    return {
        **dict.fromkeys(("projected", "width_projected", "bias", *more), "*fp32"),
        **dict.fromkeys(("starts", "ends", "rows", "width_index"), "*i64"),
        **dict.fromkeys(STATISTICS, "*fp32"),
        **dict.fromkeys((*SIZES, "table_rows", "projected_stride", *BLOCKS), "i32"),
    }


def aot_forward(what: str) -> AotConfiguration:
    types = input_types("addend", "grad_output", "output") | dict.fromkeys(("addend_stride", "grad_stride"), "i32")
    constants: dict[str, Any] = {"ACTIVATION": 2, "BANDED": what != "gathers", "ATTENTION": what != "gathers"}
    absent = () if what == "gradient" else ("grad_output", *STATISTICS)
    types = {name: kind for name, kind in types.items() if name not in absent}
    name = f"forward, {what}" if what != "gradient" else "before activation"
    constants |= dict.fromkeys(absent)
    return aot(name, linear_forward, types, constants, product_options(1024, forward=True))


def aot_backward(what: str, *, accumulate: bool = False) -> AotConfiguration:
    types = {
        **dict.fromkeys(("grad", "projected", "target"), "*fp32"),
        **dict.fromkeys(("starts", "ends", "rows", "first", "reach"), "*i64"),
        **dict.fromkeys((*STATISTICS, "deltas", "partial_scores"), "*fp32"),
        **dict.fromkeys((*SIZES, "share", "grad_stride", "projected_stride", "target_stride", "kinds", *BLOCKS), "i32"),
    }
    absent: tuple[str, ...] = () if what == "weighed" else (*STATISTICS, "deltas", "partial_scores")
    if what == "table":
        absent = (*absent, "first", "reach")
    types = {name: kind for name, kind in types.items() if name not in absent}
    constants = {
        **dict.fromkeys(absent),
        "WEIGHED": what == "weighed",
        "ATTENTION": what == "weighed",
        "ACCUMULATE": accumulate,
    }
    options = table_options(1024) if what == "table" else product_options(1024, forward=False)
    return aot(f"backward, {what}{', added up' * accumulate}", product_backward, types, constants, options)


def aot_deltas() -> AotConfiguration:
    types = {
        **dict.fromkeys(("grad", "projected", *STATISTICS, "deltas"), "*fp32"),
        **dict.fromkeys(("starts", "ends", "rows"), "*i64"),
        **dict.fromkeys((*SIZES, "grad_stride", "projected_stride", "attention_block"), "i32"),
    }
    return aot("deltas", attention_deltas, types, {}, product_options(1024, forward=True))


def aot_configurations() -> list[AotConfiguration]:
    """Every class of configuration that a launch can choose, with all that its kernel may be given."""
    types = dict.fromkeys(("starts", "ends"), "*i64") | dict.fromkeys(STATISTICS, "*fp32")
    types |= dict.fromkeys(("tokens", "spans", "heads"), "i32")
    return [
        aot("softmax", softmax_of_spans, types, {}, SOFTMAX_OPTIONS),
        *(aot_forward(what) for what in ("gathers", "gradient")),
        aot_deltas(),
        *(aot_backward(what) for what in ("exact", "weighed", "table")),
    ]
