"""Figures asked for, and whether a row reaches them, in words that begin with met, missed or reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# What a process itself moves by while it computes: page tables, stacks, pools of the libraries.
NOISE_MEGABYTES = 1.0
Entries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Processors:
    """Those of which a goal is asked; `holds` looks at a record's `machine`.

    On others its figure is `reported` without a verdict, or not at all.
    """

    name: str
    holds: Callable[[Mapping[str, str]], bool]
    reported: bool = True


def _zen_with_bfloat16(about: Mapping[str, str]) -> bool:
    instructions = about["instructions for bfloat16"]
    return about["vendor"].startswith("AMD") and "avx512_bf16" in instructions and "amx" not in instructions


ZEN = Processors("AMD Zen 4 or 5 with avx512_bf16", _zen_with_bfloat16)
AVX2 = Processors("AVX2", lambda about: about["vector instructions"] == "AVX2", reported=False)


@dataclass(frozen=True)
class Goal:
    """A figure asked for: how many times faster than a provider, or how many times its duration at most.

    Without `against` the provider is the fastest peer, or the eager way where there is none; of several it is the
    fastest. `on`: the processors of which it is asked; all, if there is none.
    """

    at_least: float | None = None
    at_most: float | None = None
    against: str | tuple[str, ...] | None = None
    on: Processors | None = None


@dataclass(frozen=True)
class PeakGoal:
    """Peak memory asked for: results and a share of all that is read and written; or a share of a provider's peak.

    `against` is the eager way if nothing is named. With `activations` the peak is that of what a forward leaves behind
    for its backward, rather than that of the whole call.
    """

    spare: float | None = None
    fraction: float | None = None
    against: str | None = None
    activations: bool = False


def digits(value: float) -> str:
    """Three digits, and none after the point of what is larger."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def verdict(holds: bool, about: str, asked: str, on: Processors | None, machine: Mapping[str, str]) -> str:
    """One line: met or missed where something is asked of this processor, else reported."""
    if on is not None and not on.holds(machine):
        return f"reported: {about}; {asked} asked of {on.name}"
    return f"{'met' if holds else 'missed'}: {about}, {asked} asked"


def judge(goal: Goal, providers: Entries, machine: Mapping[str, str]) -> str:
    """A figure of speed: the median of the ratios within rounds, with their quartiles."""
    times = {name: entry["milliseconds"] for name, entry in providers.items() if "milliseconds" in entry}
    wanted = (goal.against,) if isinstance(goal.against, str) else goal.against
    if wanted is None:
        peers = [name for name in times if providers[name]["kind"] == "peer"]
        wanted = tuple(peers or (name for name in times if providers[name]["kind"] == "eager"))
    there = [name for name in wanted if name in times]
    if not there:
        return f"not measured: against {', '.join(wanted)}, which has no figure here"
    name = min(there, key=lambda each: times[each])
    factor, spread = times[name] / times["ours"], ""
    if "ratio" in providers[name]:
        low, factor, high = providers[name]["ratio"]
        ends = (low, high) if goal.at_least is not None else (1 / high, 1 / low)
        spread = f" (quartiles {digits(ends[0])} to {digits(ends[1])})"
    if goal.at_least is not None:
        about = f"{digits(factor)} x faster than {name}{spread}"
        return verdict(factor >= goal.at_least, about, f"at least {goal.at_least:g} x", goal.on, machine)
    assert goal.at_most is not None
    about = f"{digits(1 / factor)} x the time of {name}{spread}"
    return verdict(1 / factor <= goal.at_most, about, f"at most {goal.at_most:g} x", goal.on, machine)


def judge_error(goal: float | None, error: float, largest: float) -> list[str]:
    """Whether our error is as small a share of the largest value as was asked for."""
    if goal is None:
        return []
    about, asked = f"off by {error / largest:.2g} of the largest value", f"at most {goal:g}"
    return [verdict(error <= goal * largest, about, asked, None, {})]


def judge_peak(goal: PeakGoal | None, providers: Entries, allowed: float | None) -> list[str]:
    """Whether our peak memory is what was asked for; `allowed`: megabytes, where the goal is of results and a spare."""
    ours = providers["ours"].get("peak")
    if goal is None or ours is None:
        return []
    found = []
    if goal.spare is not None:
        assert allowed is not None
        asked = f"at most {allowed:.4g} (results and {100 * goal.spare:.0f} % of all)"
        found.append(verdict(ours <= allowed + NOISE_MEGABYTES, f"peak {ours:.4g} MB", asked, None, {}))
    if goal.fraction is not None:
        name = goal.against or next(each for each, entry in providers.items() if entry["kind"] == "eager")
        part = ours / providers[name]["peak"]
        what = "activations take" if goal.activations else "peak"
        about = f"{what} {ours:.4g} MB, {part:.2g} of that of {name}"
        found.append(verdict(part <= goal.fraction, about, f"at most {goal.fraction:g}", None, {}))
    return found
