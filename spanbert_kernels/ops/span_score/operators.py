"""The raw operators of span_score: those of span_linear, and a second layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import MOSTLY_PRODUCTS, PROJECTED, Operation
from spanbert_kernels.ops.documents import rows_of_documents
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


class ScoreLayer(NamedTuple):
    """The second layer.

    Attributes:
        out_weight: `[D, S, O]`, D = 1 without documents.
        documents: int64 `[D + 1]`, offsets in the tokens of the documents that have a weight each. Spans without tokens
            are of none: their scores are 0, and they give no gradient.
        epsilon: of the norm of what the layer is given (its own weight and bias are in `out_weight` and behind it),
            below 0 without one.
    """

    out_weight: Tensor
    documents: Tensor | None
    epsilon: float


@raw(OPERATION)
def span_score_forward(
    projected: Tensor, work: SpanWork, inputs: ProjectedInputs, layer: ScoreLayer, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    # The scores `[N, S]`, and with a norm the mean of every output row of the layer between and 1 / its deviation,
    # `[N, 2]`. Entry (row, column) of the layer between, row a span's output row, is dropped by Philox as query = row
    # and key = column of head 0.
    rows = work.num_spans if layer.epsilon >= 0 else 0
    return projected.new_empty(work.num_spans, layer.out_weight.shape[1]), projected.new_empty(rows, 2)


@raw(OPERATION)
def span_score_backward(
    grad_output: Tensor,
    projected: Tensor,
    work: SpanWork,
    inputs: ProjectedInputs,
    layer: ScoreLayer,
    dropout: Dropout,
    of_norm: Tensor | None,
) -> Gradients:
    # With a norm, `of_norm [N, 3]` has of every output row the mean of the layer between x, a constant and a slope: its
    # gradient is grad_output out_weight + constant + slope (x - mean), and out_weight multiplies x - mean.
    return empty_gradients(projected, inputs, layer.out_weight)


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
        documents: Tensor | None,
        document: Tensor | None,
        epsilon: float | None,
        dropout: Dropout,
        work: SpanWork,
        backend: str,
    ) -> Tensor:
        inputs = ProjectedInputs(scores, width_projected, width_index, bias, parts, activation)
        layer = ScoreLayer(out_weight, documents, -1.0 if epsilon is None else epsilon)
        output, statistics = span_score_forward(backend, projected, work, inputs, layer, dropout)
        normed = (output, statistics, document) if epsilon is not None else (None, None, None)
        save(ctx, projected, work, inputs, layer, dropout, backend, *normed)
        scored: Tensor = output
        return scored

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
    layer: ScoreLayer,
    dropout: Dropout,
    backend: str,
    output: Tensor | None,
    statistics: Tensor | None,
    document: Tensor | None,
) -> Gradients:
    of_norm = None
    if output is not None and statistics is not None:
        grad_output, of_norm = _through_norm(grad_output, layer.out_weight, output, statistics, document)
    found: Gradients = span_score_backward(backend, grad_output, projected, work, inputs, layer, dropout, of_norm)
    return found


def _through_norm(
    grad_output: Tensor, out_weight: Tensor, output: Tensor, statistics: Tensor, document: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the raw backward takes: gradients divided by the deviation, and `of_norm`.

    Of y = (x - mean) / deviation and g its gradient, that of x is (g - mean of g - y * mean of g y) / deviation. The
    means are over columns, and those of a product with `out_weight` are known from its rows' sums and the scores.
    """
    columns = max(out_weight.shape[2], 1)
    sums = out_weight.sum(2)
    of_rows = sums if document is None else rows_of_documents(sums, document)
    mean, scale = statistics.unbind(1)
    constant = -scale * (grad_output * of_rows).sum(1) / columns
    slope = -scale.square() * (grad_output * output).sum(1) / columns
    return grad_output * scale[:, None], torch.stack([mean, constant, slope], 1)
