"""span_score's kernels in Triton: tiles of the layer between are reduced as they arise, and made again backward.

`score_forward` takes a tile of spans through all blocks of columns and keeps nothing but the tile's scores. Before
the gradients of the first layer, which are span_linear's, `score_backward` makes the layer between again for a chunk
of spans and leaves the chunk's gradient before the activation, and what each tile of spans gives to the second
layer's weight. Dropout: Philox4x32-10 of (seed, 0, output row, column), four columns a draw (ops/philox.py).

Where every document has a weight of its own, a tile of spans ends with its document. The norm needs no second pass: see
csrc/span_score/cpu_kernels.cpp.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.span_linear.triton_forward import (
    UNSPECIALIZED,
    Blocks,
    Sizes,
    activate,
    load_spans_from,
    pre_activation,
    slope,
)
from spanbert_kernels.ops.triton_masks import only_if


class DocumentTiles(NamedTuple):
    """Of every tile its first sorted span, the one after its last, and its document; int64 `[tiles]` each."""

    first: Tensor
    last: Tensor
    document: Tensor


class Normalization(NamedTuple):
    """What the forward needs of the norm, and writes.

    Attributes:
        sums: `[D, S]`, of the rows of `out_weight`.
        statistics: `[N, 2]`, the mean of each output row of the layer between, and 1 / its deviation.
        epsilon: what is added to the variance.
    """

    sums: Tensor
    statistics: Tensor
    epsilon: float


@triton.jit
def load_score_tile(spans, tiles, number, tokens, num_spans, COUNT: tl.constexpr):
    """A tile of spans of one document, and that."""
    first = number.to(tl.int64) * COUNT
    last = num_spans
    document = first * 0
    if tiles is not None:
        first = tl.load(tiles.first + number)
        last = tl.load(tiles.last + number)
        document = tl.load(tiles.document + number)
    return load_spans_from(spans, first, tokens, last, COUNT), document


@triton.jit
def kept_entries(dropout, row, first_column, BLOCK):
    """Which entries of a tile [N, D] dropout keeps."""
    zeros = tl.zeros([BLOCK.M, BLOCK.D // 4], tl.uint32)
    draw = zeros + (first_column // 4 + tl.arange(0, BLOCK.D // 4)).to(tl.uint32)[None, :]
    a, b, c, d = tl.philox(tl.load(dropout.seed), draw, zeros + row.to(tl.uint32)[:, None], zeros, zeros)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK.M, BLOCK.D])  # word i of a draw: its column i
    return words.to(tl.int64) >= dropout.threshold


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "num_scores"))
def score_forward(
    projection,
    spans,
    weights,  # None without attention
    out_weight,  # [D, S, O]
    tiles,  # None for one weight of all spans
    norm,  # None without
    dropout,  # None without
    output,  # [N, S]
    tokens,
    num_spans,
    outputs,
    heads,
    table_rows,
    num_scores,  # S
    start_block,
    end_block,
    mean_block,
    sum_block,
    attention_block,
    ACTIVATION: tl.constexpr,
    SCORES: tl.constexpr,  # of a program
    BANDED: tl.constexpr,
    BLOCK,
):
    sizes = Sizes(tokens, num_spans, outputs, heads, table_rows)
    blocks = Blocks(start_block, end_block, mean_block, sum_block, attention_block)
    tile, document = load_score_tile(spans, tiles, tl.program_id(0), tokens, num_spans, BLOCK.M)
    first_score = tl.program_id(1).to(tl.int64) * SCORES
    score = tl.arange(0, SCORES)
    own_weight = out_weight + (document * num_scores + first_score) * outputs
    total = tl.zeros([BLOCK.M, SCORES], tl.float32)
    shift = tl.zeros([BLOCK.M], tl.float32)
    sums = shift
    squares = shift
    done = 0
    while done < outputs:
        column = done + tl.arange(0, BLOCK.D).to(tl.int64)
        inner = pre_activation(projection, weights, blocks, None, tile, column, sizes, BANDED, BLOCK)
        inner = activate(inner, ACTIVATION)
        if dropout is not None:
            inner = tl.where(kept_entries(dropout, tile.row, done, BLOCK), inner / dropout.keep_prob, 0.0)
        if norm is not None:
            inner = tl.where((column < outputs)[None, :], inner, 0.0)
            shift = tl.where(done == 0, tl.sum(inner, 1) / tl.minimum(outputs, BLOCK.D), shift)
            inner = tl.where((column < outputs)[None, :], inner - shift[:, None], 0.0)
            sums += tl.sum(inner, 1)
            squares += tl.sum(inner * inner, 1)
        for i in tl.static_range(SCORES):
            used = only_if(first_score + i < num_scores, column < outputs)
            weight = tl.load(own_weight + i * outputs + column, mask=used, other=0.0)
            dots = tl.sum(inner * weight.to(tl.float32)[None, :], 1)
            total += tl.where(score[None, :] == i, dots[:, None], 0.0)
        done += BLOCK.D
    if norm is not None:
        mean = sums / outputs
        variance = squares / outputs - mean * mean
        scale = 1.0 / tl.sqrt_rn(tl.where(variance < 0, 0.0, variance) + norm.epsilon)
        known = first_score + score < num_scores
        of_rows = tl.load(norm.sums + document * num_scores + first_score + score, mask=known, other=0.0)
        total = (total - mean[:, None] * of_rows[None, :]) * scale[:, None]
        counted = only_if(first_score == 0, tile.there)
        if tiles is not None:
            scale = tl.where(tile.valid, scale, 0.0)
        tl.store(norm.statistics + tile.row * 2, shift + mean, mask=counted)
        tl.store(norm.statistics + tile.row * 2 + 1, scale, mask=counted)
    if tiles is not None:
        total = tl.where(tile.valid[:, None], total, 0.0)  # without tokens it is of no document
    place = output + tile.row[:, None] * num_scores + first_score + score[None, :]
    mask = tile.there[:, None] & (first_score + score < num_scores)[None, :]
    tl.store(place, total.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "num_scores"))
def score_backward(
    projection,  # the arguments of score_forward; of `output` the gradients
    spans,
    weights,
    out_weight,
    tiles,
    of_norm,  # [all spans, 3], or None: the mean, and the constant and slope of the gradient
    dropout,
    grad_output,  # [all spans, S]
    grad,  # [N, O], before the activation, in the order of the spans
    partial_weight,  # [tiles, S, O], float32
    tokens,
    num_spans,
    outputs,
    heads,
    table_rows,
    num_scores,
    start_block,
    end_block,
    mean_block,
    sum_block,
    attention_block,
    ACTIVATION: tl.constexpr,
    BANDED: tl.constexpr,
    BLOCK,
):
    sizes = Sizes(tokens, num_spans, outputs, heads, table_rows)
    blocks = Blocks(start_block, end_block, mean_block, sum_block, attention_block)
    column_blocks = tl.cdiv(outputs, BLOCK.D)
    number = (tl.program_id(0) // column_blocks).to(tl.int64)
    done = tl.program_id(0) % column_blocks * BLOCK.D
    column = done + tl.arange(0, BLOCK.D).to(tl.int64)
    inside = column < outputs
    tile, document = load_score_tile(spans, tiles, number, tokens, num_spans, BLOCK.M)
    used = tile.there
    if tiles is not None:
        used = tile.valid
    before = pre_activation(projection, weights, blocks, None, tile, column, sizes, BANDED, BLOCK)
    inner = activate(before, ACTIVATION)
    if dropout is not None:
        kept = kept_entries(dropout, tile.row, done, BLOCK)
        inner = tl.where(kept, inner / dropout.keep_prob, 0.0)
    grads = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    if of_norm is not None:
        inner -= tl.load(of_norm + tile.row * 3, mask=used, other=0.0)[:, None]
        constant = tl.load(of_norm + tile.row * 3 + 1, mask=used, other=0.0)
        factor = tl.load(of_norm + tile.row * 3 + 2, mask=used, other=0.0)
        grads = constant[:, None] + factor[:, None] * inner
    inner = tl.where(used[:, None], inner, 0.0)  # no Inf for the rows behind the last span
    score = 0
    while score < num_scores:
        rows = out_weight + (document * num_scores + score) * outputs
        weight = tl.load(rows + column, mask=inside, other=0.0).to(tl.float32)
        source = grad_output.data + tile.row * grad_output.stride + score
        incoming = tl.load(source, mask=used, other=0.0).to(tl.float32)
        grads += incoming[:, None] * weight[None, :]
        place = partial_weight + (number * num_scores + score) * outputs + column
        tl.store(place, tl.sum(incoming[:, None] * inner, 0), mask=inside)
        score += 1
    if dropout is not None:
        grads = tl.where(kept, grads / dropout.keep_prob, 0.0)
    grads = tl.where(used[:, None], slope(before, grads, ACTIVATION), 0.0)
    span = tile.first + tl.arange(0, BLOCK.M)
    mask = tile.there[:, None] & inside[None, :]
    tl.store(grad + span[:, None] * outputs + column[None, :], grads.to(grad.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size"])
def sum_tiles(
    partial_weight,  # [tiles, S * O]
    offsets,  # [D + 1], the first tile of each document
    target,  # [D, S * O], which is added to
    size,  # S * O
    COLUMNS: tl.constexpr,
):
    """What the tiles of a document give to its weight, tile by tile."""
    document = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    place = target + document * size + column
    total = tl.load(place, mask=column < size, other=0.0)
    tile = tl.load(offsets + document)
    last = tl.load(offsets + document + 1)
    while tile < last:
        total += tl.load(partial_weight + tile * size + column, mask=column < size, other=0.0)
        tile += 1
    tl.store(place, total, mask=column < size)
