"""Column files: what is read, and what a bad line gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanbert_kernels.data.conll_ner import read_tagged
from spanbert_kernels.data.faults import DataFault, DataWarning


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


def labels(tmp_path: Path, text: str) -> list[tuple[str, ...]]:
    return [own for _, own, _ in read(tmp_path, text)]


@pytest.mark.parametrize(
    ("text", "scheme", "wanted"),
    [
        (
            "U.N. NNP I-NP I-ORG\nofficial NN I-NP O\nEkeus NNP I-NP I-PER\nheads VBZ I-VP O\n\nBaku NNP I-NP I-LOC\n",
            "IOB1",
            [("B-ORG", "O", "B-PER", "O"), ("B-LOC",)],
        ),
        (
            "Anna\tI-PER\nSmith\tI-PER\nBo\tB-PER\nOslo\tI-LOC\n",
            "IOB1",
            [("B-PER", "I-PER", "B-PER", "B-LOC")],
        ),
        (
            "Anna\tB-PER\nMary\tI-PER\nSmith\tE-PER\nin\tO\nOslo\tS-LOC\nRome\tS-LOC\n",
            "BIOES or BILOU",
            [("B-PER", "I-PER", "I-PER", "O", "B-LOC", "B-LOC")],
        ),
        (
            "Anna\tB-PER\nSmith\tL-PER\nOslo\tU-LOC\n\nBo\tU-PER\n",
            "BIOES or BILOU",
            [("B-PER", "I-PER", "B-LOC"), ("B-PER",)],
        ),
    ],
)
def test_other_schemes_become_bio_and_it_is_said(
    tmp_path: Path, text: str, scheme: str, wanted: list[tuple[str, ...]]
) -> None:
    with pytest.warns(DataWarning, match=f"data.conll: labels are {scheme} and are read as BIO"):
        assert labels(tmp_path, text) == wanted


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "text",
    [
        "Anna B-PER\nSmith I-PER\nBo B-PER\n",
        "Anna\tB-PER\tx\nSmith\tI-PER\tx\n".replace("\tx", ""),
        "in O\nthe O\n",
        "Anna B-S-PER\n",
    ],
)
def test_bio_stays_as_it_is(tmp_path: Path, text: str) -> None:
    rows = [line.replace("\t", " ").rsplit(" ", 1)[1] for line in text.strip().split("\n")]
    assert labels(tmp_path, text) == [tuple(rows)]


def test_germeval(tmp_path: Path) -> None:
    text = (
        "#\thttp://de.wikipedia.org/wiki/Schartau [2009-10-17]\n1\tSchartau\tB-PER\tO\n2\tsagte\tO\tO\n"
        "3\tdem\tO\tO\n4\t1999\tB-ORG\tB-LOC\n\n#\turl [2010-01-01]\n1\tFirmengründer\tO\tO\n2\t#\tO\tO\n"
    )
    with pytest.warns(DataWarning, match=r"labels in column 4 lie inside those of column 3 and are not read"):
        assert read(tmp_path, text) == [
            (("Schartau", "sagte", "dem", "1999"), ("B-PER", "O", "O", "B-ORG"), 2),
            (("Firmengründer", "#"), ("O", "O"), 8),
        ]


@pytest.mark.filterwarnings("error")
def test_columns_between_word_and_label(tmp_path: Path) -> None:
    """Phrases are no layer of entities, a counting column is no word, and a number in two columns is one."""
    assert read(tmp_path, "EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n")[0][:2] == (("EU", "rejects"), ("B-ORG", "O"))
    assert read(tmp_path, "EU NNP B-NP O\nrejects VBZ B-VP O\n")[0][:2] == (("EU", "rejects"), ("O", "O"))
    assert read(tmp_path, "0\tOslo\tB-LOC\n1\tis\tO\n\n0\tYes\tO\n")[1][0] == ("Yes",)
    assert read(tmp_path, "1\tO\n2\tO\n")[0][0] == ("1", "2")
    assert read(tmp_path, "d 0 Oslo B-LOC\nd 1 is O\n")[0][0] == ("Oslo", "is")
    assert read(tmp_path, "d 0 1 Oslo B-LOC\nd 0 2 is O\n\ne 0 3 Yes O\n")[1][0] == ("Yes",)
    assert read(tmp_path, "d\tOslo\tB-LOC\nd\tis\tO\nd\tfar\tO\nd\tand\tO\nd\tbig\tO\n")[0][0][:2] == ("Oslo", "is")
    assert read(tmp_path, "ha UH O\nha UH O\n")[0][0] == ("ha", "ha")
    assert read(tmp_path, "7 CD O\n8 CD O\n")[0][0] == ("7", "8")
    assert read(tmp_path, "1 CD O\n000 CD O\n")[0][0] == ("1", "000")
    assert read(tmp_path, "Oslo _ _ B-LOC\n# id 5239 domain=en\nis _ _ O\n")[0][0] == ("Oslo", "is")


def test_layers_of_labels(tmp_path: Path) -> None:
    """LitBank's: the outermost are read."""
    text = "Lady\tB-PER\tB-PER\tO\nof\tI-PER\tO\tO\nOslo\tI-PER\tB-PER\tO\n"
    with pytest.warns(DataWarning, match=r"labels in column 3 lie inside|labels in columns 3 to 4 lie inside"):
        assert labels(tmp_path, text.replace("\tO\n", "\tB-PER\n")) == [("B-PER", "I-PER", "I-PER")]
    assert labels(tmp_path, text) == [("B-PER", "I-PER", "I-PER")]


def test_a_hash_is_a_word_and_a_comment_is_none(tmp_path: Path) -> None:
    text = "# sent_id = 1\nWe O\n# O\n1 O\n#tag O\n# note\n## two words here\n\n# O\n"
    assert [words for words, _, _ in read(tmp_path, text)] == [("We", "#", "1", "#tag"), ("#",)]
    assert [words for words, _, _ in read(tmp_path, text.replace(" O", "\tO"))] == [("We", "#", "1", "#tag"), ("#",)]
    assert [words for words, _, _ in read(tmp_path, "# text = a\tO\nWe\tO\n")] == [("We",)]
    assert read(tmp_path, "# only\n# comments\n") == []


def test_comments_do_not_shift_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.conll"
    path.write_text("Mina B-PER\n# a note\n# another\nin O\n")
    (sentence,) = read_tagged(path)
    assert [sentence.line_of(word) for word in (0, 1)] == [1, 4]
    with pytest.raises(DataFault, match="line 4: label I-LOC goes on"):
        read(tmp_path, "Mina B-PER\n# a note\n# another\nin I-LOC\n")


def test_docstart_is_a_boundary(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- -X- O\nMina NNP B-NP B-PER\n-DOCSTART- -X- -X- O\nBo NNP B-NP B-PER\n"
    assert [words for words, _, _ in read(tmp_path, text)] == [("Mina",), ("Bo",)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Word,Tag\nOslo,B-LOC\n", "line 1: a word and its label are wanted, got 'Word,Tag'"),
        ("Word\tTag\nOslo\tB-LOC\n", "line 1: 'Tag' is not a label"),
        ("1\tOslo\t_\t_\t_\t_\t0\troot\t_\t_\n", "line 1: '_' is not a label"),
        ("Oslo\tB-LOC\tx\nis\tO\n", "line 2: 3 columns are wanted as in line 1, got 2"),
        ("Oslo M-LOC\n", "line 1: 'M-LOC' is not a label"),
        ("\tO\n", "line 1: a word and its label are wanted"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataFault, match=f"data.conll, {reason}"):
        read(tmp_path, text)
