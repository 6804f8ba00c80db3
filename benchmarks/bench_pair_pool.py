"""pair_pool and pair_linear: 20,000 pairs in free order of 1,000 rows, H = 768: heads and candidates of mentions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from registry import BOTH, Inputs, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

ROWS, PAIRS, HIDDEN, OUTPUTS, DISTANCES, EMBEDDED = 1000, 20_000, 768, 768, 64, 64
PARTS = ["x", "y", "x*y"]
LAYER = ["x", "y", "feature"]


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    pairs = torch.randint(0, ROWS, (PAIRS, 2), generator=generator)
    if not workload.options.get("layer"):
        return Inputs((randn(ROWS, HIDDEN),), {"pairs": pairs})
    distances = (pairs[:, 1] - pairs[:, 0] + DISTANCES // 2).clamp(0, DISTANCES - 1)
    columns = 2 * HIDDEN + EMBEDDED
    leaves = (randn(ROWS, HIDDEN), randn(OUTPUTS, columns) / columns**0.5, randn(DISTANCES, EMBEDDED))
    return Inputs(leaves, {"pairs": pairs, "rows": distances})


def work(workload: Workload, inputs: Inputs) -> Work:
    """The result is written, its gradient read once a side. A layer multiplies every row by its two blocks."""
    columns = OUTPUTS if workload.options.get("layer") else len(PARTS) * HIDDEN
    moved = PAIRS * columns * (3 if workload.direction == BOTH else 1) * inputs.leaves[0].element_size()
    products = 2 * ROWS * 2 * HIDDEN * OUTPUTS * (3 if workload.direction == BOTH else 1)
    sizes = {"rows": ROWS, "pairs": PAIRS, "hidden": HIDDEN}
    return Work(sizes, moved, products if workload.options.get("layer") else 0)


def ours(workload: Workload, inputs: Inputs) -> Way:
    pairs = inputs.given["pairs"]
    if not workload.options.get("layer"):
        return lambda rows: ops.pair_pool(rows, None, pairs, PARTS)
    distances = inputs.given["rows"]
    return lambda rows, weight, table: ops.pair_linear(rows, None, pairs, LAYER, weight, None, table, distances)


def gathered(workload: Workload, inputs: Inputs) -> Way:
    first, second = inputs.given["pairs"].unbind(1)

    def pooled(rows: Tensor) -> Tensor:
        x, y = rows.index_select(0, first), rows.index_select(0, second)
        return torch.cat([x, y, x * y], 1)

    def layer(rows: Tensor, weight: Tensor, table: Tensor) -> Tensor:
        own = table.index_select(0, inputs.given["rows"])
        return F.linear(torch.cat([rows.index_select(0, first), rows.index_select(0, second), own], 1), weight)

    return layer if workload.options.get("layer") else pooled


SUITE = register(
    Suite(
        "pair_pool",
        (
            Workload("x, y, x*y", quick=True),
            Workload("x, y, x*y", BOTH),
            Workload("a layer", options={"layer": True}),
            Workload("a layer", BOTH, options={"layer": True}),
        ),
        {"ours": Provider(ours, "ours"), "index_select": Provider(gathered, "eager")},
        inputs,
        work,
        reference="index_select",
    )
)


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
