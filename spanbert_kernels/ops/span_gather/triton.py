"""Span gathering in Triton.

The forward copies bits. A program owns a tile of output rows, so that spans of any widths balance, and finds each row's
span by a binary search in the offsets. A program of the backward owns one token and one block of columns and adds up
the rows of the spans that hold the token. They lie in the slice `reach[t] : first[t + 1]` of the sorted spans: no
atomics, a fixed order. Spans of the slice that end before the token are passed over without reading their rows; they
are few unless a document mixes very wide spans with many narrow ones.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.aot import AotConfiguration
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_gather.operators import span_gather_backward, span_gather_forward

COLUMNS = 256  # of a block: whole 128-byte lines of a row in every dtype
ROWS = 16  # of a tile of the forward, and spans that the backward takes at a time
NUM_WARPS = 4
NUM_STAGES = 2


@triton.jit
def gather_kernel(
    hidden,  # [T, H]
    starts,  # [N]
    ends,  # [N]
    offsets,  # [N + 1]
    output,  # [total, H]
    num_spans,
    total,
    columns,
    hidden_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
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
    token = tl.load(starts + span, mask=inside, other=0) + position
    real = inside & (token < tl.load(ends + span, mask=inside, other=0))

    column = tl.arange(0, COLUMNS)
    source = hidden + token[:, None] * hidden_stride + column[None, :]
    target = output + row[:, None] * columns + column[None, :]
    first = 0
    while first < columns:
        used = (first + column < columns)[None, :]
        values = tl.load(source + first, mask=real[:, None] & used, other=0)
        tl.store(target + first, values, mask=inside[:, None] & used, eviction_policy="evict_first")
        first += COLUMNS


@triton.jit
def gather_backward_kernel(
    grad_output,  # [total, H]
    starts,  # [N]
    ends,  # [N]
    rows,  # [N]
    first,  # [T + 1]
    reach,  # [T]
    offsets,  # [N + 1]
    grad_hidden,  # [T, H]
    columns,
    grad_stride,
    HAS_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    used = column < columns
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    begin = tl.load(reach + token)
    stop = tl.load(first + token + 1)
    while begin < stop:
        span = begin + tl.arange(0, ROWS)
        inside = span < stop
        holds = inside & (tl.load(ends + span, mask=inside, other=0) > token)
        place = span
        if HAS_ROWS:
            place = tl.load(rows + span, mask=holds, other=0)
        position = token - tl.load(starts + span, mask=holds, other=0)
        source = tl.load(offsets + place, mask=holds, other=0) + position
        address = grad_output + source[:, None] * grad_stride + column[None, :]
        sums += tl.load(address, mask=holds[:, None] & used[None, :], other=0.0).to(tl.float32)
        begin += ROWS
    total = tl.sum(sums, 0)
    tl.store(grad_hidden + token * columns + column, total.to(grad_hidden.dtype.element_ty), mask=used)


def dense_rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension is dense (the other stride is free), else a copy."""
    return tensor if tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 else tensor.contiguous()


@span_gather_forward.triton
def _forward(hidden: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, total: int) -> Tensor:
    columns = hidden.shape[1]
    output = hidden.new_empty(total, columns)
    if output.numel() == 0:
        return output
    # Bits are copied: one kernel serves all dtypes of a size.
    bits = {2: torch.int16, 4: torch.int32}[hidden.element_size()]
    hidden = dense_rows(hidden).view(bits)
    with torch.cuda.device_of(hidden):
        gather_kernel[(triton.cdiv(total, ROWS),)](
            hidden,
            starts,
            ends,
            offsets,
            output.view(bits),
            len(starts),
            total,
            columns,
            hidden.stride(0),
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
        )
    return output


@span_gather_backward.triton
def _backward(grad_output: Tensor, work: SpanWork, offsets: Tensor, num_tokens: int) -> Tensor:
    columns = grad_output.shape[1]
    grad_hidden = grad_output.new_empty(num_tokens, columns)
    if grad_hidden.numel() == 0:
        return grad_hidden
    grad_output = dense_rows(grad_output)
    with torch.cuda.device_of(grad_output):
        gather_backward_kernel[(num_tokens, triton.cdiv(columns, COLUMNS))](
            grad_output,
            work.starts,
            work.ends,
            work.starts if work.rows is None else work.rows,
            work.first,
            work.reach,
            offsets,
            grad_hidden,
            columns,
            grad_output.stride(0),
            HAS_ROWS=work.rows is not None,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
        )
    return grad_hidden


def aot_configurations() -> list[AotConfiguration]:
    """Every configuration that a launch can choose."""
    forward = [
        AotConfiguration(
            f"forward {8 * size} bits",
            gather_kernel,
            {
                "hidden": f"*i{8 * size}",
                **dict.fromkeys(("starts", "ends", "offsets"), "*i64"),
                "output": f"*i{8 * size}",
                **dict.fromkeys(("num_spans", "total", "columns", "hidden_stride"), "i64"),
                **dict.fromkeys(("ROWS", "COLUMNS"), "constexpr"),
            },
            {"ROWS": ROWS, "COLUMNS": COLUMNS},
            NUM_WARPS,
            NUM_STAGES,
            ("columns", "hidden_stride"),
        )
        for size in (2, 4)
    ]
    backward = [
        AotConfiguration(
            f"backward {dtype}{', rows' if has_rows else ''}",
            gather_backward_kernel,
            {
                "grad_output": f"*{dtype}",
                **dict.fromkeys(("starts", "ends", "rows", "first", "reach", "offsets"), "*i64"),
                "grad_hidden": f"*{dtype}",
                **dict.fromkeys(("columns", "grad_stride"), "i64"),
                **dict.fromkeys(("HAS_ROWS", "ROWS", "COLUMNS"), "constexpr"),
            },
            {"HAS_ROWS": has_rows, "ROWS": ROWS, "COLUMNS": COLUMNS},
            NUM_WARPS,
            NUM_STAGES,
            ("columns", "grad_stride"),
        )
        for dtype in ("fp32", "bf16", "fp16")
        for has_rows in (False, True)
    ]
    return forward + backward
