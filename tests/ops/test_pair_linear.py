"""pair_linear: the shared checks over its table, then when it projects."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from op_checks import OpChecks, RecordRawCalls, Tensors, every_backend
from pair_cases import (
    EVERY,
    LINEAR,
    call_linear,
    layer_inputs,
    linear_by_loop,
    linear_row,
    of_two_sizes,
    pair_inputs,
    tiny,
    without_pairs,
)

from spanbert_kernels.ops import backends, pair_linear

many = partial(pair_inputs, pairs=16)
TWICE = ("pair_pool_forward",) * 2 + ("pair_pool_backward",) * 2


def many_of_two_sizes(size: int) -> Tensors:
    return {**of_two_sizes(size), "pairs": many(size, other=True)["pairs"]}


@pytest.mark.slow
class TestShared(OpChecks):
    operation = "pair_linear"
    cases = (
        linear_row("linear", LINEAR, partial(many, other=True, table=4), compiled=True),
        linear_row("x, y and the distance", ["x", "y", "feature"], partial(many, table=4), bias=False),
        linear_row("every part", EVERY, partial(many, other=True, table=4), TWICE),
        linear_row("y alone", ["y"], many),
        linear_row("no term", ["x-y", "feature"], partial(many, table=2)),
        linear_row("two sizes", ["y", "x"], many_of_two_sizes),
        linear_row("few", EVERY, partial(tiny, other=True, table=4)),
        linear_row("no pairs", EVERY, without_pairs),
        linear_row(
            "large",
            ["x", "y", "feature"],
            partial(pair_inputs, rows=40, columns=131, pairs=300, table=5),
            outputs=140,
            large=True,
        ),
    )


@every_backend("pair_linear")
@pytest.mark.parametrize("pairs", [2, 16], ids=["few pairs", "many pairs"])
def test_it_is_a_layer_over_pooled_pairs(backend: str, pairs: int) -> None:
    tensors = layer_inputs(1, partial(pair_inputs, pairs=pairs, other=True, table=3), EVERY)
    leaves = {name: t.requires_grad_(t.is_floating_point()) for name, t in tensors.items()}
    results = []
    for call in (partial(call_linear, backend=backend), linear_by_loop):
        output = call(**leaves, parts=EVERY)
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
        sources = [leaf for leaf in leaves.values() if leaf.requires_grad]
        results.append((output, *torch.autograd.grad(output, sources, grad)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(backends.refusal("cpu", "cpu", torch.float32) is not None, reason="no compiled kernels")
def test_rows_are_projected_where_pairs_are_more() -> None:
    """With many pairs the kernel adds projected rows, O wide; with few it pools them, D wide."""
    rows, weight = torch.randn(4, 6), torch.randn(5, 12)
    for count, columns in ((7, 12), (8, 5)):
        with RecordRawCalls() as record:
            pair_linear(rows, None, torch.zeros(count, 2, dtype=torch.int64), ["x", "y"], weight, backend="cpu")
        ((_, arguments, _),) = [call for call in record.calls if "pair_pool_forward" in call[0].name()]
        assert arguments[-1] == (columns == 5)


H, P = torch.zeros(4, 3), torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        (ValueError, r"weight must have shape .* D = 6, the columns of x, y, got \[2, 3\]", {"weight": H[:2]}),
        (ValueError, r"bias must have shape \[2\], got \[3\]", {"bias": H[0]}),
        (ValueError, "pair 0 reads row 9 of first, which has 4", {"pairs": P + 9}),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        pair_linear(
            **{"first": H, "second": None, "pairs": P, "parts": ["x", "y"], "weight": torch.zeros(2, 6), **changes}
        )
