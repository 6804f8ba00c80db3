"""JSON lines and single values: records with their lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.jsonl import read_records


def read(tmp_path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    path = tmp_path / "a.jsonl"
    path.write_text(text, newline="")
    return list(read_records(path))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('{"a": 1}\n{"a": 2}', [1, 2]),
        ('\r\n{"a": 1}\r\n\r\n{"a": 2}\r\n', [2, 4]),
        ('[{"a": 1}, {"a": 2}]', [1, 1]),
        ('[\n  {"a": 1},\n\n  {"a": 2}\n]\n', [2, 4]),
        ('{\n"a": 1\n}\n', [1]),
        ("[]", []),
        ("[ ]\n", []),
    ],
)
def test_lines_of_records(tmp_path: Path, text: str, lines: list[int]) -> None:
    assert [(line, each["a"]) for line, each in read(tmp_path, text)] == list(zip(lines, (1, 2), strict=False))


def test_half_pairs_everywhere_and_whole_ones_stay(tmp_path: Path) -> None:
    text = '{"a": ["\\ud83d", {"\\udc00": "x\\uD83Dy"}], "b": "\\ud834\\udd1e", "c": 1}'
    assert read(tmp_path, text) == [(1, {"a": ["?", {"?": "x?y"}], "b": "𝄞", "c": 1})]
    assert read(tmp_path, f"[{text}]") == read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1}\n{"a"', r"line 2: not JSON: Expecting ':' delimiter \(character 5\)"),
        ('{"a": 1} {"a": 2}\n', r"line 1: not JSON: '\{\"a\": 2\}' stands behind the value"),
        ('{"a": NaN}\n', "line 1: not JSON: NaN is no JSON value"),
        ('[{"a": 1},\n 2]', "line 2: a JSON object is wanted, got '2'"),
        ('"a"\n', "line 1: a JSON object is wanted"),
        ('{"a": 1}\n' + "[" * 100_000, "line 2: not JSON: nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "line 1: not JSON: nested too deeply"),
        ("text,label\na,b\n", "line 1: not JSON"),
    ],
)
def test_what_is_no_record(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataFault, match=f"a.jsonl, {reason}"):
        read(tmp_path, text)
