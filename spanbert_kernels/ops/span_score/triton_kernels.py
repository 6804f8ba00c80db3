"""span_score's kernels in Triton: tiles of the layer between are reduced as they arise, and made again backward.

`score_forward` takes a tile of spans through all blocks of columns and keeps nothing but the tile's scores. Before
the gradients of the first layer, which are span_linear's, `score_backward` makes the layer between again for a chunk
of spans and leaves the chunk's gradient before the activation, and what each tile of spans gives to the second
layer's weight. Dropout: Philox4x32-10 of (seed, 0, output row, column), four columns a draw (ops/philox.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.span_linear.triton_forward import UNSPECIALIZED, activate, load_tile, pre_activation, slope


@triton.jit
def kept_entries(seed, threshold, row, first_column, BLOCK_N: tl.constexpr, C: tl.constexpr):
    """Which entries of a tile [N, C] dropout keeps."""
    zeros = tl.zeros([BLOCK_N, C // 4], tl.uint32)
    draw = zeros + (first_column // 4 + tl.arange(0, C // 4)).to(tl.uint32)[None, :]
    a, b, c, d = tl.philox(tl.load(seed), draw, zeros + row.to(tl.uint32)[:, None], zeros, zeros)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK_N, C])  # word i of a draw: its column i
    return words.to(tl.int64) >= threshold


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "threshold", "num_scores"))
def score_forward(
    projected,  # [T, B * O], dense rows
    starts,  # [N]
    ends,
    rows,  # [N] or None
    scores,  # [heads, T], float32: those of the attention
    peaks,  # [heads, N]
    scales,  # [heads, N]
    width_projected,  # [R, O] or None
    width_index,  # [N] by output row, or None
    bias,  # [O] or None
    out_weight,  # [S, O]
    seed,  # [1], or None without dropout
    output,  # [N, S]
    tokens,
    spans,
    outputs,
    heads,
    table_rows,
    num_scores,  # S
    projected_stride,
    threshold,
    kept_share,
    start_block,
    end_block,
    mean_block,
    sum_block,
    attention_block,
    ACTIVATION: tl.constexpr,
    SCORES: tl.constexpr,  # of a program
    BANDED: tl.constexpr,
    ATTENTION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    _, there, start, end, valid, row = load_tile(starts, ends, rows, tl.program_id(0), tokens, spans, BLOCK_N)
    first_span = tl.program_id(0).to(tl.int64) * BLOCK_N
    first_score = tl.program_id(1).to(tl.int64) * SCORES
    score = tl.arange(0, SCORES)
    total = tl.zeros([BLOCK_N, SCORES], tl.float32)
    done = 0
    while done < outputs:
        column = done + tl.arange(0, C).to(tl.int64)
        inner = pre_activation(
            projected, scores, peaks, scales, width_projected, width_index, bias, None, first_span, there, start, end,
            valid, row, column, tokens, spans, outputs, heads, table_rows, projected_stride, 0, start_block, end_block,
            mean_block, sum_block, attention_block, BANDED, ATTENTION, BLOCK_N, BLOCK_K, C, PRECISION, INTERPRETED,
        )  # fmt: skip
        inner = activate(inner, ACTIVATION)
        if seed is not None:
            inner = tl.where(kept_entries(seed, threshold, row, done, BLOCK_N, C), inner / kept_share, 0.0)
        for i in tl.static_range(SCORES):
            used = (column < outputs) & (first_score + i < num_scores)
            weight = tl.load(out_weight + (first_score + i) * outputs + column, mask=used, other=0.0)
            dots = tl.sum(inner * weight.to(tl.float32)[None, :], 1)
            total += tl.where(score[None, :] == i, dots[:, None], 0.0)
        done += C
    place = output + row[:, None] * num_scores + first_score + score[None, :]
    mask = there[:, None] & (first_score + score < num_scores)[None, :]
    tl.store(place, total.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "threshold", "num_scores"))
def score_backward(
    projected,  # the arguments of score_forward; of `output` the gradients
    starts,
    ends,
    rows,
    scores,
    peaks,
    scales,
    width_projected,
    width_index,
    bias,
    out_weight,
    seed,
    grad_output,  # [all spans, S], dense rows
    grad,  # [N, O], before the activation, in the order of the spans
    partial_weight,  # [tiles, S, O], float32
    tokens,
    spans,
    outputs,
    heads,
    table_rows,
    num_scores,
    projected_stride,
    grad_stride,
    threshold,
    kept_share,
    start_block,
    end_block,
    mean_block,
    sum_block,
    attention_block,
    ACTIVATION: tl.constexpr,
    BANDED: tl.constexpr,
    ATTENTION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    column_blocks = tl.cdiv(outputs, C)
    tile = (tl.program_id(0) // column_blocks).to(tl.int64)
    done = tl.program_id(0) % column_blocks * C
    column = done + tl.arange(0, C).to(tl.int64)
    inside = column < outputs
    span, there, start, end, valid, row = load_tile(starts, ends, rows, tile, tokens, spans, BLOCK_N)
    before = pre_activation(
        projected, scores, peaks, scales, width_projected, width_index, bias, None, tile * BLOCK_N, there, start, end,
        valid, row, column, tokens, spans, outputs, heads, table_rows, projected_stride, 0, start_block, end_block,
        mean_block, sum_block, attention_block, BANDED, ATTENTION, BLOCK_N, BLOCK_K, C, PRECISION, INTERPRETED,
    )  # fmt: skip
    inner = activate(before, ACTIVATION)
    if seed is not None:
        kept = kept_entries(seed, threshold, row, done, BLOCK_N, C)
        inner = tl.where(kept, inner / kept_share, 0.0)
    inner = tl.where(there[:, None], inner, 0.0)  # no Inf for the rows behind the last span
    grads = tl.zeros([BLOCK_N, C], tl.float32)
    score = 0
    while score < num_scores:
        weight = tl.load(out_weight + score * outputs + column, mask=inside, other=0.0).to(tl.float32)
        incoming = tl.load(grad_output + row * grad_stride + score, mask=there, other=0.0).to(tl.float32)
        grads += incoming[:, None] * weight[None, :]
        place = partial_weight + (tile * num_scores + score) * outputs + column
        tl.store(place, tl.sum(incoming[:, None] * inner, 0), mask=inside)
        score += 1
    if seed is not None:
        grads = tl.where(kept, grads / kept_share, 0.0)
    grads = slope(before, grads, ACTIVATION)
    mask = there[:, None] & inside[None, :]
    tl.store(grad + span[:, None] * outputs + column[None, :], grads.to(grad.dtype.element_ty), mask=mask)
