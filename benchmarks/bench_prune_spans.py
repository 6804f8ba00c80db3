"""prune_spans on all spans of up to 30 tokens of a document of 1536, k = 0.4 T: coreference's pruning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from baselines import all_spans
from registry import Inputs, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

LENGTH, MAX_WIDTH, KEPT = 1536, 30, 614


def pruned_by_loop(spans: Tensor, scores: Tensor, k: int, k_start: int | None) -> Tensor:
    """What PyTorch's coreference models do: a Python loop over lists, with dictionaries."""
    starts, ends = spans[:, 0].tolist(), spans[:, 1].tolist()
    latest_end: dict[int, int] = {}
    earliest_start: dict[int, int] = {}
    of_start: dict[int, int] = {}
    kept: list[int] = []
    for row in torch.argsort(scores, descending=True, stable=True).tolist():
        if len(kept) == k:
            break
        start, end, crosses = starts[row], ends[row], False
        if k_start is not None and of_start.get(start, 0) == k_start:
            continue
        for token in range(start, end + 1):
            if token > start and latest_end.get(token, -1) > end:
                crosses = True
                break
            if token < end and 0 <= earliest_start.get(token, -1) < start:
                crosses = True
                break
        if crosses:
            continue
        kept.append(row)
        of_start[start] = of_start.get(start, 0) + 1
        latest_end[start] = max(end, latest_end.get(start, -1))
        earliest_start[end] = min(start, earliest_start.get(end, start))
    return torch.tensor(sorted(kept, key=lambda row: (starts[row], ends[row], row)))


def random_scores(spans: Tensor) -> Tensor:
    return torch.randn(len(spans), generator=torch.Generator().manual_seed(0))


def peaked_scores(spans: Tensor) -> Tensor:
    """The best spans crowd around few tokens: many are looked at in vain before k are found."""
    middle = spans.float().mean(1)
    return random_scores(spans) - 0.02 * (middle - LENGTH / 2).abs()


SCORES = {"random scores": random_scores, "peaked scores": peaked_scores}


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    spans = all_spans(LENGTH, MAX_WIDTH)
    return Inputs((SCORES[workload.options["scores"]](spans),), {"spans": spans})


def work(workload: Workload, inputs: Inputs) -> Work:
    """Spans and scores are read."""
    spans = inputs.given["spans"]
    return Work({"tokens": LENGTH, "spans": len(spans), "width": MAX_WIDTH}, spans.nbytes + inputs.leaves[0].nbytes)


def ours(workload: Workload, inputs: Inputs) -> Way:
    options = {name: workload.options[name] for name in ("backend", "k_start")}
    return lambda scores: ops.prune_spans(inputs.given["spans"], scores, KEPT, **options)


def loop(workload: Workload, inputs: Inputs) -> Way:
    return lambda scores: pruned_by_loop(inputs.given["spans"], scores, KEPT, workload.options["k_start"])


SUITE = register(
    Suite(
        "prune_spans",
        tuple(
            Workload(f"{scores}, {backend}" if k_start is None else f"{scores}, {k_start} of each start, {backend}",
                     options={"scores": scores, "backend": backend, "k_start": k_start}, seconds=seconds,
                     quick=backend == "cpu" and k_start is None)
            for scores, backend, seconds, k_start in (
                ("random scores", "cpu", 2.0, None), ("peaked scores", "cpu", 2.0, None),
                ("random scores", "cpu", 2.0, 1), ("random scores", "eager", 0.4, None),
            )
        ),
        {"ours": Provider(ours, "ours"), "Python loop": Provider(loop, "eager")},
        inputs,
        work,
        reference="Python loop",
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
