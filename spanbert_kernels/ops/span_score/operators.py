"""The raw operators of span_score: those of span_linear, and a second layer."""

from __future__ import annotations

from torch import Tensor

from spanbert_kernels.ops.backends import MOSTLY_PRODUCTS, PROJECTED, Operation
from spanbert_kernels.ops.operators import raw
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_linear.operators import Gradients, ProjectedInputs, empty_gradients

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
