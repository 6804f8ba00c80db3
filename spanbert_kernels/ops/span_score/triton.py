"""span_score in Triton: its launches, and what they compile."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.aot import AotConfiguration, configurations_of, meta, meta_spans
from spanbert_kernels.ops.choices import PARTS
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_linear import triton_widths
from spanbert_kernels.ops.span_linear.operators import Gradients, ProjectedInputs, zero_gradients
from spanbert_kernels.ops.span_linear.triton import meta_inputs
from spanbert_kernels.ops.span_linear.triton_call import KernelCall, add_gradients, new_call
from spanbert_kernels.ops.span_score.operators import ScoreLayer, span_score_backward, span_score_forward
from spanbert_kernels.ops.span_score.triton_enumerated import enumerated_score_forward
from spanbert_kernels.ops.span_score.triton_kernels import (
    DocumentTiles,
    Normalization,
    score_backward,
    score_forward,
    sum_tiles,
)
from spanbert_kernels.ops.triton_arguments import dense_rows, matrix, on, philox_of

CHUNK_BYTES = 2**26  # of the layer between that the backward holds at a time
SCORES = 8  # of a program, at most
SUMMED_COLUMNS = 1024  # of the weight's gradient, that a program adds up


@span_score_forward.triton
def forward(
    projected: Tensor, work: SpanWork, inputs: ProjectedInputs, layer: ScoreLayer, dropout: philox.Dropout
) -> tuple[Tensor, Tensor]:
    num_spans, out_weight = work.num_spans, layer.out_weight.contiguous()
    documents, num_scores, outputs = out_weight.shape
    normed = layer.epsilon >= 0
    output, statistics = projected.new_empty(num_spans, num_scores), projected.new_empty(num_spans if normed else 0, 2)
    if output.numel() == 0 or outputs == 0 or documents == 0:
        return output.zero_(), statistics.zero_()
    call = replace(new_call(projected, work, inputs, outputs), few=True)
    group = min(SCORES, max(1, triton.next_power_of_2(num_scores)))
    if not normed and layer.documents is None and triton_widths.applies(call, work):
        with on(projected.device):
            _enumerated_forward(triton_widths.EnumeratedCall(call, work, group), out_weight, dropout, output, inputs)
        return output, statistics
    with on(projected.device):
        tiles, _, count = _tiles(call, layer.documents)
        score_forward[(count, triton.cdiv(num_scores, group))](
            **call.with_softmax().inputs(),
            tiles=tiles,
            norm=Normalization(out_weight.sum(2), statistics, layer.epsilon) if normed else None,
            dropout=philox_of(dropout),
            out_weight=out_weight,
            output=output,
            num_scores=num_scores,
            ACTIVATION=inputs.activation,
            SCORES=group,
        )
    return output, statistics


def _enumerated_forward(
    call: triton_widths.EnumeratedCall,
    out_weight: Tensor,
    dropout: philox.Dropout,
    output: Tensor,
    inputs: ProjectedInputs,
) -> None:
    num_scores = out_weight.shape[1]
    enumerated_score_forward[(call.groups, call.chunks, triton.cdiv(num_scores, call.scores))](
        **call.inputs(),
        dropout=philox_of(dropout),
        out_weight=out_weight,
        output=output,
        num_scores=num_scores,
        ACTIVATION=inputs.activation,
        SCORES=call.scores,
    )


def _tiles(call: KernelCall, documents: Tensor | None) -> tuple[DocumentTiles | None, Tensor | None, int]:
    """Tiles of spans of one document each, the first tile of every document, and how many tiles there may be.

    Their number depends on the documents, which nobody looks at here: the last ones may be empty.
    """
    size = call.tile()
    count = triton.cdiv(len(call), size)
    if documents is None:
        return None, None, count
    assert call.spans.first is not None
    first = call.spans.first[documents]
    tiles = (first.diff() + size - 1) // size
    offsets = torch.cat([tiles.new_zeros(1), tiles.cumsum(0)])
    number = tiles.new_ones(count + len(tiles)).cumsum(0) - 1
    document = torch.searchsorted(offsets[1:], number, right=True)
    known = document.clamp(max=len(tiles) - 1)
    low = first[known] + (number - offsets[known]) * size
    high = torch.minimum(low + size, first[known + 1])
    return DocumentTiles(low, torch.where(document < len(tiles), high, low), known), offsets, len(number)


@span_score_backward.triton
def backward(
    grad_output: Tensor,
    projected: Tensor,
    work: SpanWork,
    inputs: ProjectedInputs,
    layer: ScoreLayer,
    dropout: philox.Dropout,
    of_norm: Tensor | None,
) -> Gradients:
    num_spans, bias = work.num_spans, inputs.bias
    layer = layer._replace(out_weight=layer.out_weight.contiguous())
    documents, num_scores, outputs = layer.out_weight.shape
    if num_spans == 0 or outputs == 0 or documents == 0:
        return zero_gradients(projected, inputs, layer.out_weight)
    call = replace(new_call(projected, work, inputs, outputs), few=True)
    given = Incoming(dense_rows(grad_output), None if of_norm is None else of_norm.contiguous())
    chunk = max(1, CHUNK_BYTES // (outputs * projected.element_size()))
    chunked = num_spans > chunk
    with on(projected.device):
        sums = call.new_sums(accumulate=chunked)
        grad_bias = projected.new_zeros(outputs, dtype=torch.float32)
        grad_weight = projected.new_zeros(documents, num_scores, outputs, dtype=torch.float32)
        for low in range(0, num_spans, chunk):
            part = (call.chunk(low, min(low + chunk, num_spans)) if chunked else call).with_softmax()
            grad = _before_activation(part, given, layer, inputs.activation, dropout, grad_weight)
            add_gradients(part, grad, None, sums)
            grad_bias += grad.sum(0, dtype=torch.float32)
        absent = projected.new_empty(0)
        return (
            *call.gradients(sums),
            absent if bias is None else grad_bias.to(bias.dtype),
            grad_weight.to(layer.out_weight.dtype),
        )


class Incoming(NamedTuple):
    """The raw backward's `grad_output` and `of_norm`."""

    grad_output: Tensor
    of_norm: Tensor | None


