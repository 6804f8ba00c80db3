"""Coreference columns: which column has the words, what brackets say, and what a bad file gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanbert_kernels.data.conll_coref import Mention, read_marked
from spanbert_kernels.data.faults import DataFault, DataWarning

ONTONOTES = """#begin document (nw/x/00/x_0001); part 000
nw/x/00/x_0001   0   0     Mina   NNP  (TOP(S(NP*)     -    -   -   Speaker#1  (PERSON)  (ARG0*)        (0)
nw/x/00/x_0001   0   1      saw   VBD        (VP*    see   01   1   Speaker#1        *      (V*)         -
nw/x/00/x_0001   0   2        #   PRP$     (NP*      -    -   -   Speaker#1        *    (ARG1*    (1|(0)
nw/x/00/x_0001   0   3     1999    NN          *)))     -    -   -   Speaker#1        *         *)         1)

nw/x/00/x_0001   0   0      Yes    UH   (TOP(INTJ*))     -    -   -   Speaker#2        *   -

#end document
#begin document (nw/x/00/x_0001); part 001
nw/x/00/x_0001   1   0     1999    UH   (TOP(INTJ*))     -    -   -   Speaker#2        *   -
#end document
"""
LITBANK = (
    "#begin document (105_x_brat); part 0\n"
    + "".join(
        f"105_x_brat\t0\t{i}\t{word}\t_\t_\t_\t_\t_\t_\t_\t_\t{mark}\n"
        for i, word, mark in [(0, "Lady", "(3"), (1, "Mina", "3)|(4)"), (2, "slept", "_")]
    )
    + "#end document\n"
)


def read(
    tmp_path: Path, text: str, mentions: bool = True
) -> list[tuple[str, tuple[str, ...], list[tuple[int, int, str]]]]:
    path = tmp_path / "data.conll"
    path.write_text(text)
    return [(d.name, d.words, [(m.first, m.last, m.entity) for m in d.mentions]) for d in read_marked(path, mentions)]


def test_ontonotes(tmp_path: Path) -> None:
    """Sentences have as many columns as they have predicates."""
    assert read(tmp_path, ONTONOTES) == [
        (
            "(nw/x/00/x_0001); part 000",
            ("Mina", "saw", "#", "1999", "Yes"),
            [(0, 0, "0"), (2, 3, "1"), (2, 2, "0")],
        ),
        ("(nw/x/00/x_0001); part 001", ("1999",), []),
    ]


def test_ontonotes_with_words_that_are_numbers(tmp_path: Path) -> None:
    """They would pass for another column that counts."""
    rows = "".join(f"a 0 {i} {number} CD * - - - - * -\n" for i, number in enumerate((1, 2, 3)))
    assert read(tmp_path, f"#begin document (a); part 0\n{rows}")[0][1] == ("1", "2", "3")


def test_litbank(tmp_path: Path) -> None:
    wanted = [("(105_x_brat); part 0", ("Lady", "Mina", "slept"), [(0, 1, "3"), (1, 1, "4")])]
    assert read(tmp_path, LITBANK) == wanted


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("Anna\t(1)\nleft\t-\n", ("Anna", "left")),
        ("0\tAnna\t(1)\n1\tleft\t_\n", ("Anna", "left")),
        ("d\tAnna\t(1)\nd\tleft\t_\nd\tOslo\t_\n", ("Anna", "left", "Oslo")),
        ("c/d\t0\t0\tAnna\t(1| (2)\nc/d\t0\t1\tleft\t1)\n", ("Anna", "left")),
        ("Anna NNP (1| (2)\nleft VBD 1)\n", ("Anna", "left")),
        ("1 (1)\n2 -\n3 -\n", ("1", "2", "3")),
        ("Mina (1)\n# -\n# note\nher (1)\n", ("Mina", "#", "her")),
        ("Mina\t(1)\n#\t-\n#tag\t-\n", ("Mina", "#", "#tag")),
        ("#\t(1)\n", ("#",)),
    ],
)
def test_the_column_of_the_words(tmp_path: Path, rows: str, words: tuple[str, ...]) -> None:
    [(_, found, mentions)] = read(tmp_path, f"#begin document (d)\n{rows}#end document\n")
    assert found == words
    assert mentions[0][:1] == (0,)


def test_typed_brackets_that_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("Anna\t(person-1-Ada(person-2)\nleft\tperson-1-Ada)\n")
    assert read_marked(path)[0].mentions == (Mention(0, 1, "person", "1"), Mention(0, 0, "person", "2"))


def test_unnamed_documents_are_numbered(tmp_path: Path) -> None:
    assert [name for name, _, _ in read(tmp_path, "Anna\t(1)\n")] == ["data"]
    assert [name for name, _, _ in read(tmp_path, "#begin document\na\t-\n#begin document x\nb\t-\n")] == [
        "data 1",
        "x",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Anna\tB-person\n", "line 1: 'B-person' is not a mention's bracket"),
        ("Anna\t(1)\nleft\tVBD\t-\n", "line 2: 2 columns are wanted as in line 1, got 3"),
        ("New York (1)\nis -\n", "line 2: 3 columns are wanted as in line 1, got 2"),
        ("Anna\n", "line 1: a word and its brackets are wanted, got 'Anna'"),
        ("\t(1)\n", "line 1: a word and its brackets are wanted"),
        ("Anna\t1)\n", r"line 1: '1\)' closes a mention that is not open"),
        ("# a note\nAnna\t(1\n", r"line 2: a mention of '\(1' is never closed"),
        ("Anna\t((1)\n", "line 1: .* is not a mention's bracket"),
        ("1\t1\t(1)\n2\t2\t-\n", "line 1: a word and its brackets are wanted, no column has words: '1 1"),
        (ONTONOTES.replace("   0   2  ", "   0   x  "), "line 2: a word|line 3: 13 columns|line 7: 13 columns"),
        ("#begin document (a)\n#end document\n", "line 1: a document without words"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataFault, match=f"data.conll, {reason}"):
        read(tmp_path, text)


def test_an_empty_word_among_others_is_warned_of(tmp_path: Path) -> None:
    """As one file of OntoGUM has it: the document is taken, and its mentions stay where they are."""
    with pytest.warns(
        DataWarning, match=r"data.conll, line 2: a word is empty, and taken for '_' \(1 in the document\)"
    ):
        ((_, words, mentions),) = read(tmp_path, "1\tNew\t(18\n2\t\t_\n3\tZealand\t18)\n")
    assert words == ("New", "_", "Zealand")
    assert [each[:2] for each in mentions] == [(0, 2)]


def test_words_alone_need_no_brackets(tmp_path: Path) -> None:
    assert read(tmp_path, "#begin document d\nAnna\nleft\n", mentions=False) == [("d", ("Anna", "left"), [])]
    assert read(tmp_path, "Anna\t((\nleft\t)\n", mentions=False) == [("data", ("Anna", "left"), [])]
