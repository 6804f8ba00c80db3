"""What the scores of spans are the sum of: a bilinear form of two tokens, a number for each of them, and a bias."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import checks


@dataclass(frozen=True)
class ScoreTerms:
    """`start [T, H1]`, `end [T, H2]`, `weight [H1, H2]`, `start_scores [T]`, `end_scores [T]`, `bias []`, any of them
    None; without a weight it is the identity.
    """

    start: Tensor | None
    end: Tensor | None
    weight: Tensor | None
    start_scores: Tensor | None
    end_scores: Tensor | None
    bias: Tensor | None

    @property
    def given(self) -> dict[str, Tensor]:
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def tokens(self) -> int:
        """T, of whatever is there."""
        return len(self.like)

    @property
    def like(self) -> Tensor:
        """One that stands for dtype and device."""
        return next(iter(self.given.values()))

    def widened(self) -> ScoreTerms:
        """In the dtype that sums are made in."""
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        return replace(self, **{name: tensor.to(dtype) for name, tensor in self.given.items()})

    def projected(self) -> Tensor:
        """The starts times the weight, `[T, H2]`."""
        assert self.start is not None
        return self.start if self.weight is None else self.start @ self.weight

    def with_rank_one(self, scores: Tensor | None, starts: slice, width: int) -> Tensor:
        """`scores [N, W]` of the spans that begin at some tokens, and what their two tokens add each for itself."""
        if self.start_scores is not None:
            scores = _sum(scores, self.start_scores[starts, None])
        if self.end_scores is not None:
            ends = self.end_scores[starts.start : starts.stop + width - 1]
            ends = F.pad(ends, (0, starts.stop - starts.start + width - 1 - len(ends)))
            scores = _sum(scores, ends.unfold(0, width, 1))
        assert scores is not None
        scores = scores if self.bias is None else scores + self.bias
        return scores.expand(-1, width)


def _sum(scores: Tensor | None, more: Tensor) -> Tensor:
    return more if scores is None else scores + more


def check_terms(
    start: Tensor | None,
    end: Tensor | None,
    weight: Tensor | None,
    start_scores: Tensor | None,
    end_scores: Tensor | None,
    bias: Tensor | None,
) -> ScoreTerms:
    """The terms, which fit each other."""
    if (start is None) != (end is None):
        raise ValueError("start and end come together: one of them is None")
    first = ("start", start) if start is not None else ("start_scores", start_scores)
    if first[1] is None:
        first = ("end_scores", end_scores)
    like_name, like = first
    if like is None:
        raise ValueError("start is None, and so are start_scores and end_scores: there is nothing to add")
    if start is not None and end is not None:
        _check_bilinear(start, end, weight)
    elif weight is not None:
        raise ValueError("weight stands between start and end, which are None")
    for name, scores in (("start_scores", start_scores), ("end_scores", end_scores)):
        if scores is not None:
            checks.check_floating(name, scores, 1, "[T]")
            checks.check_same(name, scores, like_name, like)
            if len(scores) != len(like):
                raise ValueError(f"{name} must hold one number for each of {len(like)} tokens, got {len(scores)}")
    if bias is not None:
        checks.check_tensor("bias", bias, "[] or [1]")
        checks.check_floating("bias", bias, bias.dim(), "[] or [1]")
        checks.check_same("bias", bias, like_name, like)
        if bias.dim() > 1 or bias.numel() != 1:
            raise ValueError(f"bias must be one number, [] or [1], got {list(bias.shape)}")
        bias = bias.reshape(())
    return ScoreTerms(start, end, weight, start_scores, end_scores, bias)


def _check_bilinear(start: Tensor, end: Tensor, weight: Tensor | None) -> None:
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


def check_band(max_width: int, cu_seqlens: Tensor | None, terms: ScoreTerms) -> None:
    """The width, and the documents of the tokens."""
    checks.check_integer("max_width", max_width, 1)
    if cu_seqlens is not None:
        checks.check_offsets("cu_seqlens", cu_seqlens, terms.tokens, "tokens")
        checks.check_device("cu_seqlens", cu_seqlens, next(iter(terms.given)), terms.like)