def _before_activation(
    call: KernelCall,
    given: Incoming,
    layer: ScoreLayer,
    activation: int,
    dropout: philox.Dropout,
    grad_weight: Tensor,
) -> Tensor:
    """The gradient before the activation `[N, O]`; adds that of `out_weight` to `grad_weight`."""
    tiles, offsets, count = _tiles(call, layer.documents)
    grad = call.projection.data.new_empty(len(call), call.outputs)
    documents, num_scores, outputs = grad_weight.shape
    partial_weight = grad.new_empty(count, num_scores, outputs, dtype=torch.float32)
    score_backward[(count * call.column_blocks(),)](
        **call.inputs(),
        tiles=tiles,
        of_norm=given.of_norm,
        dropout=philox_of(dropout),
        out_weight=layer.out_weight,
        grad_output=matrix(given.grad_output),
        grad=grad,
        partial_weight=partial_weight,
        num_scores=num_scores,
        ACTIVATION=activation,
    )
    if offsets is None:
        grad_weight += partial_weight.sum(0)
    elif num_scores:
        size = num_scores * outputs
        sum_tiles[(documents, triton.cdiv(size, SUMMED_COLUMNS))](
            partial_weight, offsets, grad_weight, size, COLUMNS=SUMMED_COLUMNS
        )
    return grad


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile whose rows are multiples of 16 columns, with everything and in chunks."""
    inputs, dropout = (
        meta_inputs(*(part for part in PARTS if part != "max")),
        philox.Dropout(0.5, meta(1, dtype=torch.int64)),
    )
    spans, projected = meta_spans(20000, 2000), meta(2000, 7 * 1024)
    alike = ScoreLayer(meta(1, SCORES, 1024), None, -1.0)
    enumeration, summed = meta_spans(20000, 2000, enumerated=True), meta(2000, 6 * 1024)
    two_heads = inputs._replace(scores=meta(2000, 2))
    varying = ScoreLayer(meta(3, SCORES, 1024), meta(4, dtype=torch.int64), 1e-5)
    with_norm = (dropout, meta(20000, 3))
    return configurations_of(
        {
            "forward": partial(forward, projected, spans, inputs, alike, dropout),
            "enumeration, seldom": partial(forward, summed, enumeration, two_heads, alike, dropout),
            "enumeration of one score, seldom": partial(
                forward, summed, enumeration, two_heads, alike._replace(out_weight=meta(1, 1, 1024)), dropout
            ),
            "forward by document": partial(forward, projected, spans, inputs, varying, dropout),
            "gradient": partial(backward, meta(20000, SCORES), projected, spans, inputs, alike, dropout, None),
            "gradient by document": partial(
                backward, meta(20000, SCORES), projected, spans, inputs, varying, *with_norm
            ),
        }
    )
