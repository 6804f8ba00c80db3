"""What stands around the attention of anchors in its sub-layer, in Triton and without autograd.

Before it each document's anchor is found, taken from the hidden states and normalized; behind it the update is added to
the anchors' rows in place. A launch each.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.aot import meta
from spanbert_kernels.ops.attention.triton_lists import bounds_of
from spanbert_kernels.ops.choices import Anchor
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.triton_arguments import Matrix, Options, Tiling, contiguous, matrix, on
from spanbert_kernels.ops.triton_masks import only_if
from spanbert_kernels.ops.triton_norm import load_chunk, moments, normal_chunk, options

ADDED = Options(Tiling(M=1, K=1, D=1024))  # 16 bytes of bfloat16 a thread


@triton.jit(do_not_specialize=("num_documents", "num_tokens", "num_rows", "first"))
def anchors_norm(
    hidden,  # [rows, H]
    offsets,  # [documents + 1]
    offset_stride,
    rows,  # int64 [tokens], or None: they lie in order
    weight,  # [H]
    bias,  # [H], or None
    output,  # [documents, H]
    places,  # int64 [documents]: the row of each anchor, -1 where there is none
    num_documents,
    num_tokens,
    num_rows,
    first,  # whether a document's first token is its anchor, and not its last
    columns,
    eps,
    BLOCK,
):
    document = tl.program_id(0) * BLOCK.M + tl.arange(0, BLOCK.M)
    there = document < num_documents
    begin, end = bounds_of(offsets, offset_stride, document, there, num_tokens, True)
    real = there & (end > begin)
    place = tl.where(first > 0, begin, end - 1)
    if rows is not None:
        place = tl.load(rows + place, mask=real, other=0)
    real = real & (place >= 0) & (place < num_rows)
    tl.store(places + document, tl.where(real, place, -1), mask=there)
    totals = ()  # type: Any
    level = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    for i in tl.static_range(BLOCK.CHUNKS):
        column = i * BLOCK.D + tl.arange(0, BLOCK.D)
        total = load_chunk(hidden, place, column, real[:, None] & (column < columns)[None, :])
        level += total
        totals += (total,)
    mean, rstd = moments(totals, level, columns, eps, BLOCK)
    for i in tl.static_range(BLOCK.CHUNKS):
        column = i * BLOCK.D + tl.arange(0, BLOCK.D)
        normal = normal_chunk(totals[i], mean, rstd, weight, bias, document, column, columns)
        target = output + document.to(tl.int64)[:, None] * columns + column[None, :]
        tl.store(target, normal.to(output.dtype.element_ty), mask=there[:, None] & (column < columns)[None, :])


@triton.jit
def hyperbolic_tangent(x):
    """Of a number in float32: near 0, where gates begin, by its series, whose rest is below 1e-11 of it."""
    square = x * x
    series = x + x * square * (-1.0 / 3 + square * (2.0 / 15 - square * (17.0 / 315)))
    return tl.where(tl.abs(x) < 0.1, series, 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0))


@triton.jit
def add_at_places(hidden, update, gate, places, columns, BLOCK):
    """A document a program, and D columns."""
    document = tl.program_id(0).to(tl.int64)
    place = tl.load(places + document)
    column = tl.program_id(1) * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = only_if(place >= 0, column < columns)
    share = hyperbolic_tangent(tl.load(gate).to(tl.float32))
    added = tl.load(update.data + document * update.stride + column, mask=inside, other=0.0).to(tl.float32)
    target = hidden.data + place * hidden.stride + column
    value = tl.load(target, mask=inside, other=0.0).to(tl.float32) + share * added
    tl.store(target, value.to(hidden.data.dtype.element_ty), mask=inside)


def normalized_anchors(
    hidden: Tensor, cu_seqlens: Tensor, anchor: Anchor, rows: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The row of each document's anchor in `hidden`, int64 `[D]`, -1 where there is none, and the LayerNorm of what
    stands there, `[D, H]`, of zeros where there is none.

    `hidden [R, H]` has its columns side by side; `rows` is int64 `[T]`, or the tokens lie in order.
    """
    documents, columns = cu_seqlens.shape[0] - 1, hidden.shape[1]
    places = hidden.new_empty(documents, dtype=torch.int64)
    output = hidden.new_empty(documents, columns)
    chosen = options(columns, hidden.dtype, False)
    with on(hidden.device):
        start(anchors_norm, triton.cdiv(documents, chosen.block.M))(
            hidden=Matrix(hidden, hidden.stride(0)),
            offsets=cu_seqlens,
            offset_stride=cu_seqlens.stride(0),
            rows=contiguous(rows),
            weight=weight.contiguous(),
            bias=bias.contiguous(),
            output=output,
            places=places,
            num_documents=documents,
            num_tokens=hidden.shape[0] if rows is None else rows.shape[0],
            num_rows=hidden.shape[0],
            first=int(anchor == "first"),
            columns=columns,
            eps=eps,
            **chosen.arguments,
        )
    return places, output


def add_update(hidden: Tensor, places: Tensor, update: Tensor, gate: Tensor) -> None:
    """`hidden[places] += tanh(gate) * update`, in place and in float32; no two places are the same, -1 is none."""
    with on(hidden.device):
        start(add_at_places, len(places), triton.cdiv(hidden.shape[1], ADDED.block.D))(
            hidden=Matrix(hidden, hidden.stride(0)),
            update=matrix(update),
            gate=gate,
            places=places,
            columns=hidden.shape[1],
            **ADDED.arguments,
        )


def _both(columns: int, dtype: torch.dtype) -> None:
    hidden, weight, rows = meta(9000, columns, dtype=dtype), meta(columns, dtype=dtype), meta(9000, dtype=torch.int64)
    offsets = meta(2001, dtype=torch.int32)
    places, update = normalized_anchors(hidden, offsets, "last", rows, weight, weight, 1e-12)
    add_update(hidden, places, update, meta(1, dtype=dtype))


def aot_calls() -> dict[str, Any]:
    """Of rows of one warp and of several, of each number of chunks."""
    sizes = ((768, torch.bfloat16), *((columns, torch.float32) for columns in (256, 768, 1024, 6144)))
    return {
        f"{str(dtype).removeprefix('torch.')} {columns}{', seldom' * (dtype == torch.float32)}": partial(
            _both, columns, dtype
        )
        for columns, dtype in sizes
    }
