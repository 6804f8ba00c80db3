"""The raw operators of span_linear, and what they share with those of span_score."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import MOSTLY_PRODUCTS, PROJECTED, Operation
from spanbert_kernels.ops.choices import PARTS
from spanbert_kernels.ops.operators import Gradient, gradients, raw, save, saved
from spanbert_kernels.ops.plans import SpanWork

ONCE = '{} has no second derivative on its compiled kernels; backend="eager" has it'

OPERATION = Operation(
    "span_linear",
    PROJECTED,
    summary="a linear layer over pooled spans: projects the tokens once, then pools",
    instead=MOSTLY_PRODUCTS,
)

# projected `[T, B * O]`: the tokens times the weight's blocks, one H-wide block a part (one a head of `attention`), in
# the order of `parts`; `width` has none. Dense rows; B may be 0. It, all that follows, the output and every gradient
# are float32, float64 for a float64 hidden; the result is rounded outside (see projection.Call). Absent inputs have
# empty gradients `[0]`.


class ProjectedInputs(NamedTuple):
    """What the layer before the output is made of, beside the projected tokens.

    Attributes:
        scores: `[T, heads]`, for `attention`.
        width_projected: `[R, O]`, the width table times its columns of the weight.
        width_index: int64 `[N]` by output row, absent: row `min(width, R) - 1`.
        bias: `[O]`.
        parts: indices of PARTS, without `max`.
        activation: an index of ACTIVATIONS.
    """

    scores: Tensor | None
    width_projected: Tensor | None
    width_index: Tensor | None
    bias: Tensor | None
    parts: list[int]
    activation: int


def outputs_of(projected: Tensor, inputs: ProjectedInputs, addend: Tensor | None) -> Any:
    """O, from the raw operators' inputs."""
    names = [PARTS[part] for part in inputs.parts if PARTS[part] != "width"]
    if names:
        heads = 1 if inputs.scores is None else inputs.scores.shape[1]
        return projected.shape[1] // (len(names) + ("attention" in names) * (heads - 1))
    for tensor in (inputs.width_projected, addend):
        if tensor is not None:
            return tensor.shape[1]
    return 0


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def empty_gradients(projected: Tensor, inputs: ProjectedInputs, second: Tensor | None) -> Gradients:
    """Of `projected`, `scores`, `width_projected`, `bias` and the tensor behind them; `[0]` for an absent one."""
    tensors = (projected, inputs.scores, inputs.width_projected, inputs.bias, second)
    first, scores, table, bias, last = (projected.new_empty(0) if x is None else x.new_empty(x.shape) for x in tensors)
    return first, scores, table, bias, last


def zero_gradients(projected: Tensor, inputs: ProjectedInputs, second: Tensor | None) -> Gradients:
    """The same of no span."""
    first, scores, table, bias, last = empty_gradients(projected, inputs, second)
    return first.zero_(), scores.zero_(), table.zero_(), bias.zero_(), last.zero_()


@raw(OPERATION)
def span_linear_forward(projected: Tensor, work: SpanWork, inputs: ProjectedInputs, addend: Tensor | None) -> Tensor:
    # addend `[N, O]` is added before the activation: the product of `max`, which is not linear. A span without tokens
    # gives activation(bias + addend).
    return projected.new_empty(work.num_spans, outputs_of(projected, inputs, addend))


@raw(("triton",))
def span_linear_rounded(
    projected: Tensor, like: Tensor, work: SpanWork, inputs: ProjectedInputs, addend: Tensor | None
) -> Tensor:
    # The forward, whose kernel rounds what it writes to the dtype of `like`: half of the bytes and no pass behind it.
    return like.new_empty(work.num_spans, outputs_of(projected, inputs, addend))


@raw(OPERATION)
def span_linear_backward(
    grad_output: Tensor, projected: Tensor, work: SpanWork, inputs: ProjectedInputs, addend: Tensor | None
) -> Gradients:
    return empty_gradients(projected, inputs, addend)


@raw(("triton",))
def split_in_parts(values: Tensor, unit: Tensor | None, like: Tensor) -> Tensor:
    # The first result of `products.parts_of`, in the dtype of `like`.
    return like.new_empty(values.shape[0], 2 * values.shape[1])


class SpanLinear(torch.autograd.Function):
    """The raw operators under autograd, on projected tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        scores: Tensor | None,
        width_projected: Tensor | None,
        bias: Tensor | None,
        addend: Tensor | None,
        width_index: Tensor | None,
        parts: list[int],
        activation: int,
        work: SpanWork,
        backend: str,
        dtype: torch.dtype,
    ) -> Tensor:
        inputs = ProjectedInputs(scores, width_projected, width_index, bias, parts, activation)
        save(ctx, projected, work, inputs, addend, backend)
        output: Tensor
        if backend == "triton" and dtype != projected.dtype:
            output = span_linear_rounded(backend, projected, projected.new_empty(0, dtype=dtype), work, inputs, addend)
        else:
            output = span_linear_forward(backend, projected, work, inputs, addend)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        projected, *rest = saved(ctx)
        grad_output = grad_output.to(projected.dtype)
        found = Gradient.apply(ONCE.format("span_linear"), _gradients, grad_output, projected, *rest)
        kept = [grad if need else None for grad, need in zip(found, ctx.needs_input_grad[:5], strict=True)]
        return gradients(ctx, *kept)


def _gradients(
    grad_output: Tensor,
    projected: Tensor,
    work: SpanWork,
    inputs: ProjectedInputs,
    addend: Tensor | None,
    backend: str,
) -> Gradients:
    found: Gradients = span_linear_backward(backend, grad_output, projected, work, inputs, addend)
    return found
