"""Numbers at the edges of their units; the doctests show the middle."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from spanbert_kernels.cli import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.99949, "999 ms"),
        (0.9996, "1.00 s"),
        (0.00099960, "1.00 ms"),
        (9.999, "10.0 s"),
        (99.96, "100 s"),
        (1e-7, "0.10 µs"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert formatting.seconds(value) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(-5, "< 1 MiB"), (2**20, "1 MiB"), (1023 * 2**20, "1,023 MiB"), (2**30, "1.00 GiB"), (25 * 2**30, "25.0 GiB")],
)
def test_memory(size: int, text: str) -> None:
    assert formatting.memory(size) == text


def test_errors_and_rates() -> None:
    assert [formatting.error(value) for value in (math.nan, math.inf, 0.0, 2.5)] == ["NaN", "inf", "0", "2.5e+00"]
    assert [formatting.rate(n, 1.0) for n in (7, 99, 1234, 123_456)] == ["7.00", "99.0", "1,230", "123,000"]


def test_paths_of_any_bytes_can_be_written() -> None:
    assert formatting.path(Path("caf\udce9.txt")).encode() == b"caf\xef\xbf\xbd.txt"
