"""The demo's figures as rows of a record."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from records.record import row_of

import spanbert_kernels
from spanbert_kernels.cli import environment, pipeline
from spanbert_kernels.cli.agreement import Agreement
from spanbert_kernels.cli.measuring import Timing
from spanbert_kernels.cli.stages import StageResult

Rows = list[dict[str, Any]]
ZEN = {"vendor": "AMD, family 26", "instructions for bfloat16": "avx512_bf16"}


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[[StageResult], Rows]:
    """Runs the suite on a stage that is given; gives its rows."""
    monkeypatch.setattr(spanbert_kernels, "__path__", list(spanbert_kernels.__path__))  # to which suites add theirs
    import bench_demo

    def run(stage: StageResult) -> Rows:
        def instead(collection: Any, begin: Any, **settings: Any) -> Any:
            wanted = set(inspect.signature(pipeline._run).parameters) - {"collection", "begin"}
            assert set(settings) == wanted
            assert settings["tokens"] == 8192
            assert not settings["quick"]
            return SimpleNamespace(stages=[stage])

        monkeypatch.setattr(pipeline, "run", instead)
        about = {
            "vendor": "AMD, family 26",
            "instructions for bfloat16": "avx512_bf16",
            "vector instructions": "AVX512",
        }
        monkeypatch.setattr(environment, "machine", lambda: about)
        rows: Rows = []
        bench_demo.test_rows(rows.append)
        return rows

    return run


def stage_of(title: str, error: float) -> StageResult:
    timing = Timing(10.0, 2.0, 0, 0, fewest=3, most=4, items=(0, 1))
    agreement = Agreement(1e-6, 4.0, "here", 1e-6, error, allowed=2e-6)
    return StageResult(
        title, "transformers", "ours", "tokens", 8000, timing, agreement, [("document_attention", "cpu")]
    )


@pytest.mark.parametrize(
    ("title", "verdict"),
    [
        ("Encoder", "met: 5 x faster than what people run today, at least 4.5 x asked"),
        (
            "Spans up to 30 tokens",
            "missed: 5 x faster than what people run today, at least 60 x asked",
        ),
    ],
)
def test_a_stage_is_a_row(measure: Callable[[StageResult], Rows], title: str, verdict: str) -> None:
    (made,) = measure(stage_of(title, 1e-6))
    row = row_of(made)
    assert row.title == f"{title.lower()}, documents of the package, forward, float32"
    assert row.ours.time == 2000
    assert row.speed_up("what people run today") == 5
    assert row.goals == (verdict,)
    assert row.ours.ran == "document_attention: cpu"


def test_a_stage_that_is_wrong_is_none(measure: Callable[[StageResult], Rows]) -> None:
    with pytest.raises(AssertionError, match="Encoder: ours is off by"):
        measure(stage_of("Encoder", 1e-3))
