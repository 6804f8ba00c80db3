"""Column files: what is read, and what a bad line gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanbert_kernels.data.conll_ner import read_tagged
from spanbert_kernels.data.faults import DataFault


def read(tmp_path: Path, text: str) -> list[tuple[tuple[str, ...], tuple[str, ...], int]]:
    path = tmp_path / "data.conll"
    path.write_bytes(text.encode())
    return [(sentence.words, sentence.labels, sentence.line) for sentence in read_tagged(path)]


def test_tabs_spaces_comments_and_line_ends(tmp_path: Path) -> None:
    text = "\ufeff-DOCSTART- O\n\n# sent_id 1\nAnna\tB-person\r\nSmith\tI-person\r\n\n\n\nin O\nRome B-place"
    assert read(tmp_path, text) == [
        (("Anna", "Smith"), ("B-person", "I-person"), 4),
        (("in", "Rome"), ("O", "B-place"), 9),
    ]


def test_an_empty_file_has_no_sentence(tmp_path: Path) -> None:
    assert read(tmp_path, "\n\n") == []


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a O\nb", 2, "a word and its label are wanted, got 'b'"),
        ("\n\n\tO", 3, "a word and its label"),
        ("a O\nb person", 2, "'person' is not a label"),
        ("a B-person\nb I-place", 2, "label I-place goes on with an entity that B-person is not"),
        ("a O\nb B-place\n\nb I-place", 4, "label I-place goes on with an entity that O is not"),
        ("New York B-place\nis O\n", 2, "3 columns are wanted as in line 1, got 2"),
        ("Oslo S-place\nis O\nin B-place\n", 3, "label B-place ends a sentence, and its entity has no end"),
        ("in B-place\nOslo O\n\nOslo S-place\n", 2, "label O follows B-place, whose entity has no end"),
        ("in O\nOslo E-place\n", 2, "label E-place goes on with an entity that O is not"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, line: int, reason: str) -> None:
    with pytest.raises(DataFault, match=f"data.conll, line {line}: {reason}"):
        read(tmp_path, text)
