"""pair_pool: the shared checks over its table, then what its parts mean."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from op_checks import OpChecks, cast, every_backend
from pair_cases import EVERY, LINEAR, of_two_sizes, pair_inputs, pooled_row, tiny, without_pairs, without_rows

from spanbert_kernels.ops import pair_pool


class TestShared(OpChecks):
    operation = "pair_pool"
    cases = (
        pooled_row("one tensor", ["x*y", "x"], partial(pair_inputs, rows=3, columns=2, pairs=4)),
        pooled_row("every part", EVERY, partial(tiny, other=True, table=2, sentinels=True, masked=True)),
    )


@pytest.mark.slow
class TestMore(OpChecks):
    operation = "pair_pool"
    cases = (
        pooled_row("every pair counts", EVERY, partial(pair_inputs, other=True, table=4)),
        pooled_row("sentinels", [*LINEAR, "y/x"], partial(pair_inputs, table=3, sentinels=True), compiled=True),
        pooled_row("mask", EVERY, partial(pair_inputs, other=True, table=4, masked=True)),
        pooled_row("two sizes", ["y", "x"], of_two_sizes),
        pooled_row("no pairs", EVERY, without_pairs),
        pooled_row("no rows", ["x", "x/y", "feature"], without_rows),
        # Vectors of columns with a rest, two tiles of them, several ranges of rows.
        pooled_row(
            "large",
            ["x*y", "x", "feature"],
            partial(pair_inputs, rows=70, columns=521, pairs=600, table=2),
            large=True,
        ),
    )


everywhere = every_backend("pair_pool")


@everywhere
def test_every_combination_of_two_rows(backend: str) -> None:
    x, y = torch.tensor([[4.0, -3.0]]), torch.tensor([[-2.0, 5.0]])
    rows = {"x": x, "y": y}
    operations = {"*": torch.mul, "+": torch.add, "-": torch.sub, "/": torch.div}
    parts = [f"{a}{sign}{b}" for a, sign, b in itertools.product("xy", operations, "xy")]
    found = pair_pool(x, y, torch.tensor([[0, 0]]), [*parts, "|x-y|"], backend=backend)
    expected = [operations[part[1]](rows[part[0]], rows[part[2]]) for part in parts]
    assert torch.equal(found, torch.cat([*expected, torch.tensor([[6.0, 8.0]])], 1))


@everywhere
def test_a_distance_has_no_slope_where_rows_are_equal(backend: str) -> None:
    rows = torch.tensor([[1.0, 2.0], [1.0, 5.0]], requires_grad=True)
    pair_pool(rows, None, torch.tensor([[0, 1], [0, 0]]), ["|x-y|"], backend=backend).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[0, -1], [0, 1]]


@everywhere
def test_a_pair_that_does_not_count_reads_nothing(backend: str) -> None:
    """Neither its indices, nor rows that hold NaN or zeros to divide by."""
    rows = torch.tensor([[torch.nan, 0.0], [1.0, 2.0]], requires_grad=True)
    pairs, mask = torch.tensor([[0, 0], [1, 1], [99, -5]]), torch.tensor([False, True, False])
    output = pair_pool(rows, None, pairs, ["x/y", "x"], mask=mask, backend=backend)
    output.sum().backward()
    assert output.tolist() == [[0, 0, 0, 0], [1, 1, 1, 2], [0, 0, 0, 0]]
    assert rows.grad is not None
    assert rows.grad.tolist() == [[0, 0], [1, 1]]


@everywhere
def test_a_row_that_no_pair_reads_may_hold_anything(backend: str) -> None:
    rows = torch.tensor([[torch.nan], [1.0], [torch.inf], [3.0]], requires_grad=True)
    output = pair_pool(rows, None, torch.tensor([[3, 1], [1, 3]]), ["x-y", "x*y"], backend=backend)
    output.sum().backward()
    assert output.tolist() == [[2, 3], [-2, 3]]
    assert rows.grad is not None
    assert rows.grad[:, 0].tolist() == [0, 6, 0, 2]


@everywhere
def test_sums_of_many_pairs_are_made_in_float32(backend: str) -> None:
    """4096 gradients of one would stop at 256 if they were added in bfloat16; parameters may be in float32."""
    rows = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    leaves = [torch.ones(1, requires_grad=True), torch.ones(1, 1, requires_grad=True)]
    pairs = torch.tensor([[0, -1]]).expand(4096, 2)
    output = pair_pool(
        rows, None, pairs, ["x", "y", "feature"], leaves[1], torch.zeros(4096, dtype=torch.int64),
        second_sentinel=leaves[0], backend=backend,
    )  # fmt: skip
    output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert [leaf.grad.item() for leaf in (rows, *leaves) if leaf.grad is not None] == [4096] * 3


def test_same_bits_for_any_number_of_threads() -> None:
    """A few rows are in most of the pairs."""
    tensors = cast(pair_inputs(1, rows=300, columns=130, pairs=4000, table=3, sentinels=True), torch.float32)
    tensors["pairs"][:2000, 0] = 7
    leaves = {name: t.requires_grad_(t.is_floating_point()) for name, t in tensors.items()}
    sources = [leaf for leaf in leaves.values() if leaf.requires_grad]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        output = pair_pool(**leaves, second=None, parts=["x*y", "feature"], backend="cpu")
        results.append((output, *torch.autograd.grad(output.square().sum(), sources)))
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


H, P = torch.zeros(4, 3), torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        (TypeError, "parts must be a sequence of names, got the string 'x'", {"parts": "x"}),
        (ValueError, "parts is empty; it takes any of", {"parts": []}),
        (ValueError, "unknown part 'x\\^y'; there are", {"parts": ["x^y"]}),
        (ValueError, "unknown part 'mean'; there are", {"parts": ["mean"]}),
        (TypeError, "second is torch.float64, but first is torch.float32", {"second": H.double()}),
        (ValueError, "need as many columns of both, got 3 and 2", {"second": H[:, :2], "parts": ["x*y"]}),
        (ValueError, r"pairs must have shape \[N, 2\], got \[2, 3\]", {"pairs": torch.zeros(2, 3).long()}),
        (TypeError, "pairs must be int32 or int64, got torch.float32", {"pairs": P.float()}),
        (ValueError, "pair 1 reads row 4 of second, which has 4", {"pairs": torch.tensor([[0, 0], [3, 4]])}),
        (ValueError, "pair 0 reads row -1 of first, which has 4", {"pairs": torch.tensor([[-1, 0]])}),
        (ValueError, "part 'feature' needs features .* got None", {"parts": ["feature"]}),
        (ValueError, "part 'feature' needs feature_rows .* got None", {"parts": ["feature"], "features": H}),
        (
            ValueError,
            "feature_rows must have one entry for each of the 2 pairs, got \\[1\\]",
            {"parts": ["feature"], "features": H, "feature_rows": P[0, :1]},
        ),
        (
            ValueError,
            "pair 1 reads row 4 of features, which has 4",
            {"parts": ["feature"], "features": H, "feature_rows": torch.tensor([0, 4])},
        ),
        (ValueError, r"first_sentinel must have shape \[3\], got \[2\]", {"first_sentinel": H[0, :2]}),
        (TypeError, "mask must be bool, got torch.int64", {"mask": P[0]}),
        (ValueError, "mask must have one entry for each of the 2 pairs", {"mask": torch.ones(3, dtype=torch.bool)}),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        pair_pool(**{"first": H, "second": None, "pairs": P, "parts": ["x"], **changes})
