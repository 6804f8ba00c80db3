"""The suite of other packages' span layers: its cases hold together, and their tables come from the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import readme_tables
from records.record import Record, Row

import spanbert_kernels


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(spanbert_kernels, "__path__", list(spanbert_kernels.__path__))  # to which suites add theirs
    from bench_span_layers import CASES

    return CASES


def test_every_case_has_a_table_and_asks_of_what_it_measures(cases: dict[str, Any]) -> None:
    from bench_span_layers import SUITE

    pages = "".join(page.read_text(encoding="utf-8") for page in readme_tables.PAGES)
    for package in {name.partition(": ")[0] for name in cases}:
        assert f"<!-- speed: span_layers_{package} -->" in pages, f"no page has a table of {package}"
    for workload in SUITE.workloads:
        case = cases[workload.name]
        asked = workload.direction != "forward" or tuple(case.directions) == ("forward",)
        assert bool(workload.goals) == (asked and case.goal is not None)
        assert workload.peak_goal is None or {"ours", "original"} <= set(workload.peaks)


def test_sides_of_a_case_give_the_same(cases: dict[str, Any]) -> None:
    import registry
    from bench_span_layers import SUITE, inputs

    (workload,) = (each for each in SUITE.workloads if each.quick and each.name.startswith("spert: "))
    ways = {name: registry.ready(SUITE, workload, name) for name in ("ours", "original")}
    results = [way.results(way.run()) for way in ways.values()]
    assert results[0].equal(results[1])
    assert SUITE.work(workload, inputs(workload, workload.dtype)).bytes == 4 * 768 * (24 + 195)


def test_a_table_has_the_rows_of_its_package(make_record: Callable[..., Record], make_row: Callable[..., Row]) -> None:
    original = {"kind": "eager", "milliseconds": 40.0, "ratio": [19.0, 20.0, 21.0], "peak": 200.0}
    more = {"suite": "span_layers", "goals": ["met: 20 x faster than original"], "providers": {"original": original}}
    rows = [make_row(workload=f"{package}: pooling", **more) for package in ("spert", "pure")]
    results = readme_tables.Results(make_record(*rows), "record.json")
    page = readme_tables.span_layers("spert", results)
    assert page.splitlines()[2:] == [
        "| pooling, forward, float32 | 20.0 (19.0 to 21.0) | 2.00 | 40.0 | 10.0 (200) | met |"
    ]
    assert readme_tables.span_layers("gliner", results) == "Not measured yet.\n"
