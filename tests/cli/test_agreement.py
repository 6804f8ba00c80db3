"""The verdict on a stage: the tolerance rule where two ways differ most."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from spanbert_kernels.cli.agreement import Agreement, Difference

EPS = torch.finfo(torch.float32).eps


def verdict(baseline: list[float], accelerated: list[float], reference: list[float]) -> Agreement:
    pair = torch.tensor(baseline), torch.tensor(accelerated)
    difference = Difference()
    difference.see("piece", *pair)
    return difference.judge("here", torch.tensor(reference, dtype=torch.float64))


def test_the_accelerated_way_may_be_off_by_twice_the_baselines_error_and_a_rounding() -> None:
    within = verdict([4.0, 1.01], [4.0, 1.019], [4.0, 1.0])
    assert within.holds
    assert within.allowed == pytest.approx(2 * 0.01 + 4 * EPS, rel=1e-5)
    assert within.accelerated_error == pytest.approx(0.019, rel=1e-4)
    assert within.baseline_error == pytest.approx(0.01, rel=1e-4)
    assert within.largest_difference == pytest.approx(0.009, rel=1e-3)
    assert not verdict([4.0, 1.01], [4.0, 1.021], [4.0, 1.0]).holds


def test_where_the_baseline_is_exact_one_rounding_is_all() -> None:
    assert verdict([4.0], [4.0 + 4 * EPS], [4.0]).holds
    assert not verdict([4.0], [4.0 + 8 * EPS], [4.0]).holds
    assert verdict([0.0], [0.0], [0.0]).holds


@pytest.mark.parametrize("side", ["baseline", "accelerated", "both"])
def test_a_nan_fails(side: str) -> None:
    good, bad = [1.0, 2.0], [math.nan, 2.0]
    result = verdict(bad if side != "accelerated" else good, bad if side != "baseline" else good, [1.0, 2.0])
    assert not result.holds
    assert math.isnan(result.largest_difference)


def test_the_largest_difference_is_kept_and_a_nan_outweighs_all() -> None:
    difference = Difference()
    pieces = [([1.0], [1.0]), ([5.0], [4.0]), ([-9.0], [-8.5]), ([math.nan], [1.0]), ([1.0], [9.0])]
    worst = [difference.see(number, torch.tensor(b), torch.tensor(a)) for number, (b, a) in enumerate(pieces)]
    assert worst == [True, True, False, True, False]
    assert difference.worst[0] == 3
    assert math.isnan(difference.error)


def test_shapes_that_differ_and_nothing_at_all() -> None:
    difference = Difference()
    with pytest.raises(RuntimeError, match=r"differ in shape: \[2\] and \[1, 2\]"):
        difference.see(0, torch.ones(2), torch.ones(1, 2))
    assert not difference.see(0, torch.ones(0, 4), torch.ones(0, 4))


def test_a_nan_outside_the_piece_that_is_judged_fails_too() -> None:
    piece: dict[str, Any] = {
        "largest_value": 1.0,
        "where": "here",
        "baseline_error": 0.0,
        "accelerated_error": 0.0,
        "allowed": 1.0,
    }
    assert Agreement(largest_difference=0.0, **piece).holds
    assert not Agreement(largest_difference=math.nan, **piece).holds
