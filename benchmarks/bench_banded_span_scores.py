"""banded_span_scores for the spans of up to 30 tokens, H = 1024, float32, against the dense product and a mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import assert_agrees
from torch import Tensor

from spanbert_kernels import ops

MAX_WIDTH, HIDDEN = 30, 1024
Way = Callable[..., Tensor]


def inputs(length: int, weighted: bool) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, length, HIDDEN, generator=generator)
    weight = torch.randn(HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5
    return [start, end, weight if weighted else None]


def banded(start: Tensor, end: Tensor, weight: Tensor | None) -> Tensor:
    return ops.banded_span_scores(start, end, weight, MAX_WIDTH)


def dense(start: Tensor, end: Tensor, weight: Tensor | None) -> Tensor:
    """`[T, T]`, masked: what start-to-end coreference does."""
    scores = (start if weight is None else start @ weight) @ end.T
    token = torch.arange(len(start))
    outside = (token < token[:, None]) | (token >= token[:, None] + MAX_WIDTH)
    return scores.masked_fill(outside, -torch.inf)


def band_of(scores: Tensor) -> Tensor:
    """The dense scores inside the band, zeros outside the tokens, as `[T, W]`."""
    columns = torch.arange(len(scores))[:, None] + torch.arange(MAX_WIDTH)
    return scores.gather(1, columns.clamp(max=len(scores) - 1)).masked_fill(columns >= len(scores), 0)


@pytest.mark.parametrize("weighted", [True, False], ids=["weight", "no weight"])
@pytest.mark.parametrize("length", [512, 1536, 4096])
@torch.inference_mode()
def test_forward(compare: Callable[..., None], length: int, weighted: bool) -> None:
    tensors = inputs(length, weighted)
    exact = band_of(dense(*[t if t is None else t.double() for t in tensors]))
    ours = banded(*tensors)
    error = assert_agrees(ours.masked_fill(ours == -torch.inf, 0), band_of(dense(*tensors)), exact)
    compare(lambda: banded(*tensors), {"dense product": lambda: dense(*tensors)}, error=error)


@pytest.mark.parametrize("weighted", [True, False], ids=["weight", "no weight"])
@pytest.mark.parametrize("length", [1536, 4096])
def test_forward_and_backward(compare: Callable[..., None], length: int, weighted: bool) -> None:
    tensors = inputs(length, weighted)

    def gradient(way: Way, dtype: torch.dtype = torch.float32) -> Tensor:
        """Of the logarithm of the sum of the exponents, as a loss over spans has it; by the last tokens."""
        leaves = [t if t is None else t.to(dtype, copy=True).requires_grad_() for t in tensors]
        (way(*leaves) / 32).flatten().logsumexp(0).backward()
        found = leaves[1].grad if leaves[1] is not None else None
        assert found is not None
        return found

    error = assert_agrees(gradient(banded), gradient(dense), gradient(dense, torch.float64))
    compare(lambda: gradient(banded), {"dense product": lambda: gradient(dense)}, error=error)
