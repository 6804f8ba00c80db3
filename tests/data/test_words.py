"""Words to predict on: every format that tasks learn from, without its labels; folders and several files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spanbert_kernels.data import kinds
from spanbert_kernels.data.counts import tallying
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.sources import files_of
from spanbert_kernels.data.words import read_documents, read_sentences

EMPTY = "\t_" * 8
TWO = [("Mina", "laughs"), ("Yes",)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "Mina laughs\n\nYes\n"),
        ("a", "Mina laughs\nYes\n"),
        ("a.conll", "Mina\tO\nlaughs\tO\n\nYes\tO\n"),
        ("a.conll", "Mina\nlaughs\n\nYes\n"),
        ("a.conll", "Mina NNP B-NP B-PER\nlaughs VBZ B-VP O\n\n# a note\nYes UH O O\n"),
        ("a.conll", "1\tMina\tB-X\tO\n2\tlaughs\tI-LOC\tO\n\n1\tYes\tO\tO\n"),
        ("a.conll", "#begin document (d)\nMina\t(1)\nlaughs\t-\n\nYes\t-\n#end document\n"),
        ("a.bio", "Mina O\nlaughs person\n\nYes O\n"),
        ("train.txt", "Mina B-PER\nlaughs O\n\nYes O\n"),
        ("a.v4_gold_conll", "#begin document d\nMina\t(1)\nlaughs\t-\n\nYes\t-\n"),
        ("NER-de.tsv", "#\thttp://de [2009-10-17]\n1\tMina\tB-X\tO\n2\tlaughs\tO\tO\n\n#\tx y\n1\tYes\tO\tO\n"),
        ("test.annotated", "Mina\tB-PER\nlaughs\tO\n\nYes\tO\n"),
        ("a.conllu", f"1\tMina{EMPTY}\n2\tlaughs{EMPTY}\n\n1-2\tx{EMPTY}\n1\tYes{EMPTY}\n"),
        ("a.txt", f"1\tMina{EMPTY}\n2\tlaughs{EMPTY}\n\n1\tYes{EMPTY}\n"),
        ("a.jsonl", '{"tokenized_text": ["Mina", "laughs"]}\n{"text": "Yes"}\n'),
        ("a.jsonl", '{"ID": 1, "Content": "Mina laughs"}\n{"ID": 2, "Content": "Yes"}\n'),
        ("a.csv", "\ufeffID;TEXT;LABEL\r\n1;Mina laughs;\r\n2;Yes;x\r\n3;;x\r\n"),
        ("a.json", '[{"tokens": ["Mina", "laughs"], "ner": 3}, {"text": "Yes", "entities": "none"}]'),
    ],
)
def test_sentences(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read_sentences(tmp_path / name)
    assert [sentence.words for sentence in found] == TWO
    assert {label for sentence in found for label in sentence.labels} == {"O"}


@pytest.mark.parametrize(
    ("name", "text", "by_line", "wanted"),
    [
        ("a.txt", "Mina laughs\nYes\n", False, [("a", ("Mina", "laughs", "Yes"))]),
        ("a.txt", "Mina laughs\n\nYes\n", True, [("line 1", ("Mina", "laughs")), ("line 3", ("Yes",))]),
        ("a.conll", "#begin document d\nMina\t(1)\n\nlaughs\t-\n", True, [("d", ("Mina", "laughs"))]),
        ("a.conllu", f"# newdoc id = d\n1\tMina{EMPTY}\n\n1\tlaughs{EMPTY}\n", False, [("d", ("Mina", "laughs"))]),
        ("a.jsonl", '{"id": "d", "text": "Mina laughs"}\n', False, [("d", ("Mina", "laughs"))]),
    ],
)
def test_documents(
    tmp_path: Path, name: str, text: str, by_line: bool, wanted: list[tuple[str, tuple[str, ...]]]
) -> None:
    (tmp_path / name).write_text(text)
    assert [(each.name, each.words) for each in read_documents(tmp_path / name, by_line)] == wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "Never. Mina laughs. Yes!\n"),
        ("a.jsonl", '{"ID": 1, "Body": "Never. Mina laughs. Yes!"}\n'),
        ("a.csv", "TEXT\nNever. Mina laughs. Yes!\n"),
    ],
)
def test_sentences_of_a_text(tmp_path: Path, name: str, text: str) -> None:
    """Of a record's text as of plain text."""
    (tmp_path / name).write_text(text)
    found = read_sentences(tmp_path / name)
    assert [sentence.words for sentence in found] == [("Never", "."), ("Mina", "laughs", "."), ("Yes", "!")]
    assert {sentence.line for sentence in found} == {2 if name == "a.csv" else 1}
    assert [each.located.piece().start or 0 for each in found if each.located] == [0, 7, 20]


