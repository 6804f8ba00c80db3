"""prune_spans on all spans of up to 30 tokens of a document of 1536, k = 0.4 T: coreference's pruning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from baselines import all_spans
from torch import Tensor

from spanbert_kernels import ops

LENGTH, MAX_WIDTH, KEPT = 1536, 30, 614


def pruned_by_loop(spans: Tensor, scores: Tensor, k: int) -> Tensor:
    """What PyTorch's coreference models do: a Python loop over lists, with dictionaries."""
    starts, ends = spans[:, 0].tolist(), spans[:, 1].tolist()
    latest_end: dict[int, int] = {}
    earliest_start: dict[int, int] = {}
    kept: list[int] = []
    for row in torch.argsort(scores, descending=True, stable=True).tolist():
        if len(kept) == k:
            break
        start, end, crosses = starts[row], ends[row], False
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
        latest_end[start] = max(end, latest_end.get(start, -1))
        earliest_start[end] = min(start, earliest_start.get(end, start))
    return torch.tensor(sorted(kept, key=lambda row: (starts[row], ends[row], row)))


def random_scores(spans: Tensor) -> Tensor:
    return torch.randn(len(spans), generator=torch.Generator().manual_seed(0))


def peaked_scores(spans: Tensor) -> Tensor:
    """The best spans crowd around few tokens: many are looked at in vain before k are found."""
    middle = spans.float().mean(1)
    return random_scores(spans) - 0.02 * (middle - LENGTH / 2).abs()


@pytest.mark.parametrize("make_scores", [random_scores, peaked_scores])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@torch.inference_mode()
def test_pruning(compare: Callable[..., None], backend: str, make_scores: Callable[[Tensor], Tensor]) -> None:
    spans = all_spans(LENGTH, MAX_WIDTH)
    scores = make_scores(spans)
    assert torch.equal(ops.prune_spans(spans, scores, KEPT, backend=backend), pruned_by_loop(spans, scores, KEPT))
    compare(
        lambda: ops.prune_spans(spans, scores, KEPT, backend=backend),
        {"Python loop": lambda: pruned_by_loop(spans, scores, KEPT)},
        error=0.0,
    )
