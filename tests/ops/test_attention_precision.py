"""Attention with large scores: as near to the exact result as eager is, forward and backward.

Where one weight is nearly 1, the gradients are differences far smaller than their terms. On a CPU the design's rule is
held without making allowance for these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from attention_loops import cross_score_terms, largest_logit, score_terms
from op_checks import check_error
from places import ISAS, Place
from torch import Tensor

from spanbert_kernels.ops import cross_document_attention, document_attention

PARTS = ("output", "gradient of q", "gradient of k", "gradient of v")
SIDES = {"queries": "tokens", "keys": "tokens"}
DROPOUT = {"dropout_p": 0.2, "seed": torch.tensor([7])}


class Shape(NamedTuple):
    """Documents, and which attention: `normalize` says that they are one cluster."""

    lengths: tuple[int, ...]
    normalize: str | None = None
    options: dict[str, Any] = {}  # noqa: RUF012
    sizes: tuple[int, ...] = (1, 30, 100, 300, 1000)

    def call(self) -> Callable[..., Any]:
        cu_seqlens = torch.tensor([0, *self.lengths]).cumsum(0)
        if self.normalize is None:
            return partial(document_attention, cu_seqlens=cu_seqlens, **self.options)
        cluster = {"cu_seqlens": cu_seqlens, "cu_clusters": torch.tensor([0, len(self.lengths)]), **SIDES}
        return partial(cross_document_attention, **cluster, normalize=self.normalize, **self.options)


# On a CPU, up to 128 tokens are small.h's and up to 512 keys one block of a forward; on a GPU, 64 rows are one tile.
SHAPES = {
    "small": Shape((20, 50, 1, 128)),
    "small, dropout": Shape((20, 50, 1, 128), options=DROPOUT),
    "tiles, dropout": Shape((70, 20), options=DROPOUT),
    "block": Shape((140, 9)),
    "block, dropout": Shape((140,), options=DROPOUT),
    "blocks": Shape((530,)),
    "cluster": Shape((30, 1, 40, 20), "joint"),
    "cluster, block": Shape((100, 20, 60), "joint"),
    "cluster, blocks": Shape((60, 470, 20), "joint"),
    "pairs": Shape((30, 1, 40, 20), "pairwise"),
    "pairs, dropout": Shape((30, 140), "pairwise", DROPOUT),
    "few pairs": Shape((12, 1, 20), "pairwise"),
    "few in a cluster": Shape((12, 1, 20), "joint", sizes=(100, 1000)),
    "few, dropout": Shape((40, 3), options=DROPOUT),
}
EVERYDAY = {
    "cpu": {
        torch.float32: ("small, dropout", "block, dropout", "cluster", "pairs"),
        torch.bfloat16: ("block, dropout",),
    },
    "cuda": {torch.float32: ("few, dropout", "few pairs"), torch.bfloat16: ("tiles, dropout",)},
    "triton": {torch.float32: ("few, dropout", "few pairs"), torch.bfloat16: ("few in a cluster",)},
}
PLACES = (*(Place("cpu", isa) for isa in ISAS), Place("cuda", "fibers"), Place("triton", "interpreter"))
EMULATED_ROWS = 300  # more of them take minutes
RUNS = [
    pytest.param(
        name,
        dtype,
        place,
        id=f"{name}, {str(dtype)[6:]}, {place}",
        marks=[] if name in EVERYDAY[place.backend][dtype] else [pytest.mark.slow],
    )
    for place in PLACES
    for dtype in EVERYDAY[place.backend]
    for name, shape in SHAPES.items()
    if not place.emulated or sum(shape.lengths) <= EMULATED_ROWS
]


def results(
    call: Callable[..., Any], values: list[Tensor], dtype: torch.dtype, backend: str, flipped: bool = False
) -> list[Tensor]:
    """Output and gradients; `flipped`: the columns of queries and keys the other way round, which is rounded in another
    way and else the same.
    """
    q, k, v, grad = (x.to(dtype) for x in values)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    output = call(*(x.flip(2) if flipped else x for x in (q, k)), v, backend=backend)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def terms_on_a_gpu(shape: Shape, values: list[Tensor]) -> dict[str, float]:
    """Of gradients the size of their terms times that of the scores.

    There the backward makes the weights again, from scores and their log-sum-exp in float32, each rounded by its size:
    so many machine epsilons is a weight off as the score is large, whatever the weight.
    """
    q, k, v, grad = (x.double() for x in values)
    cu_seqlens, scale = torch.tensor([0, *shape.lengths]).cumsum(0), q.shape[2] ** -0.5
    if shape.normalize is None:
        tensors = {"q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens}
        found = score_terms(tensors, [grad], scale, 1 - shape.options.get("dropout_p", 0.0))
    else:
        one = torch.tensor([0, len(shape.lengths)])
        found = cross_score_terms(q, k, v, cu_seqlens, one, **SIDES, grad=grad, normalize=shape.normalize)
    largest = largest_logit(q, k, scale)  # of v the exponent is counted already
    return {PARTS[1]: found["q"] * largest, PARTS[2]: found["k"] * largest, PARTS[3]: found["v"]}


@pytest.mark.parametrize(("name", "dtype", "backend"), RUNS, indirect=["backend"])
def test_large_scores(name: str, dtype: torch.dtype, backend: str) -> None:
    call = SHAPES[name].call()
    rows = sum(SHAPES[name].lengths)
    for size in SHAPES[name].sizes:
        generator = torch.Generator().manual_seed(size)
        values = [torch.randn(rows, 2, 64, generator=generator) for _ in range(4)]
        values = [x.to(dtype) for x in (size * values[0], *values[1:])]
        exact = results(call, values, torch.float64, "eager")
        # One draw of rounding errors can be a lucky one.
        draws = [results(call, values, dtype, "eager", flipped) for flipped in (False, True)]
        found = results(call, values, dtype, backend)
        terms = terms_on_a_gpu(SHAPES[name], values) if backend in ("triton", "cuda") else {}
        for part, value, ref, *others in zip(PARTS, found, exact, *draws, strict=True):
            check_error(f"{part}, scores of {size}", value, ref, others, terms=terms.get(part, 0.0))


def test_document_weights_of_large_scores_add_up_to_one() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(90, 2, 64, generator=generator) for _ in range(3))
    call = Shape((30, 1, 39, 20), "joint", {"return_weights": True, "include_self": True}).call()
    _, weights = call(1000 * q, k, v)
    torch.testing.assert_close(weights.sum(2), torch.ones(90, 2), rtol=0, atol=1e-6)
