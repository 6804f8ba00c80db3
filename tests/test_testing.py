"""The tolerance rule that users may import: what it lets pass, and what not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spanbert_kernels.testing import assert_as_exact_as_eager, deviation, tolerance

EPS, EPS_OF_FLOAT64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))
INF, NAN = math.inf, math.nan


def exactly(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_twice_the_eager_error_and_one_rounding() -> None:
    exact, eager = exactly(1, 4), torch.tensor([1.25, 4.0])
    assert tolerance(exact, eager) == 2 * 0.25 + 4 * EPS
    assert_as_exact_as_eager(torch.tensor([1.5, 4.0]), exact, eager)
    with pytest.raises(AssertionError, match=r"^off by 0\.5\d+, allowed 0\.5$"):
        assert_as_exact_as_eager(torch.tensor([1.51, 4.0]), exact, eager)


def test_the_error_of_float32_stands_in_for_that_of_float64() -> None:
    exact, eager = exactly(1), torch.tensor([1 + 4 * EPS])
    assert tolerance(exact, eager, torch.float64) == (2 * 4 + 1) * EPS_OF_FLOAT64
    assert_as_exact_as_eager(exact + 9 * EPS_OF_FLOAT64, exact, eager)
    with pytest.raises(AssertionError):
        assert_as_exact_as_eager(exact + 10 * EPS_OF_FLOAT64, exact, eager)


def test_a_more_precise_yardstick_is_not_scaled_up() -> None:
    exact, eager = exactly(1), torch.tensor([1 + 4 * EPS])
    assert tolerance(exact, eager, torch.bfloat16) == 8 * EPS + torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("wrong", [[NAN, 2.0], [INF, 2.0], [1.0, -INF], [1.0, 2.0]])
def test_what_is_not_finite_has_to_be_the_same(wrong: list[float]) -> None:
    exact = exactly(1, INF)
    assert_as_exact_as_eager(torch.tensor([1.0, INF]), exact, torch.tensor([1.0, INF]))
    with pytest.raises(AssertionError, match="off by nan"):
        assert_as_exact_as_eager(torch.tensor(wrong), exact, torch.tensor([1.0, INF]))


def test_an_eager_result_that_is_wrong_allows_nothing() -> None:
    with pytest.raises(AssertionError, match="allowed nan"):
        assert_as_exact_as_eager(torch.tensor([1.0]), exactly(1), torch.tensor([INF]))


def test_nothing_and_integers() -> None:
    assert deviation(torch.ones(0, 3), torch.ones(0, 3)) == 0
    assert_as_exact_as_eager(torch.ones(0), torch.ones(0).double(), torch.ones(0))
    assert tolerance(exactly(5), torch.tensor([5])) == 0


def test_shapes_are_not_broadcast() -> None:
    with pytest.raises(AssertionError, match=r"^shape \[1\] instead of \[2\]$"):
        assert_as_exact_as_eager(torch.ones(1), exactly(1, 1), torch.ones(2))
