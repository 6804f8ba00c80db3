"""The raw operators of span_score: those of span_linear, and a second layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import MOSTLY_PRODUCTS, PROJECTED, Operation
from spanbert_kernels.ops.operators import Gradient, gradients, raw, save, saved
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_linear.operators import ONCE, Gradients, ProjectedInputs, empty_gradients

OPERATION = Operation(
    "span_score",
    PROJECTED,
    summary="two layers over spans, a mention scorer, without the layer between in memory",
    instead=MOSTLY_PRODUCTS,
)


@raw(OPERATION)
def span_score_forward(
    projected: Tensor, work: SpanWork, inputs: ProjectedInputs, out_weight: Tensor, dropout: Dropout
) -> Tensor:
    # out_weight `[S, O]`, the output `[N, S]`. Entry (row, column) of the layer between, row a span's output row, is
    # dropped by Philox as query = row and key = column of head 0.
    return projected.new_empty(work.num_spans, out_weight.shape[0])


@raw(OPERATION)
def span_score_backward(
    grad_output: Tensor,
    projected: Tensor,
    work: SpanWork,
    inputs: ProjectedInputs,
    out_weight: Tensor,
    dropout: Dropout,
) -> Gradients:
    return empty_gradients(projected, inputs, out_weight)


class SpanScore(torch.autograd.Function):
    """The raw operators under autograd, on projected tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        scores: Tensor | None,
        width_projected: Tensor | None,
        bias: Tensor | None,
        out_weight: Tensor,
        width_index: Tensor | None,
        parts: list[int],
        activation: int,
        dropout: Dropout,
        work: SpanWork,
        backend: str,
    ) -> Tensor:
        inputs = ProjectedInputs(scores, width_projected, width_index, bias, parts, activation)
        save(ctx, projected, work, inputs, out_weight, dropout, backend)
        output: Tensor = span_score_forward(backend, projected, work, inputs, out_weight, dropout)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        found = Gradient.apply(ONCE.format("span_score"), _gradients, grad_output, *saved(ctx))
        kept = [grad if need else None for grad, need in zip(found, ctx.needs_input_grad[:5], strict=True)]
        return gradients(ctx, *kept)


def _gradients(
    grad_output: Tensor,
    projected: Tensor,
    work: SpanWork,
    inputs: ProjectedInputs,
    out_weight: Tensor,
    dropout: Dropout,
    backend: str,
) -> Gradients:
    found: Gradients = span_score_backward(backend, grad_output, projected, work, inputs, out_weight, dropout)
    return found
