"""The tables of the pages that need what the newest record may not have yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import readme_tables
from records.record import Record, Row

Make = Callable[..., Record]
MakeRow = Callable[..., Row]
OPENVINO: dict[str, Any] = {"kind": "peer", "milliseconds": 6.0, "ratio": [2.7, 2.9, 3.1], "error": 2e-6}
MISSING = {"kind": "peer", "unavailable": "this needs onnxruntime: pip install onnxruntime"}
FLOOR = {"kind": "floor", "milliseconds": 1.9}


def results(record: Record) -> readme_tables.Results:
    return readme_tables.Results(record, "record.json")


def test_runtimes_have_ratios_spreads_and_errors(make_record: Make, make_row: MakeRow) -> None:
    others = {"OpenVINO": OPENVINO, "ONNX Runtime": MISSING, "oneDNN's products alone": FLOOR}
    row = make_row(suite="encoder", workload="16 documents", providers=others, largest=4.0)
    record = make_record(
        row,
        machine={"vendor": "AMD, family 26"},
        versions={"torch": "2.13", "openvino": "2026.4", "python": "3.12"},
    )
    page = readme_tables.runtimes(results(record))
    assert "|  | ours, ms | OpenVINO | ONNX Runtime | oneDNN's products alone |" in page
    assert "| 16 documents, float32 | 2.00 | 2.90 (2.70 to 3.10) |  | 0.950 |" in page
    assert "| 16 documents, float32 | 2.5e-08 | 5.0e-07 |  |  |" in page
    assert "With openvino 2026.4, torch 2.13 on a processor of AMD, family 26." in page
    assert "No figure: ONNX Runtime this needs onnxruntime" in page


def test_a_record_without_runtimes_says_so(make_record: Make, make_row: MakeRow) -> None:
    assert readme_tables.runtimes(results(make_record(make_row(suite="encoder")))) == "Not measured yet.\n"


def test_a_suite_measured_again_later_gives_its_rows(make_record: Make, make_row: MakeRow) -> None:
    again = readme_tables.Results(make_record(make_row(suite="encoder", ours=1.0)), "later.json")
    first = make_record(make_row(suite="encoder", ours=2.0), make_row())
    page = readme_tables.Results(first, "record.json", (again,))
    name = make_row().workload
    assert page.row("encoder", name).ours.milliseconds == 1.0
    assert page.row("span_pool", name).ours.milliseconds == 2.0
    assert (page.of("encoder").name, page.of("span_pool").name) == ("later.json", "record.json")


def test_goals_are_those_of_encoders_the_demo_and_pooling(make_record: Make, make_row: MakeRow) -> None:
    told = [
        make_row(suite="encoder", workload="16 documents", goals=["met: 2.9 x"]),
        make_row(suite="demo", workload="spans", goals=["reported: 3 x; 60 x asked"]),
        make_row(workload="max, all spans up to 30 of 512", goals=["missed: 2 x"]),
    ]
    other = make_row(workload="mean, 10 spans", goals=["met: of another row"])
    page = readme_tables.goals(results(make_record(*told, other)))
    assert "| encoder: 16 documents, forward, float32 | met | 2.9 x |" in page
    assert "| demo: spans, forward, float32 | reported | 3 x; 60 x asked |" in page
    assert "| missed | 2 x |" in page
    assert "of another row" not in page


def test_the_fastest_of_transformers_is_of_transformers(make_record: Make, make_row: MakeRow) -> None:
    """Not of another runtime, which may be faster."""
    others = {
        "OpenVINO": OPENVINO,
        "transformers, sdpa": {"kind": "peer", "milliseconds": 20.0},
        "transformers, eager": {"kind": "peer", "milliseconds": 30.0},
    }
    row = make_row(suite="encoder", workload="16 x 128", providers=others)
    page = readme_tables.encoder(results(make_record(row)))
    assert page.splitlines()[2:] == ["| 16 x 128 tokens, nothing to remove | 10.00 | 2.00 | 20.0 (sdpa) | 15.00 |"]
