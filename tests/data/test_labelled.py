"""Files of labelled documents: what is read, and what a bad line gets."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.labelled import read_labelled


def read(path: Path, text: str, labels: bool = True) -> list[tuple[str, str, str | None, int]]:
    path.write_bytes(text.encode())
    return [(d.text, d.label, d.cluster, d.line) for d in read_labelled(path, labels)]


def test_json_lines(tmp_path: Path) -> None:
    text = '{"text": "Good.", "label": "positive", "cluster": 3}\n\n{"text": "Bad.", "label": 0}\n'
    assert read(tmp_path / "a.jsonl", text) == [("Good.", "positive", "3", 1), ("Bad.", "0", None, 3)]


def test_labels_are_one_thing_each(tmp_path: Path) -> None:
    """Numbers and truth are as JSON spells them, whichever way a number was written."""
    values = ["1", "1.0", "2.5", "true", "false", '"none"', '"O"', '"1"', "-0", "1e3"]
    rows = "".join(f'{{"text": "a", "label": {value}, "cluster": {value}}}\n' for value in values)
    found = read(tmp_path / "a.jsonl", rows)
    wanted = ["1", "1", "2.5", "true", "false", "none", "O", "1", "0", "1000"]
    assert [label for _, label, _, _ in found] == [cluster for _, _, cluster, _ in found] == wanted


@pytest.mark.parametrize("field", ["label", "cluster"])
@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ('["x", "y"]', r"a list: \['x', 'y'\]"),
        ("[]", r"a list: \[\]"),
        ('{"x": 1}', "an object: {'x': 1}"),
        ("-1e400", "no number: -inf"),
    ],
)
def test_lists_are_no_labels(tmp_path: Path, field: str, value: str, seen: str) -> None:
    fields = {"label": '"x"', field: value}
    row = ", ".join(f'"{name}": {each}' for name, each in fields.items())
    with pytest.raises(DataFault, match=rf"a\.jsonl, line 1: a {field} is one text or number, got {seen}"):
        read(tmp_path / "a.jsonl", f'{{"text": "a", {row}}}\n')


def test_a_table_without_a_header_and_with_quotes(tmp_path: Path) -> None:
    text = 't1;negative;"No; ""never""\nagain"\r\nt2;positive;Yes, please\r\n'
    assert read(tmp_path / "a.csv", text) == [
        ('No; "never"\nagain', "negative", None, 1),
        ("Yes, please", "positive", None, 3),
    ]


def test_a_table_with_a_header(tmp_path: Path) -> None:
    assert read(tmp_path / "a.tsv", "text\tcluster\tlabel\nHello\tx\tgreeting\n") == [("Hello", "greeting", "x", 2)]


def test_plain_lines_have_no_labels(tmp_path: Path) -> None:
    assert [each[0] for each in read(tmp_path / "a.txt", "One.\n\nTwo.\n", labels=False)] == ["One.", "Two."]
    wrapped = textwrap.fill("The harbour master closed the north gate. " * 9, 60)
    assert [each[0] for each in read(tmp_path / "a.txt", f"{wrapped}\n\nTwo.\n", labels=False)] == [wrapped, "Two."]
    with pytest.raises(DataFault, match="labels stand in"):
        read(tmp_path / "a.txt", "One.\n")


@pytest.mark.parametrize(
    ("name", "text", "line", "reason"),
    [
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text"', 2, "not JSON"),
        ("a.jsonl", "[1]", 1, "a JSON object is wanted, got '1'"),
        ("a.jsonl", '{"text": "", "label": "b"}', 1, "a text is wanted, got ''"),
        ("a.jsonl", '{"text": "a"}', 1, "a label is wanted, got None"),
        ("a.csv", "t1;x;One\nt2;Two\n", 2, r"3 columns are wanted \(id, label, text\), got 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, text: str, line: int, reason: str) -> None:
    with pytest.raises(DataFault, match=f"{name}, line {line}: {reason}"):
        read(tmp_path / name, text)
