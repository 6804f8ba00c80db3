"""Span gathering: the tokens of every span, packed or padded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops import checks, library, plans
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.plans import SpanPlan, SpanWork
from spanbert_kernels.ops.span_gather import reference

__all__ = ["span_gather"]

OPERATION = Operation("span_gather", ("cuda", "triton", "cpu", "eager"))

# Both forms are one operation on rows. `offsets`, int64 `[N + 1]`, gives every span its rows of the output: rows
# `offsets[n] : offsets[n + 1]` hold the tokens `starts[n] : ends[n]` and zeros behind them. Packed, the offsets are the
# running sum of the widths; padded, the multiples of the largest.
#
# The forward takes the spans in the order of the output (int64 `[N]`, `0 <= starts <= ends <= T`; a span without tokens
# is (0, 0)), and `total = offsets[N]`, the rows of the output.
_FORWARD = "(Tensor hidden, Tensor starts, Tensor ends, Tensor offsets, SymInt total) -> Tensor"
# The backward takes them as SpanWork has them: the CPU kernel in the order of the output, a GPU kernel sorted. Entry i
# is span n = rows[i] of the output (n = i without rows), and token t's gradient is the sum over the spans that hold it
# of `grad_output[offsets[n] + t - starts[i]]`. Returns `[num_tokens, H]` in the dtype of grad_output.
_BACKWARD = f"(Tensor grad_output, {plans.SPANS_SCHEMA}, Tensor offsets, SymInt num_tokens) -> Tensor"


def _forward_fake(hidden: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, total: int) -> Tensor:
    return hidden.new_empty(total, hidden.shape[1])


def _backward_fake(
    grad_output: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    rows: Tensor | None,
    cu_seqlens: Tensor | None,
    first: Tensor | None,
    reach: Tensor | None,
    num_spans: int,
    max_width: int,
    offsets: Tensor,
    num_tokens: int,
) -> Tensor:
    return grad_output.new_empty(num_tokens, grad_output.shape[1])


library.define("span_gather_forward", _FORWARD, _forward_fake, OPERATION.backends)
library.define("span_gather_backward", _BACKWARD, _backward_fake, OPERATION.backends)


def span_gather(
    hidden: Tensor,
    spans: Tensor | SpanPlan,
    *,
    end_inclusive: bool = True,
    padded: bool = False,
    validate: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """The tokens `[start .. end]` of every span. Overlapping spans are welcome: a token's gradient is the sum over
    the spans that hold it.

    Args:
        hidden: `[T, H]`, packed tokens; float32, bfloat16, float16 or float64.
        spans: int32 or int64 `[N, 2]` packed positions, or a plan. The size of the result depends on the widths: a span
            tensor on a GPU costs one synchronisation to read it, a plan has it.
        end_inclusive: the end of a span tensor is its last token (default), or the one after it.
        padded: return `[N, W, H]` with a mask instead of the packed rows.
        validate: check the range on any device (on a CPU it is always checked).
        backend: the backend to use; by default the best one here.

    Returns:
        `(tokens [sum of widths, H], offsets int64 [N + 1])`, or with `padded` `(tokens [N, W, H], mask bool [N, W])`,
        W the largest width and zeros beyond a span's end.

    Gradients are summed in float32 (float64 for float64), in a fixed order; they can be differentiated again.

    Raises:
        ValueError: shapes, or a span outside the tokens (the first one is named).
        TypeError: dtypes or devices.

    Source: the padded form is the `[N, W, H]` of span tokens that Lee et al. 2017 attend over; the packed one is that
    without its padding.

    Example:
        >>> import torch
        >>> hidden = torch.arange(4.0).view(4, 1)
        >>> tokens, offsets = span_gather(hidden, torch.tensor([[1, 2], [2, 3]]))
        >>> tokens.view(-1).tolist(), offsets.tolist()
        ([1.0, 2.0, 2.0, 3.0], [0, 2, 4])
    """
    checks.check_floating("hidden", hidden, 2, "[T, H]")
    checks.check_flag("padded", padded)
    resolved = plans.resolve(spans, hidden, end_inclusive, validate)
    chosen = OPERATION.choose(hidden, backend)
    start, end = resolved.bounds() if isinstance(resolved, SpanPlan) else resolved
    if chosen == "eager":
        return reference.span_gather(hidden, start, end, padded)

    inside = (end > start) & (start >= 0) & (end <= hidden.shape[0])
    start, end = torch.where(inside, start, 0), torch.where(inside, end, 0)
    widths = end - start
    if isinstance(resolved, SpanPlan):
        rows, width = resolved.total_width, resolved.max_width
    else:
        rows, width = _read_sizes(widths)
    if padded:
        rows = len(start) * width
        offsets = torch.arange(len(start) + 1, device=hidden.device) * width
    else:
        offsets = torch.cat([widths.new_zeros(1), widths.cumsum(0)])  # [N + 1]

    work = SpanWork(None, None, None, None, None, None, len(start), width)
    if chosen != "cpu" and hidden.requires_grad and torch.is_grad_enabled():  # only a GPU's backward wants them sorted
        work = plans.work_for(resolved if isinstance(resolved, SpanPlan) else (start, end), chosen, hidden.shape[0])
    tokens: Tensor = SpanGather.apply(hidden, start, end, offsets, rows, chosen, *work)
    if not padded:
        return tokens, offsets
    mask = torch.arange(width, device=hidden.device) < widths[:, None]  # [N, W]
    return tokens.view(len(start), width, hidden.shape[1]), mask


def _read_sizes(widths: Tensor) -> tuple[int, int]:
    """Sum and largest of the widths: the one look at values on the host."""
    if len(widths) == 0:
        return 0, 0
    total, largest = torch.stack([widths.sum(), widths.max()]).tolist()
    torch._check(total >= 0)
    torch._check(largest >= 0)
    return total, largest


class SpanGather(torch.autograd.Function):
    """The compiled kernels under autograd: `hidden [T, H]` to rows `[total, H]`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, start: Tensor, end: Tensor, offsets: Tensor, total: int, backend: str, *work: Any
    ) -> Tensor:
        ctx.save_for_backward(start, end, offsets, *work[:6])
        ctx.total, ctx.num_tokens, ctx.backend, ctx.sizes = total, hidden.shape[0], backend, work[6:]
        tokens: Tensor = library.raw("span_gather_forward", backend)(hidden, start, end, offsets, total)
        return tokens

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        start, end, offsets, *tensors = ctx.saved_tensors
        work = (*tensors, *ctx.sizes)
        grad: Tensor = SpanGatherBackward.apply(
            grad_output, start, end, offsets, ctx.total, ctx.num_tokens, ctx.backend, *work
        )
        return (grad, *[None] * (len(work) + 5))


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
        num_tokens: int,
        backend: str,
        *work: Any,
    ) -> Tensor:
        ctx.save_for_backward(start, end, offsets, *work[:6])
        ctx.total, ctx.backend, ctx.sizes = total, backend, work[6:]
        if backend == "cpu":
            work = (start, end, *work[2:])
        grad: Tensor = library.raw("span_gather_backward", backend)(grad_output, *work, offsets, num_tokens)
        return grad

    @staticmethod
    def backward(ctx: Any, grad_hidden: Tensor) -> tuple[Tensor | None, ...]:
        start, end, offsets, *tensors = ctx.saved_tensors
        work = (*tensors, *ctx.sizes)
        again: Tensor = SpanGather.apply(grad_hidden, start, end, offsets, ctx.total, ctx.backend, *work)
        return (again, *[None] * (len(work) + 6))
