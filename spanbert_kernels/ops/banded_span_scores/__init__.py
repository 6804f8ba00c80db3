"""Scores of all spans up to a width, from their first and last tokens: a band of the bilinear form start x end, and
what the two tokens add each for itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import documents
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.banded_span_scores import reference, terms
from spanbert_kernels.ops.choices import Backend

__all__ = ["banded_span_scores"]

OPERATION = Operation(
    "banded_span_scores",
    ("eager",),
    summary="bilinear and linear scores of starts and ends up to a width",
    instead=("eager", "it is a batched matrix product, which PyTorch's library does well everywhere"),
)


def banded_span_scores(
    start: Tensor | None,
    end: Tensor | None,
    weight: Tensor | None,
    max_width: int,
    cu_seqlens: Tensor | None = None,
    *,
    start_scores: Tensor | None = None,
    end_scores: Tensor | None = None,
    bias: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """`scores[t, w] = start[t] @ weight @ end[t + w] + start_scores[t] + end_scores[t + w] + bias`.

    They are the scores of the spans of `w + 1` tokens that begin at t, in O(T W) memory; the dense way forms `[T, T]`.
    There is no kernel of its own on any device: it is two matrix products, which PyTorch's library multiplies best. It
    can be differentiated any number of times. `top_spans` gives the best spans alone.

    Args:
        start: floating point `[T, H1]`, packed tokens as first tokens of spans; None, like end, where the scores are
            sums of those below.
        end: `[T, H2]`, packed tokens as last tokens.
        weight: `[H1, H2]`, or None for the identity (then H1 = H2).
        max_width: W, tokens in the widest span, at least 1.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents; by default all tokens are one.
        start_scores: `[T]`, added to the spans that begin at a token.
        end_scores: `[T]`, added to the spans that end at a token.
        bias: one number, `[]` or `[1]`, added to all.
        backend: the backend to use; there is one, `"eager"`.

    Returns:
        `[T, W]` in the dtype of start, summed in float32 (float64 for float64). Where `t + w` leaves the document the
        score is -inf, whose incoming gradient is not read. A score and its gradients depend on its own two tokens
        alone; where one of those is Inf or NaN, the gradient of the other is NaN.

    Raises:
        ValueError: shapes, `max_width` below 1, offsets that do not ascend from 0 to T, or nothing to add.
        TypeError: dtypes or devices.

    Source: the mention scores of Kirstain et al. 2021 (start-to-end), which form `[T, T]` and mask it.

    Example:
        >>> start, end = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [10.0], [100.0]])
        >>> banded_span_scores(start, end, None, max_width=2).tolist()
        [[1.0, 10.0], [20.0, 200.0], [300.0, -inf]]
        >>> banded_span_scores(None, None, None, 2, start_scores=start[:, 0], end_scores=end[:, 0]).tolist()
        [[2.0, 11.0], [12.0, 102.0], [103.0, -inf]]
    """
    given = terms.check_terms(start, end, weight, start_scores, end_scores, bias)
    terms.check_band(max_width, cu_seqlens, given)
    OPERATION.choose(given.like, backend)
    tokens, dtype = given.tokens, given.like.dtype
    if tokens == 0:
        nothing: Tensor = sum(tensor.sum() for tensor in given.given.values())  # type: ignore[assignment]
        return nothing.to(dtype).expand(0, max_width)
    # No span is wider than all tokens.
    width = min(max_width, tokens)
    ahead, behind = _neighbours(tokens, width, cu_seqlens, given.like.device)
    with torch.autocast(given.like.device.type, enabled=False):
        wide, scores = given.widened(), None
        if wide.start is not None:
            scores = Contraction.apply(None, wide.projected(), wide.end, ahead, behind)
        scores = wide.with_rank_one(scores, slice(0, tokens), width)
    scores = scores.to(dtype).masked_fill(~ahead, -torch.inf)
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
