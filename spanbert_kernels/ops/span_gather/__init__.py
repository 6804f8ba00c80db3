"""Span gathering: the tokens of every span, packed or padded."""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_kernels.ops import checks, plans
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.plans import SpanPlan, SpanWork
from spanbert_kernels.ops.span_gather import reference
from spanbert_kernels.ops.span_gather.operators import OPERATION, SpanGather

__all__ = ["span_gather"]


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
    tokens: Tensor = SpanGather.apply(hidden, start, end, offsets, rows, chosen, work)
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
