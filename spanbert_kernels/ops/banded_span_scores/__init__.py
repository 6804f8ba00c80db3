"""Scores of all spans up to a width, from their first and last tokens: a band of the bilinear form start x end."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import checks, documents
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.banded_span_scores import reference
from spanbert_kernels.ops.choices import Backend

__all__ = ["banded_span_scores"]

OPERATION = Operation(
    "banded_span_scores",
    ("eager",),
    summary="bilinear scores of starts and ends up to a width",
    instead=("eager", "it is a batched matrix product, which PyTorch's library does well everywhere"),
)


def banded_span_scores(
    start: Tensor,
    end: Tensor,
    weight: Tensor | None,
    max_width: int,
    cu_seqlens: Tensor | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """`scores[t, w] = start[t] @ weight @ end[t + w]`, the scores of the spans of `w + 1` tokens that begin at t.

    In O(T W) memory; the dense way forms `[T, T]`. There is no kernel of its own on any device: it is two matrix
    products, which PyTorch's library multiplies best. It can be differentiated any number of times.

    Args:
        start: floating point `[T, H1]`, packed tokens as first tokens of spans.
        end: `[T, H2]`, packed tokens as last tokens.
        weight: `[H1, H2]`, or None for the identity (then H1 = H2).
        max_width: W, tokens in the widest span, at least 1.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents; by default all tokens are one.
        backend: the backend to use; there is one, `"eager"`.

    Returns:
        `[T, W]` in the dtype of start, summed in float32 (float64 for float64). Where `t + w` leaves the document the
        score is -inf, whose incoming gradient is not read. A score and its gradients depend on its own two tokens
        alone; where one of those is Inf or NaN, the gradient of the other is NaN.

    Raises:
        ValueError: shapes, `max_width` below 1, or offsets that do not ascend from 0 to T.
        TypeError: dtypes or devices.

    Source: the mention scores of Kirstain et al. 2021 (start-to-end), which form `[T, T]` and mask it.

    Example:
        >>> start, end = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [10.0], [100.0]])
        >>> banded_span_scores(start, end, None, max_width=2).tolist()
        [[1.0, 10.0], [20.0, 200.0], [300.0, -inf]]
    """
    _check(start, end, weight, max_width, cu_seqlens)
    OPERATION.choose(start, backend)
    tokens, dtype = start.shape[0], torch.promote_types(start.dtype, torch.float32)
    if tokens == 0:
        return (start.sum() + end.sum()).to(start.dtype).expand(0, max_width)
    # No span is wider than all tokens.
    width = min(max_width, tokens)
    ahead, behind = _neighbours(tokens, width, cu_seqlens, start.device)
    with torch.autocast(start.device.type, enabled=False):
        first, last = start.to(dtype), end.to(dtype)
        projected = first if weight is None else first @ weight.to(dtype)
        scores: Tensor = Contraction.apply(None, projected, last, ahead, behind)
    scores = scores.to(start.dtype).masked_fill(~ahead, -torch.inf)
    return F.pad(scores, (0, max_width - width), value=-torch.inf)


class Contraction(torch.autograd.Function):
    """The derivative of `sum of scores[t, w] (start[t] . end[t + w])` by the one of the three that is None.

    Its own derivative by another one is the same sum with the incoming gradient in the missing place and that other
    one missing: nothing but the inputs is kept, and every derivative is one more of these.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor | None, start: Tensor | None, end: Tensor | None, ahead: Tensor, behind: Tensor
    ) -> Tensor:
        ctx.save_for_backward(scores, start, end, ahead, behind)
        return reference.contract(scores, start, end, ahead, behind)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        *given, ahead, behind = ctx.saved_tensors
        form = [grad_output if each is None else each for each in given]
        grads: list[Tensor | None] = [None, None, None]
        with torch.autocast(grad_output.device.type, enabled=False):
            for place, each in enumerate(given):
                if each is not None and ctx.needs_input_grad[place]:
                    others = [None if other == place else tensor for other, tensor in enumerate(form)]
                    grads[place] = Contraction.apply(*others, ahead, behind)
        return (*grads, None, None)


def _neighbours(tokens: int, width: int, cu_seqlens: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Whether token `t + w`, and whether token `t - w`, is in the document of t; bool `[T, W]` each."""
    token = torch.arange(tokens, device=device)
    begin, end = torch.zeros_like(token), torch.full_like(token, tokens)
    if cu_seqlens is not None:
        document = documents.document_of(cu_seqlens, tokens)
        begin, end = cu_seqlens[:-1].long()[document], cu_seqlens[1:].long()[document]
    step = torch.arange(width, device=device)
    return token[:, None] + step < end[:, None], token[:, None] - step >= begin[:, None]


def _check(start: Tensor, end: Tensor, weight: Tensor | None, max_width: int, cu_seqlens: Tensor | None) -> None:
    checks.check_floating("start", start, 2, "[T, H1]")
    checks.check_floating("end", end, 2, "[T, H2]")
    checks.check_same("end", end, "start", start)
    if end.shape[0] != start.shape[0]:
        raise ValueError(f"end must have the {start.shape[0]} tokens of start, got {list(end.shape)}")
    if weight is None and end.shape[1] != start.shape[1]:
        raise ValueError(f"without a weight, end must have the {start.shape[1]} columns of start, got {end.shape[1]}")
    if weight is not None:
        checks.check_floating("weight", weight, 2, "[H1, H2]")
        checks.check_same("weight", weight, "start", start)
        if weight.shape != (start.shape[1], end.shape[1]):
            raise ValueError(f"weight must be {[start.shape[1], end.shape[1]]}, got {list(weight.shape)}")
    checks.check_integer("max_width", max_width, 1)
    if cu_seqlens is not None:
        checks.check_offsets("cu_seqlens", cu_seqlens, start.shape[0], "tokens")
        checks.check_device("cu_seqlens", cu_seqlens, "start", start)
