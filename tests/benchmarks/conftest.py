from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from records.record import Record, Row, row_of


def provider(kind: str, milliseconds: float, **more: Any) -> dict[str, Any]:
    quartiles = [0.98 * milliseconds, 1.02 * milliseconds]
    return {"kind": kind, "milliseconds": milliseconds, "quartiles": quartiles, "rounds": 20, **more}


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """A row of the mean over spans: ours takes `ours` ms, eager PyTorch and a peer as many as named."""

    def make(ours: float = 2.0, eager: float = 40.0, bag: float = 10.0, **more: Any) -> Row:
        extra = more.pop("providers", {})
        made = {
            "suite": "span_pool",
            "workload": "mean, all spans",
            "direction": "forward",
            "dtype": "float32",
            "device": "cpu",
            "axes": {"tokens": 512},
            "scaling": None,
            "curve": None,
            "bytes": 10_000_000,
            "operations": 5_000_000,
            "floor": 1.0,
            "goals": ["met: 20 x faster than eager, at least 10 x asked"],
            "providers": {
                "ours": provider("ours", ours, error=1e-7, allowed=2e-7, peak=10.0, share=0.5, ran="span_pool: cpu"),
                "gather": provider("eager", eager, error=1e-7, peak=200.0, share=0.02, ran="PyTorch"),
                "bag": provider("peer", bag, error=1e-7, share=0.1, ran="PyTorch"),
                "copy": provider("floor", 1.0),
                **extra,
            },
            **more,
        }
        return row_of(made)

    return make


@pytest.fixture
def make_record(make_row: Callable[..., Row]) -> Callable[..., Record]:
    def make(*rows: Row, **more: Any) -> Record:
        head: dict[str, Any] = {
            "date": "2026-01-02",
            "commit": "0123456789" * 4,
            "dirty": False,
            "quick": False,
            "seed": 0,
            "seconds": 12.0,
            "machine": {"processor": "A processor", "cores": "2"},
            "versions": {"python": "3.12", "torch": "2.13"},
            "ceilings": {"copy, GB/s": 15.0, "float32, GFLOP/s": 120.0},
        }
        return Record(**{**head, **more}, rows=list(rows) or [make_row()])

    return make
