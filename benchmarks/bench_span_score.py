"""The mention scorer of coreference models against everything that users take instead.

All spans of up to 30 tokens of a document of 512 (14,925), `[start; end; attention; width]` of H = 768 and 20 columns
for the width, 3000 hidden units, relu, one score; float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from baselines import RaggedTokens, all_spans, dense_attention, endpoints_and_attention
from conftest import Goal, assert_agrees
from memory import Peak, peaks
from torch import Tensor

from spanbert_kernels import ops

LENGTH, MAX_WIDTH, HIDDEN, UNITS, WIDTH_COLUMNS = 512, 30, 768, 3000, 20
PARTS = ["start", "end", "attention", "width"]
EAGER = "pool, then two layers"
# The best that users take; projecting first is this package's own way, in plain PyTorch, and stands beside it.
BEST = "dense product, two layers"
Ways = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Case:
    goals: Sequence[Goal]
    backward: bool


CASES = {
    "forward": Case([Goal(35, against=EAGER), Goal(12, against=BEST)], False),
    "forward and backward": Case([Goal(20, against=EAGER), Goal(8, against=BEST)], True),
}


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Hidden states, scores, a table of widths, the first layer's weight and bias, the second's weight."""
    generator = torch.Generator().manual_seed(0)
    columns = 3 * HIDDEN + WIDTH_COLUMNS
    shapes = ((LENGTH, HIDDEN), (LENGTH,), (MAX_WIDTH, WIDTH_COLUMNS), (UNITS, columns), (UNITS,), (1, UNITS))
    scales = (1.0, 1.0, 1.0, columns**-0.5, 0.1, UNITS**-0.5)
    return [
        (scale * torch.randn(shape, generator=generator)).to(dtype) for shape, scale in zip(shapes, scales, strict=True)
    ]


def two_layers(pooled: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(pooled, weight, bias)), out_weight)


class ProjectInChunks:
    """Plain PyTorch that projects the tokens first, then adds up projected rows for a chunk of spans at a time."""

    def __init__(self, spans: Tensor, rows: int = 512) -> None:
        self.chunks = [(chunk, RaggedTokens(chunk)) for chunk in spans.split(rows)]

    def __call__(
        self, hidden: Tensor, scores: Tensor, table: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor
    ) -> Tensor:
        blocks = weight.split([HIDDEN] * 3 + [WIDTH_COLUMNS], 1)
        start, end, attention = (hidden @ block.T for block in blocks[:3])
        width = table @ blocks[3].T + bias
        found = []
        for spans, ragged in self.chunks:
            first, last = spans.unbind(1)
            inner = start[first] + end[last] + width[last - first] + ragged.bag_weighted(attention, scores)
            found.append(F.relu(inner) @ out_weight.T)
        return torch.cat(found)


def alternatives(spans: Tensor) -> dict[str, Callable[..., Tensor]]:
    """Ways by name, of `inputs()`; the first is eager PyTorch's."""

    def dense(hidden: Tensor, scores: Tensor, table: Tensor, *layers: Tensor) -> Tensor:
        first, last = spans.unbind(1)
        pooled = dense_attention(hidden, spans, scores)
        return two_layers(torch.cat((hidden[first], hidden[last], pooled, table[last - first]), 1), *layers)

    return {
        EAGER: lambda h, s, t, *layers: two_layers(endpoints_and_attention(h, spans, s, t), *layers),
        BEST: dense,
        "project, add in chunks": ProjectInChunks(spans),
    }


def ours(hidden: Tensor, scores: Tensor, table: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    plan = ops.enumerate_spans(torch.tensor([0, LENGTH]), MAX_WIDTH)
    return ops.span_score(hidden, plan, PARTS, weight, bias, out_weight, None, scores, table)


def run(way: Callable[..., Tensor], case: Case, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """A way ready to call; with gradients it returns all of them in a row."""
    leaves = inputs(dtype)

    def forward() -> Tensor:
        with torch.inference_mode():
            return way(*leaves)

    if not case.backward:
        return forward
    for leaf in leaves:
        leaf.requires_grad_()
    count = len(all_spans(LENGTH, MAX_WIDTH))
    grad = torch.randn(count, 1, generator=torch.Generator().manual_seed(1)).to(dtype)

    def backward() -> Tensor:
        return torch.cat([each.flatten() for each in torch.autograd.grad(way(*leaves), leaves, grad)])

    return backward


def ways(name: str) -> Ways:
    """Ours and the baselines of a case, ready to call."""
    found = {"ours": ours, **alternatives(all_spans(LENGTH, MAX_WIDTH))}
    return {each: run(way, CASES[name]) for each, way in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_scorer(compare: Callable[..., None], name: str) -> None:
    measured = peaks("bench_span_score", name, ["ours", EAGER])  # while this process itself is small
    case, every = CASES[name], ways(name)
    mine = every.pop("ours")
    exact = run(alternatives(all_spans(LENGTH, MAX_WIDTH))["project, add in chunks"], case, torch.float64)()
    error = assert_agrees(mine(), every[EAGER](), exact)
    for other, way in every.items():
        # By their norm: where a unit is all but 0, rounding decides on which side of relu's kink it falls.
        deviation = float((way().double() - exact).norm() / exact.norm())
        assert deviation < 1e-3, f"{other} computes something else: {deviation:.2g} of the norm"
    compare(mine, every, error=error, goals=case.goals, peak=Peak(measured, fraction=0.1, fraction_of=EAGER))
