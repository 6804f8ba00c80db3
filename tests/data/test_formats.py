"""Every format: the same documents in every encoding and with every line end; only what the format says separates."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_text import ODD

from spanbert_kernels.data.conllu import read_trees
from spanbert_kernels.data.entities import read_marked, read_nested, read_tagged
from spanbert_kernels.data.faults import DataFault, NotText
from spanbert_kernels.data.labelled import read_labelled
from spanbert_kernels.data.parallel import read_aligned, read_sources
from spanbert_kernels.data.related import read_relations
from spanbert_kernels.data.squad import read_questions
from spanbert_kernels.data.summaries import read_summarised
from spanbert_kernels.data.words import read_documents, read_sentences

Read = Callable[[Path], Any]
TREE = "# text = {w} sleeps\n1\t{w}\t_\t_\t_\t_\t2\tnsubj\t_\t_\n2\tsleeps\t_\t_\t_\t_\t0\troot\t_\t_\n\n"
ENTITY = (
    "# newdoc id = d\n# global.Entity = eid-etype\n1\t{w}\t_\t_\t_\t_\t_\t_\t_\tEntity=(e1-person)\n"
    "2\tsleeps\t_\t_\t_\t_\t_\t_\t_\t_\n\n"
)
QUESTION = {"id": "1", "question": "Who?", "answers": [{"text": "{w}", "answer_start": 0}]}
SQUAD = json.dumps({"data": [{"paragraphs": [{"context": "{w} sleeps", "qas": [QUESTION]}]}]})


def answers(path: Path) -> list[str]:
    return [text for question in read_questions(path) for text, _ in question.answers]


# name of the file, its text with a word {w}, what reads it to words
FORMATS: dict[str, tuple[str, str, Read]] = {
    "tagged": ("a.conll", "{w}\tB-person\nsleeps\tO\n", lambda p: [s.words[0] for s in read_tagged(p)]),
    "tagged, spaces": ("a.conll", "{w} B-person\nsleeps O\n", lambda p: [s.words[0] for s in read_tagged(p)]),
    "marked": ("a.conll", "#begin document d\n{w}\t(1)\nsleeps\t-\n", lambda p: [d.words[0] for d in read_marked(p)]),
    "entities": ("a.conllu", ENTITY, lambda p: [d.words[0] for d in read_marked(p) if d.mentions]),
    "trees": ("a.conllu", TREE, lambda p: [s.words[0] for s in read_trees(p)]),
    "JSON lines": ("a.jsonl", '{"text": "{w}", "label": "x"}\n', lambda p: [d.text for d in read_labelled(p)]),
    ".csv": ("a.csv", "label,text\nx,{w}\n", lambda p: [d.text for d in read_labelled(p)]),
    ".csv, no header": ("a.csv", "1;x;{w}\n2;x;{w}\n", lambda p: [d.text for d in read_labelled(p)][:1]),
    ".tsv": ("a.tsv", "label\ttext\nx\t{w}\n", lambda p: [d.text for d in read_labelled(p)]),
    "SQuAD": ("a.json", SQUAD.replace("{w}", "{w}"), answers),
    "summaries": (
        "a.jsonl",
        '{"source": "{w}", "target": "x"}\n',
        lambda p: [pair.source for pair in read_summarised(p)],
    ),
    "GLiNER": (
        "a.jsonl",
        '{"tokenized_text": ["{w}", "sleeps"], "ner": [[0, 0, "person"]]}\n',
        lambda p: [d.words[0] for d in read_nested(p) if d.mentions],
    ),
    "relations": ("a.tsv", "{w}\te2\tmet\n", lambda p: [first for first, _ in read_relations(p)]),
    "plain": ("a.txt", "{w}\n", lambda p: [s.located.text for s in read_sentences(p) if s.located]),
    "plain documents": (
        "a.txt",
        "{w}\n",
        lambda p: [d.located.text.strip("\r\n") for d in read_documents(p) if d.located],
    ),
    "lines": ("a.txt", "{w}\n", lambda p: [pair.source for pair in read_sources(p)]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_encodings_and_line_ends_change_nothing(tmp_path: Path, name: str) -> None:
    file, text, read = FORMATS[name]
    text = text.replace("{w}", "Zoë𝄞")
    path = tmp_path / file
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
        for end in ("\n", "\r\n", "\r"):
            marked = "\ufeff" * encoding.endswith(("le", "be")) + text.replace("\n", end)
            path.write_bytes(marked.encode(encoding))
            assert read(path) == ["Zoë𝄞"], (encoding, end)


@pytest.mark.parametrize("name", FORMATS)
def test_another_encoding_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    file, text, read = FORMATS[name]
    before, _, _ = text.partition("{w}")
    path = tmp_path / file
    path.write_bytes(text.replace("{w}", "Zoë").encode("latin-1"))
    with pytest.raises(NotText, match=rf"{file}, line {before.count(chr(10)) + 1}: not UTF-8 text \(byte "):
        read(path)
    path.write_bytes(text.replace("{w}", "Zo\0").encode())
    with pytest.raises(NotText, match=rf"{file}, line {before.count(chr(10)) + 1}: binary"):
        read(path)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", FORMATS)
def test_odd_white_space_is_text(tmp_path: Path, name: str, odd: str) -> None:
    file, text, read = FORMATS[name]
    path = tmp_path / file
    in_json = json.dumps(f"Zo{odd}e", ensure_ascii=ord(odd) < 32)[1:-1]  # JSON escapes controls
    path.write_text(text.replace("{w}", in_json if file.endswith(("json", "jsonl")) else f"Zo{odd}e"), newline="")
    assert read(path) == [f"Zo{odd}e"]


@pytest.mark.parametrize("name", [name for name, (file, _, _) in FORMATS.items() if file.endswith(("json", "jsonl"))])
def test_half_a_surrogate_pair_is_a_question_mark(tmp_path: Path, name: str) -> None:
    file, text, read = FORMATS[name]
    path = tmp_path / file
    path.write_text(text.replace("{w}", "Zo\\ud83de"))
    assert read(path) == ["Zo?e"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("content", ["", "\ufeff", "\n\r\n  \n"])
def test_nothing_gives_nothing_or_a_line_that_says_so(tmp_path: Path, name: str, content: str) -> None:
    file, _, read = FORMATS[name]
    path = tmp_path / file
    path.write_text(content)
    with contextlib.suppress(ValueError):
        assert read(path) == []
        return
    with pytest.raises(ValueError, match=f"{file}(, line 1: there are no words| is not JSON)"):
        read(path)


def test_aligned_lines(tmp_path: Path) -> None:
    for odd in ODD:
        (tmp_path / "source.txt").write_text(f"a{odd}b\r\nc\r\n", newline="")
        (tmp_path / "target.txt").write_text(f"A\rC{odd}D", newline="")
        pairs = read_aligned(tmp_path)
        assert [(pair.source, pair.targets) for pair in pairs] == [(f"a{odd}b", ("A",)), ("c", (f"C{odd}D",))]
        assert [pair.source for pair in read_sources(tmp_path)] == [f"a{odd}b", "c"]
    (tmp_path / "source.txt").write_text("a\n")
    with pytest.raises(DataFault, match=r"source\.txt, line 1: 1 lines of source, 2 of target"):
        read_aligned(tmp_path)
