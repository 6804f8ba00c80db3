"""banded_span_scores for the spans of up to 30 tokens, H = 1024, against the dense product and a mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from registry import BOTH, Inputs, Prepared, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

MAX_WIDTH, HIDDEN = 30, 1024
DENSE = "dense product"


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    generator, length = torch.Generator().manual_seed(0), workload.options["length"]
    start, end = torch.randn(2, length, HIDDEN, generator=generator).to(dtype)
    weight = (torch.randn(HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5).to(dtype)
    numbers = torch.randn(2, length, generator=generator).to(dtype) if workload.options["numbers"] else ()
    return Inputs((start, end, weight, *numbers) if workload.options["weighted"] else (start, end))


def work(workload: Workload, inputs: Inputs) -> Work:
    length, passes = workload.options["length"], 3 if workload.direction == BOTH else 1
    products = 2 * length * HIDDEN * (MAX_WIDTH + (HIDDEN if workload.options["weighted"] else 0))
    numbers = sum(leaf.numel() for leaf in inputs.leaves) + length * MAX_WIDTH
    axes = {"tokens": length, "width": MAX_WIDTH}
    return Work(axes, passes * numbers * inputs.leaves[0].element_size(), passes * products)


def finite(scores: Tensor) -> Tensor:
    """Zeros outside the tokens, where the scores are -inf."""
    return scores.masked_fill(scores == -torch.inf, 0)


def ours(workload: Workload, inputs: Inputs) -> Way | Prepared:
    def way(start: Tensor, end: Tensor, weight: Tensor | None = None, *numbers: Tensor) -> Tensor:
        more = dict(zip(("start_scores", "end_scores"), numbers, strict=False))
        return ops.banded_span_scores(start, end, weight, MAX_WIDTH, **more)

    if workload.direction == BOTH:
        return lambda *leaves: finite(way(*leaves))
    return Prepared(way, inputs.leaves, finite)


def band_of(scores: Tensor) -> Tensor:
    """Dense scores inside the band, zeros outside the tokens, as `[T, W]`."""
    columns = torch.arange(len(scores))[:, None] + torch.arange(MAX_WIDTH)
    return scores.gather(1, columns.clamp(max=len(scores) - 1)).masked_fill(columns >= len(scores), 0)


def dense(workload: Workload, inputs: Inputs) -> Way | Prepared:
    """`[T, T]`, masked: what start-to-end coreference does."""
    token = torch.arange(workload.options["length"])
    outside = (token < token[:, None]) | (token >= token[:, None] + MAX_WIDTH)

    def way(start: Tensor, end: Tensor, weight: Tensor | None = None, *numbers: Tensor) -> Tensor:
        scores = (start if weight is None else start @ weight) @ end.T
        if numbers:
            scores = scores + numbers[0][:, None] + numbers[1]
        return scores.masked_fill(outside, -torch.inf)

    if workload.direction == BOTH:
        return lambda *leaves: band_of(way(*leaves))
    return Prepared(way, inputs.leaves, band_of)


def case(
    length: int, weighted: bool, direction: str = "forward", quick: bool = False, numbers: bool = False
) -> Workload:
    name = f"{length} tokens, {'weight' if weighted else 'no weight'}{' and numbers' if numbers else ''}"
    options = {"length": length, "weighted": weighted, "numbers": numbers}
    return Workload(name, direction, options=options, seconds=3.0, quick=quick)


SUITE = register(
    Suite(
        "banded_span_scores",
        (
            *(case(length, weighted, quick=length == 512) for length in (512, 4096) for weighted in (True, False)),
            *(case(4096, weighted, BOTH) for weighted in (True, False)),
            case(4096, True, BOTH, numbers=True),
        ),
        {"ours": Provider(ours, "ours"), DENSE: Provider(dense, "eager")},
        inputs,
        work,
        reference=DENSE,
    )
)


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
