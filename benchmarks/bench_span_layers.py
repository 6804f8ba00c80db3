"""Span layers of other packages beside the integrations that stand for them: same weights, threads, dtype and mode.

The packages themselves where they are installed, small definitions of what they compute otherwise (`originals/`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from goals import Goal, PeakGoal
from registry import BOTH, FORWARD, Inputs, Prepared, Provider, Suite, Work, Workload, register
from span_layers import Build, SpanLayerCase, all_cases

ORIGINAL, EXACT = "original", "in float64"
CASES: dict[str, SpanLayerCase] = {
    f"{package}: {name}": case for package, cases in all_cases().items() for name, case in cases.items()
}
OTHERS = sorted({name for case in CASES.values() for name in case.others})


def workload(title: str, case: SpanLayerCase, direction: str, dtype: torch.dtype) -> Workload:
    asked = direction == BOTH or tuple(case.directions) == (FORWARD,)
    measured = asked and (case.peaks or case.peak is not None)
    return Workload(
        title,
        direction,
        dtype,
        options={"providers": ("ours", ORIGINAL, *case.others)},
        goals=(Goal(at_least=case.goal, against=ORIGINAL),) if asked and case.goal is not None else (),
        peak_goal=PeakGoal(fraction=case.peak, against=ORIGINAL) if measured and case.peak is not None else None,
        peaks=("ours", ORIGINAL) if measured else (),
        seconds=case.seconds,
        quick=case.quick and direction == FORWARD,
    )


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    """Each side makes its own."""
    steady = CASES[workload.name].steady if workload.direction == BOTH else None
    return Inputs((), {"dtype": dtype}, None if steady is None else steady())


def work(workload: Workload, inputs: Inputs) -> Work:
    """What a side reads and writes at least: its leaves, and its result."""
    case, passes = CASES[workload.name], 3 if workload.direction == BOTH else 1
    side = case.ours(inputs.given["dtype"])
    with torch.no_grad():
        numbers = sum(leaf.numel() for leaf in side.leaves) + side.way().numel()
    return Work(case.axes, passes * numbers * workload.dtype.itemsize, passes * case.operations)


def provider(kind: str, build_of: Callable[[SpanLayerCase], Build]) -> Provider:
    def build(workload: Workload, inputs: Inputs) -> Prepared:
        side = build_of(CASES[workload.name])(inputs.given["dtype"])
        return Prepared(side.way, tuple(side.leaves), parameters=True)

    return Provider(build, kind)


SUITE = register(
    Suite(
        "span_layers",
        tuple(
            workload(title, case, direction, dtype)
            for title, case in CASES.items()
            for dtype in case.dtypes
            for direction in case.directions
        ),
        {
            "ours": provider("ours", lambda case: case.ours),
            ORIGINAL: provider("eager", lambda case: case.original),
            EXACT: provider("peer", lambda case: case.exact or case.original),
            **{name: provider("peer", lambda case, name=name: case.others[name]) for name in OTHERS},  # type: ignore[misc]
        },
        inputs,
        work,
        reference=EXACT,
    )
)


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