def test_a_record_s_own_words_are_one_sentence(tmp_path: Path) -> None:
    tokens = '[{"start": 0, "end": 3}, {"start": 4, "end": 9}]'
    (tmp_path / "a.jsonl").write_text(f'{{"text": "No. Mina!", "tokens": {tokens}}}\n{{"words": ["No", ".", "Yes"]}}\n')
    assert [each.words for each in read_sentences(tmp_path / "a.jsonl")] == [("No.", "Mina!"), ("No", ".", "Yes")]


def test_what_has_no_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Id,Remark\n1,Good\n")
    with pytest.raises(DataFault, match=r"a.csv, line 1: a first line that names the column text is wanted, got 'Id'"):
        read_sentences(tmp_path / "a.csv")
    (tmp_path / "a.conll").write_text("Mina\tx\nlaughs\n")
    with pytest.raises(DataFault, match="line 2: a word and other columns are wanted, got 'laughs'"):
        read_sentences(tmp_path / "a.conll")
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataFault, match="line 1: there are no words"):
        read_documents(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("Yes")
    with tallying() as tally:
        assert [each.name for each in read_documents([tmp_path / "a.txt", tmp_path / "b.txt"])] == ["b"]
    assert tally.counts["Data"].left == {("file", "without words"): 1}


def test_folders_and_several_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a.conll", ".hidden.txt", "notes.md", "deep"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text("Mina B-X\n") if name != "deep" else (tmp_path / "texts" / name).mkdir()
    os.mkfifo(tmp_path / "texts" / "pipe.txt")
    (tmp_path / "c").write_text("Yes\n")
    found = read_sentences([tmp_path / "c", tmp_path / "texts"])
    assert [(each.path.name, each.words) for each in found] == [
        ("c", ("Yes",)),
        ("a.conll", ("Mina",)),
        ("b.txt", ("Mina",)),
    ]
    with pytest.raises(ValueError, match=r"texts: the folder holds no file that ends in \.csv"):
        files_of(tmp_path / "texts", (".csv",))
    with pytest.raises(FileNotFoundError):
        read_sentences(tmp_path / "nowhere.conll")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{ and } are brackets\n", kinds.PLAIN),
        ("{ O\nx O\n", kinds.CONLL),
        ('{"text": "a"}', kinds.JSON),
        ('[\n{"text": "a"}]', kinds.JSON),
        ("[ O\n] O\n", kinds.CONLL),
        ("{\n", kinds.JSON),
        ("I saw\nhe ran\n", kinds.PLAIN),
        ("# only\n# comments\n", kinds.PLAIN),
        ("I O\n", kinds.PLAIN),
        ("Oslo B-LOC\n", kinds.CONLL),
        ("Oh no -\nnot now -\n", kinds.PLAIN),
        ("-DOCSTART- O\n\na O\n", kinds.CONLL),
        ("a -\nb (1)\n", kinds.CONLL),
        ("a\tb c\nd\te f\n", kinds.PLAIN),
    ],
)
def test_sniffing(text: str, kind: str) -> None:
    assert kinds.sniff(text) == kind
