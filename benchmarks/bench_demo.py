"""What `spanbert-kernels demo` shows of the documents that come with the package: the encoder and the spans.

The demo measures by itself, in turns, and compares the results; a stage whose results differ leaves no row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from goals import ZEN, Goal, judge
from measuring import QUICK, Refused

from spanbert_kernels.cli import environment, pipeline
from spanbert_kernels.cli.collecting import default_documents
from spanbert_kernels.cli.demo import demo
from spanbert_kernels.cli.stages import StageResult

NOT_OF_THE_WORK = ("paths", "threads", "output", "results")  # but of where it comes from and goes
TODAY = "what people run today"
GOALS = {"Encoder": Goal(4.5, against=TODAY, on=ZEN), "Spans": Goal(60, against=TODAY, on=ZEN)}


def row_of(stage: StageResult, about: dict[str, str]) -> dict[str, Any]:
    """A stage as a row: sums over what it worked on of the medians of each."""
    timing, providers = stage.timing, {}
    ways = (("ours", "ours", timing.accelerated_seconds), (TODAY, "eager", timing.baseline_seconds))
    for name, kind, seconds in ways:
        providers[name] = {"kind": kind, "milliseconds": 1e3 * seconds, "quartiles": [1e3 * seconds] * 2}
        providers[name]["rounds"] = timing.fewest
    agreement = stage.agreement
    providers["ours"] |= {"error": agreement.accelerated_error, "allowed": agreement.allowed}
    providers[TODAY]["error"] = agreement.baseline_error
    ran = ", ".join(sorted({f"{operation}: {backend}" for operation, backend in stage.backends} | set(stage.paths)))
    providers["ours"]["ran"], providers[TODAY]["ran"] = ran, stage.baseline
    return {
        "suite": "demo",
        "workload": f"{stage.title.lower()}, documents of the package",
        "direction": "forward",
        "dtype": "float32",
        "device": "cpu",
        "axes": {stage.unit: stage.count},
        "scaling": None,
        "curve": None,
        "bytes": 0,
        "operations": 0,
        "floor": 0.0,
        "largest": agreement.largest_value,
        "providers": providers,
        "goals": [judge(goal, providers, about) for word, goal in GOALS.items() if stage.title.startswith(word)],
    }


@pytest.mark.skipif(QUICK, reason="the demo has a --quick of its own")
def test_rows(keep_row: Callable[[dict[str, Any]], None]) -> None:
    settings = demo.make_context("demo", []).params
    settings = {name: value for name, value in settings.items() if name not in NOT_OF_THE_WORK}
    result = pipeline.run(default_documents(), lambda stage: lambda share: None, **settings)
    for stage in result.stages:
        if not stage.agreement.holds:
            raise Refused(f"{stage.title}: ours is off by {stage.agreement.largest_difference:.3g}")
        keep_row(row_of(stage, environment.machine()))
