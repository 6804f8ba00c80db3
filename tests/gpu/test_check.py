"""What gpu-check writes can be read without a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

check = pytest.importorskip("gpu.check")


def lines() -> Iterable[str]:
    entry = {"milliseconds": 0.01, "quartiles": [0.009, 0.011], "rounds": 0, "error": 1e-3, "share": 0.8, "peak": 1.0}
    row = {
        "suite": "span_pool",
        "workload": "mean, 16 x 64",
        "direction": "forward",
        "dtype": "bfloat16",
        "device": "cuda",
        "axes": {"tokens": 1024},
        "scaling": None,
        "curve": None,
        "bytes": 1000,
        "operations": 500,
        "floor": 0.008,
        "providers": {"ours": {"kind": "ours", **entry, "ran": "triton", "replayed": 0.009}},
        "goals": [],
    }
    yield json.dumps({"collected": 2, "package": "x"})
    yield json.dumps({"ceilings": {"copy, GB/s": 4000.0, "bfloat16, GFLOP/s": 700_000.0}})
    yield json.dumps({"row": row})
    yield json.dumps({"failure": {"suite": "span_pool", "workload": "max", "reason": "off"}})


def test_its_record_makes_a_report(tmp_path: Path) -> None:
    from records.record import load
    from records.report import render

    found = {"gpu": "A GPU", "capability": "90", "memory_gib": 80.0, "torch": "2.13", "commit": "abc", "dirty": True}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(check.record_of(list(lines()), found, 12.34)))
    record = load(path)
    assert record.rows[0].ours.replayed == 0.009
    assert record.ceilings["copy, GB/s"] == 4000
    assert record.dirty
    assert set(record.versions) == {"torch"}
    assert [failure["workload"] for failure in record.failures] == ["max"]
    page = render([record])
    assert "A GPU" in page
    assert "Roofline" in page
    assert "4,000 GB/s" in page
    assert "mean, 16 x 64, forward, bfloat16 on cuda" in page
