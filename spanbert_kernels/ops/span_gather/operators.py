"""The raw operators of span_gather, and them under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import ROWS, Operation
from spanbert_kernels.ops.operators import gradients, raw, save, saved
from spanbert_kernels.ops.plans import SpanWork

OPERATION = Operation("span_gather", ROWS, summary="the tokens of each span, packed or padded")

# Both forms are one operation on rows. `offsets`, int64 `[N + 1]`, gives every span its rows of the output: rows
# `offsets[n] : offsets[n + 1]` hold the tokens `starts[n] : ends[n]` and zeros behind them. Packed, the offsets are the
# running sum of the widths; padded, the multiples of the largest.


@raw(OPERATION)
def span_gather_forward(hidden: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, total: int) -> Tensor:
    # Spans in the order of the output (int64 `[N]`, `0 <= starts <= ends <= T`; a span without tokens is (0, 0)), and
    # `total = offsets[N]`, the rows of the output.
    return hidden.new_empty(total, hidden.shape[1])


@raw(OPERATION)
def span_gather_backward(grad_output: Tensor, work: SpanWork, offsets: Tensor, num_tokens: int) -> Tensor:
    # The CPU kernel takes the spans in the order of the output, a GPU kernel sorted. Entry i is span n = rows[i] of the
    # output (n = i without rows), and token t's gradient is the sum over the spans that hold it of
    # `grad_output[offsets[n] + t - starts[i]]`: `[num_tokens, H]` in the dtype of grad_output.
    return grad_output.new_empty(num_tokens, grad_output.shape[1])


class SpanGather(torch.autograd.Function):
    """The compiled kernels under autograd: `hidden [T, H]` to rows `[total, H]`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, start: Tensor, end: Tensor, offsets: Tensor, total: int, backend: str, work: SpanWork
    ) -> Tensor:
        save(ctx, start, end, offsets, total, backend, work, hidden.shape[0])
        tokens: Tensor = span_gather_forward(backend, hidden, start, end, offsets, total)
        return tokens

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(ctx, SpanGatherBackward.apply(grad_output, *saved(ctx)))


class SpanGatherBackward(torch.autograd.Function):
    """The gradient, `[total, H]` to `[T, H]`. It is linear, and its own gradient is the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        start: Tensor,
        end: Tensor,
        offsets: Tensor,
        total: int,
        backend: str,
        work: SpanWork,
        num_tokens: int,
    ) -> Tensor:
        save(ctx, start, end, offsets, total, backend, work)
        if backend == "cpu":
            work = work._replace(starts=start, ends=end)
        grad: Tensor = span_gather_backward(backend, grad_output, work, offsets, num_tokens)
        return grad

    @staticmethod
    def backward(ctx: Any, grad_hidden: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(ctx, SpanGather.apply(grad_hidden, *saved(ctx)))
