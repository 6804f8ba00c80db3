"""span_score's kernels in Triton: tiles of the layer between are reduced as they arise, and made again backward.

`score_forward` takes a tile of spans through all blocks of columns and keeps nothing but the tile's scores. Before
the gradients of the first layer, which are span_linear's, `score_backward` makes the layer between again for a chunk
of spans and leaves the chunk's gradient before the activation, and what each tile of spans gives to the second
layer's weight. Dropout: Philox4x32-10 of (seed, 0, output row, column), four columns a draw (ops/philox.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.span_linear.triton_forward import (
    UNSPECIALIZED,
    Blocks,
    Sizes,
    activate,
    load_tile,
    pre_activation,
    slope,
)


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
    out_weight,  # [S, O]
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
    tile = load_tile(spans, tl.program_id(0), tokens, num_spans, BLOCK.M)
    first_score = tl.program_id(1).to(tl.int64) * SCORES
    score = tl.arange(0, SCORES)
    total = tl.zeros([BLOCK.M, SCORES], tl.float32)
    done = 0
    while done < outputs:
        column = done + tl.arange(0, BLOCK.D).to(tl.int64)
        inner = pre_activation(projection, weights, blocks, None, tile, column, sizes, BANDED, BLOCK)
        inner = activate(inner, ACTIVATION)
        if dropout is not None:
            inner = tl.where(kept_entries(dropout, tile.row, done, BLOCK), inner / dropout.keep_prob, 0.0)
        for i in tl.static_range(SCORES):
            used = (column < outputs) & (first_score + i < num_scores)
            weight = tl.load(out_weight + (first_score + i) * outputs + column, mask=used, other=0.0)
            dots = tl.sum(inner * weight.to(tl.float32)[None, :], 1)
            total += tl.where(score[None, :] == i, dots[:, None], 0.0)
        done += BLOCK.D
    place = output + tile.row[:, None] * num_scores + first_score + score[None, :]
    mask = tile.there[:, None] & (first_score + score < num_scores)[None, :]
    tl.store(place, total.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "num_scores"))
def score_backward(
    projection,  # the arguments of score_forward; of `output` the gradients
    spans,
    weights,
    out_weight,
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
    tile = load_tile(spans, number, tokens, num_spans, BLOCK.M)
    before = pre_activation(projection, weights, blocks, None, tile, column, sizes, BANDED, BLOCK)
    inner = activate(before, ACTIVATION)
    if dropout is not None:
        kept = kept_entries(dropout, tile.row, done, BLOCK)
        inner = tl.where(kept, inner / dropout.keep_prob, 0.0)
    inner = tl.where(tile.there[:, None], inner, 0.0)  # no Inf for the rows behind the last span
    grads = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    score = 0
    while score < num_scores:
        weight = tl.load(out_weight + score * outputs + column, mask=inside, other=0.0).to(tl.float32)
        source = grad_output.data + tile.row * grad_output.stride + score
        incoming = tl.load(source, mask=tile.there, other=0.0).to(tl.float32)
        grads += incoming[:, None] * weight[None, :]
        place = partial_weight + (number * num_scores + score) * outputs + column
        tl.store(place, tl.sum(incoming[:, None] * inner, 0), mask=inside)
        score += 1
    if dropout is not None:
        grads = tl.where(kept, grads / dropout.keep_prob, 0.0)
    grads = slope(before, grads, ACTIVATION)
    span = tile.first + tl.arange(0, BLOCK.M)
    mask = tile.there[:, None] & inside[None, :]
    tl.store(grad + span[:, None] * outputs + column[None, :], grads.to(grad.dtype.element_ty), mask=mask)
