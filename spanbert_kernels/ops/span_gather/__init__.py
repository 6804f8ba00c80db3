"""Span gathering: the tokens of every span, packed or padded."""

from __future__ import annotations

from torch import Tensor

from spanbert_kernels.ops import checks, plans
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.plans import SpanPlan
from spanbert_kernels.ops.span_gather import reference

__all__ = ["span_gather"]

OPERATION = Operation("span_gather", ("eager",))


def span_gather(
    hidden: Tensor,
    spans: Tensor | SpanPlan,
    *,
    end_inclusive: bool = True,
    padded: bool = False,
    validate: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The tokens `[start .. end]` of every span. Overlapping spans are welcome: a token's gradient is the sum over
    the spans that hold it.

    Args:
        hidden: floating point `[T, H]`, packed tokens.
        spans: int32 or int64 `[N, 2]` packed positions, or a plan.
        end_inclusive: the end of a span tensor is its last token (default), or the one after it.
        padded: return `[N, W, H]` with a mask instead of the packed rows.
        validate: check the range on any device (on a CPU it is always checked).
        backend: the backend to use; by default the best one here.

    Returns:
        `(tokens [sum of widths, H], offsets int64 [N + 1])`, or with `padded` `(tokens [N, W, H], mask bool [N, W])`,
        W the largest width and zeros beyond a span's end.

    Raises:
        ValueError: shapes, or a span outside the tokens (the first one is named).
        TypeError: dtypes or devices.

    Example:
        >>> import torch
        >>> hidden = torch.arange(4.0).view(4, 1)
        >>> tokens, offsets = span_gather(hidden, torch.tensor([[1, 2], [2, 3]]))
        >>> tokens.view(-1).tolist(), offsets.tolist()
        ([1.0, 2.0, 2.0, 3.0], [0, 2, 4])
    """
    checks.check_floating("hidden", hidden, 2, "[T, H]")
    resolved = plans.resolve(spans, hidden, end_inclusive, validate)
    start, end = resolved.bounds() if isinstance(resolved, SpanPlan) else resolved
    OPERATION.choose(hidden, backend)
    return reference.span_gather(hidden, start, end, padded)
