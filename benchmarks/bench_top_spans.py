"""top_spans: mentions of start-to-end coreference, H = 1024, and answers by starts and ends, against dense scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from registry import BOTH, Inputs, Prepared, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

MAX_WIDTH, HIDDEN = 30, 1024
DENSE = "dense scores"


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    """Documents side by side; of mentions the states and a weight, of both the numbers of starts and ends."""
    generator, options = torch.Generator().manual_seed(0), workload.options
    tokens = options["documents"] * options["length"]
    numbers = torch.randn(2, tokens, generator=generator).to(dtype)
    if not options["bilinear"]:
        return Inputs(tuple(numbers))
    start, end = torch.randn(2, tokens, HIDDEN, generator=generator).to(dtype)
    weight = (torch.randn(HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5).to(dtype)
    return Inputs((*numbers, start, end, weight))


def work(workload: Workload, inputs: Inputs) -> Work:
    tokens, passes = len(inputs.leaves[0]), 3 if workload.direction == BOTH else 1
    products = 2 * tokens * HIDDEN * (HIDDEN + MAX_WIDTH) if workload.options["bilinear"] else 2 * tokens * MAX_WIDTH
    numbers = sum(leaf.numel() for leaf in inputs.leaves) * inputs.leaves[0].element_size()
    return Work({"tokens": tokens, "width": MAX_WIDTH}, passes * numbers, passes * products)


def ours(workload: Workload, inputs: Inputs) -> Way | Prepared:
    options = workload.options
    documents = torch.arange(options["documents"] + 1) * options["length"]

    def way(of_start: Tensor, of_end: Tensor, *bilinear: Tensor) -> Tensor:
        given: dict[str, Any] = {"start_scores": of_start, "end_scores": of_end, "k": options["k"]}
        start, end, weight = bilinear or (None, None, None)
        return ops.top_spans(start, end, weight, MAX_WIDTH, cu_seqlens=documents, **given).scores

    return way


def dense(workload: Workload, inputs: Inputs) -> Way | Prepared:
    """`[B, L, L]`, of which all but the band is masked, and the best of that."""
    options = workload.options
    length, k = options["length"], options["k"]
    token = torch.arange(length)
    outside = (token < token[:, None]) | (token >= token[:, None] + MAX_WIDTH)

    def way(of_start: Tensor, of_end: Tensor, *bilinear: Tensor) -> Tensor:
        scores = of_start.view(-1, length, 1) + of_end.view(-1, 1, length)
        if bilinear:
            start, end, weight = bilinear
            left, right = (each.view(-1, length, HIDDEN) for each in (start @ weight, end))
            scores = scores + left @ right.transpose(1, 2)
        flat = scores.masked_fill(outside, -torch.inf).flatten(1)
        best = flat.detach().topk(k).indices.sort(1).values
        return flat.gather(1, best).flatten()

    return way


def case(name: str, direction: str = "forward", quick: bool = False, **options: int | bool) -> Workload:
    return Workload(name, direction, options=options, seconds=3.0, peaks=("ours", DENSE), quick=quick)


MENTIONS: dict[str, int | bool] = {"documents": 1, "length": 2048, "k": 819, "bilinear": True}
SUITE = register(
    Suite(
        "top_spans",
        (
            case("mentions of 512 tokens", quick=True, documents=1, length=512, k=204, bilinear=True),
            case("mentions of 2,048 tokens", **MENTIONS),  # type: ignore[arg-type]
            case("mentions of 2,048 tokens", BOTH, **MENTIONS),  # type: ignore[arg-type]
            case("20 answers in each of 16 texts of 384 tokens", documents=16, length=384, k=20, bilinear=False),
        ),
        {"ours": Provider(ours, "ours"), DENSE: Provider(dense, "eager")},
        inputs,
        work,
        reference=DENSE,
    )
)


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
