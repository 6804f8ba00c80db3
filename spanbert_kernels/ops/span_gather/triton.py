"""Span gathering in Triton.

The forward copies bits. A program owns a tile of output rows, so that spans of any widths balance, and finds each row's
span by a binary search in the offsets. A program of the backward owns one token and one block of columns and adds up
the rows of the spans that hold the token. They lie in the slice `reach[t] : first[t + 1]` of the sorted spans: no
atomics, a fixed order. Spans of the slice that end before the token are passed over without reading their rows; they
are few unless a document mixes very wide spans with many narrow ones.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.aot import DTYPES, AotConfiguration, configurations_of, meta, meta_spans
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_gather.operators import span_gather_backward, span_gather_forward
from spanbert_kernels.ops.triton_arguments import Options, Spans, Tiling, dense_rows, matrix, on, spans_of

# K: spans that the backward takes at a time; D: whole 128-byte lines of a row in every dtype.
OPTIONS = Options(Tiling(M=16, K=16, D=256), num_warps=4, num_stages=2)


@triton.jit
def gather_kernel(
    hidden,  # [T, H]
    spans,
    offsets,  # [N + 1]
    output,  # [total, H]
    num_spans,
    total,
    columns,
    BLOCK,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK.M + tl.arange(0, BLOCK.M)
    inside = row < total
    # The last span that begins at or before the row lies in span : span + candidates.
    span = row * 0
    candidates = num_spans
    while candidates > 1:
        half = candidates // 2
        before = tl.load(offsets + span + half, mask=inside, other=0) <= row
        span = tl.where(before, span + half, span)
        candidates = candidates - half
    position = row - tl.load(offsets + span, mask=inside, other=0)
    token = tl.load(spans.starts + span, mask=inside, other=0) + position
    real = inside & (token < tl.load(spans.ends + span, mask=inside, other=0))

    column = tl.arange(0, BLOCK.D)
    source = hidden.data + token[:, None] * hidden.stride + column[None, :]
    target = output + row[:, None] * columns + column[None, :]
    first = 0
    while first < columns:
        used = (first + column < columns)[None, :]
        values = tl.load(source + first, mask=real[:, None] & used, other=0)
        tl.store(target + first, values, mask=inside[:, None] & used, eviction_policy="evict_first")
        first += BLOCK.D


@triton.jit
def gather_backward_kernel(
    grad_output,  # [total, H]
    spans,
    offsets,  # [N + 1]
    grad_hidden,  # [T, H]
    columns,
    BLOCK,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK.D + tl.arange(0, BLOCK.D)
    used = column < columns
    sums = tl.zeros([BLOCK.K, BLOCK.D], tl.float32)
    begin = tl.load(spans.reach + token)
    stop = tl.load(spans.first + token + 1)
    while begin < stop:
        span = begin + tl.arange(0, BLOCK.K)
        inside = span < stop
        holds = inside & (tl.load(spans.ends + span, mask=inside, other=0) > token)
        place = span
        if spans.rows is not None:
            place = tl.load(spans.rows + span, mask=holds, other=0)
        position = token - tl.load(spans.starts + span, mask=holds, other=0)
        source = tl.load(offsets + place, mask=holds, other=0) + position
        address = grad_output.data + source[:, None] * grad_output.stride + column[None, :]
        sums += tl.load(address, mask=holds[:, None] & used[None, :], other=0.0).to(tl.float32)
        begin += BLOCK.K
    total = tl.sum(sums, 0)
    tl.store(grad_hidden + token * columns + column, total.to(grad_hidden.dtype.element_ty), mask=used)


@span_gather_forward.triton
def forward(hidden: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, total: int) -> Tensor:
    columns = hidden.shape[1]
    output = hidden.new_empty(total, columns)
    if output.numel() == 0:
        return output
    # Bits are copied: one kernel serves all dtypes of a size.
    bits = {2: torch.int16, 4: torch.int32}[hidden.element_size()]
    with on(hidden.device):
        gather_kernel[(triton.cdiv(total, OPTIONS.block.M),)](
            matrix(dense_rows(hidden).view(bits)),
            Spans(starts, ends, None, None, None),
            offsets,
            output.view(bits),
            len(starts),
            total,
            columns,
            **OPTIONS.arguments,
        )
    return output


@span_gather_backward.triton
def backward(grad_output: Tensor, work: SpanWork, offsets: Tensor, num_tokens: int) -> Tensor:
    columns = grad_output.shape[1]
    grad_hidden = grad_output.new_empty(num_tokens, columns)
    if grad_hidden.numel() == 0:
        return grad_hidden
    with on(grad_output.device):
        gather_backward_kernel[(num_tokens, triton.cdiv(columns, OPTIONS.block.D))](
            matrix(grad_output),
            spans_of(work),
            offsets,
            grad_hidden,
            columns,
            **OPTIONS.arguments,
        )
    return grad_hidden


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile, in every dtype, with and without rows."""
    sorted_spans, enumeration = meta_spans(1000, 2000), meta_spans(1000, 2000, enumerated=True)
    bounds = meta(1001, dtype=torch.int64)
    calls: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        hidden, output = meta(2000, 1024, dtype=dtype), meta(7001, 1024, dtype=dtype)
        calls[name] = partial(forward, hidden, bounds, bounds, bounds, len(output))
        calls[f"{name}, rows"] = partial(backward, output, sorted_spans, bounds, len(hidden))
        calls[f"{name}, no rows"] = partial(backward, output, enumeration, bounds, len(hidden))
    return configurations_of(calls)
