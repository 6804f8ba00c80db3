"""Whether a figure that was asked for was reached, in words."""

from __future__ import annotations

from typing import Any

import pytest
from goals import AVX2, ZEN, Goal, PeakGoal, judge, judge_error, judge_peak

AMD = {"vendor": "AMD, family 26", "instructions for bfloat16": "avx512_bf16", "vector instructions": "AVX512"}
PROVIDERS: dict[str, dict[str, Any]] = {
    "ours": {"kind": "ours", "milliseconds": 10.0, "peak": 60.0},
    "eager": {"kind": "eager", "milliseconds": 40.0, "peak": 100.0, "ratio": [3.8, 4.2, 4.4]},
    "fast": {"kind": "peer", "milliseconds": 20.0},
    "gone": {"kind": "peer", "unavailable": "needs a library"},
    "products": {"kind": "floor", "milliseconds": 8.0, "ratio": [0.7, 0.8, 0.9]},
}


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal(2), "met: 2 x faster than fast, at least 2 x asked"),
        # 40 / 10 is not what holds within rounds.
        (Goal(4.1, against="eager"), "met: 4.2 x faster than eager (quartiles 3.8 to 4.4), at least 4.1 x asked"),
        (Goal(4.3, against="eager"), "missed: 4.2 x faster than eager (quartiles 3.8 to 4.4), at least 4.3 x asked"),
        (
            Goal(3, against=("eager", "fast", "gone")),
            "missed: 2 x faster than fast, at least 3 x asked",
        ),
        (Goal(2, against="gone"), "not measured: against gone, which has no figure here"),
        (
            Goal(at_most=1.2, against="products"),
            "missed: 1.25 x the time of products (quartiles 1.11 to 1.43), at most 1.2 x asked",
        ),
        (
            Goal(at_most=1.3, against="products", on=ZEN),
            "met: 1.25 x the time of products (quartiles 1.11 to 1.43), at most 1.3 x asked",
        ),
    ],
)
def test_speed(goal: Goal, expected: str) -> None:
    assert judge(goal, PROVIDERS, AMD) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"vendor": "Intel, family 6"},
        {"instructions for bfloat16": "none known"},
        {"instructions for bfloat16": "avx512_bf16, amx_bf16"},
    ],
)
def test_on_other_processors_it_is_reported(other: dict[str, str]) -> None:
    assert judge(Goal(9, on=ZEN), PROVIDERS, {**AMD, **other}) == (
        "reported: 2 x faster than fast; at least 9 x asked of AMD Zen 4 or 5 with avx512_bf16"
    )


def test_a_forced_level_is_asked_of_alone() -> None:
    assert not AVX2.reported
    assert not AVX2.holds(AMD)
    assert judge(Goal(1, on=AVX2), PROVIDERS, {**AMD, "vector instructions": "AVX2"}).startswith("met: ")


def test_errors_are_shares_of_the_largest_value() -> None:
    assert judge_error(None, 1.0, 2.0) == []
    assert judge_error(6e-3, 0.024, 4.0) == ["met: off by 0.006 of the largest value, at most 0.006 asked"]
    assert judge_error(6e-3, 0.025, 4.0) == ["missed: off by 0.0063 of the largest value, at most 0.006 asked"]


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (PeakGoal(fraction=0.6), "met: peak 60 MB, 0.6 of that of eager, at most 0.6 asked"),
        (
            PeakGoal(fraction=0.5, against="eager", activations=True),
            "missed: activations take 60 MB, 0.6 of that of eager, at most 0.5 asked",
        ),
        (PeakGoal(spare=0.1), "met: peak 60 MB, at most 59.5 (results and 10 % of all) asked"),
    ],
)
def test_peaks(goal: PeakGoal, expected: str) -> None:
    assert judge_peak(goal, PROVIDERS, 59.5) == [expected]
