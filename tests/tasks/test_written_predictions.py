"""What predictions are written as: what is read again is what was found, and characters cut out the very texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.data.conll_ner import TaggedSentence
from spanbert_kernels.data.entities import read_marked, read_nested, read_tagged
from spanbert_kernels.data.labelled import read_labelled
from spanbert_kernels.data.squad import Question
from spanbert_kernels.data.words import read_documents, read_sentences
from spanbert_kernels.tasks import coreference, formats, nested, parsing, tagging
from spanbert_kernels.tasks.base import TASKS, load
from spanbert_kernels.tasks.predictions import Prediction
from spanbert_kernels.tasks.registry import COLUMNS, JSON
from spanbert_kernels.tasks.relations import RelatedCluster

TEXT = "Dr. Li didn't see\n\n  New York's  mayor, Zo\u00eb.\nNobody did. Li left New\u00a0York.\n"
NAMES = {"Li": "person", "New York": "place", "Zo\u00eb": "per-son"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "talk.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "talk.txt"


def labels(sentence: TaggedSentence) -> list[str]:
    kinds = {words.split(" ")[0]: kind for words, kind in NAMES.items()} | {"York": "place"}
    return [f"{'I' if word == 'York' else 'B'}-{kinds[word]}" if word in kinds else "O" for word in sentence.words]


def tagged(path: Path) -> Iterator[Prediction]:
    for sentence in read_sentences(path):
        yield from tagging.TASK.predictions(sentence, labels(sentence))


def nests(path: Path) -> Iterator[Prediction]:
    for document in read_documents(path, by_line=True):
        found = {(i, i, "word") for i, word in enumerate(document.words) if word in ("York", "Li")}
        found |= {(i - 1, i, "place") for i, word in enumerate(document.words) if word == "York"}
        yield from nested.TASK.predictions(document, found)


def linked(path: Path) -> Prediction:
    (document,) = read_documents(path)
    words = document.words
    york = frozenset((i - 1, i) for i, word in enumerate(words) if word == "York")
    li = frozenset((i, i) for i, word in enumerate(words) if word == "Li")
    return next(iter(coreference.TASK.predictions(document, {york, li})))


def written(folder: Path, name: str, lines: Iterable[str]) -> Path:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / name


def test_json_lines_cut_out_the_very_texts(path: Path) -> None:
    """Sentences of a line are one record, whose `start` is that of the line in the file."""
    records = [json.loads(line) for line in formats.json_lines(tagged(path), False)]
    assert [record["line"] for record in records] == [1, 3, 4]
    found = [(record, mark) for record in records for mark in record["entities"]]
    assert [(mark["text"], mark["label"]) for _, mark in found] == [
        ("Li", "person"),
        ("New York", "place"),
        ("Zo\u00eb", "per-son"),
        ("Li", "person"),
        ("New\u00a0York", "place"),
    ]
    for record, mark in found:
        assert record["text"][mark["start"] : mark["end"]] == mark["text"]
        shift = record.get("start", 0)
        assert TEXT[shift + mark["start"] : shift + mark["end"]] == mark["text"]
    again = written(path.parent, "found.jsonl", formats.json_lines(nests(path), True))
    assert [len(document.mentions) for document in read_nested(again)] == [1, 2, 3]


def test_a_record_is_one_line_and_a_sentence_of_it_says_where_it_begins(tmp_path: Path) -> None:
    """Also where records of the same text stand in one line."""
    text = "Never! Li saw New York."
    path = written(tmp_path, "talk.json", [json.dumps([{"text": text}, {"text": text}])])
    found = [json.loads(line) for line in formats.json_lines(tagged(path), False)]
    assert [[text[e["start"] : e["end"]] for e in each["entities"]] for each in found] == [["Li", "New York"]] * 2
    trees = [
        one for s in parsing.TASK.read_to_predict(path) for one in parsing.TASK.predictions(s, ([0] * 9, ["x"] * 9))
    ]
    assert [(one.located.start or 0, one.located.text) for one in trees] == [(0, "Never!"), (7, "Li saw New York.")] * 2


@pytest.mark.parametrize(
    ("task", "item", "found"),
    [
        (
            "question_answering",
            [Question(name, "Who?", "Li left.", (), Path("a.json")) for name in "ab"],
            ["Li", ""],
        ),
        (
            "relations",
            [RelatedCluster((MarkedDocument("d", ("Li",), (), Path("d/a"), (1,)),), frozenset())],
            [{("Li", "Zoë", "saw"): 0.5, ("Zoë", "Li", "saw"): 0.5}],
        ),
    ],
)
def test_nothing_that_is_about_a_whole_file_is_lost(task: str, item: list[Any], found: list[Any]) -> None:
    every = [one for each, own in zip(item, found, strict=True) for one in load(task).predictions(each, own)]
    assert len(list(formats.json_lines(every, False))) == len(every) == 2


@pytest.mark.parametrize("several", [False, True])
def test_columns_are_what_tasks_learn_from(path: Path, several: bool) -> None:
    found = read_tagged(written(path.parent, "tagged.conll", formats.labelled_words(tagged(path), several)))
    wanted = read_sentences(path)
    assert [each.words for each in found] == [each.words for each in wanted]
    assert [list(each.labels) for each in found] == list(map(labels, wanted))
    marked = read_marked(written(path.parent, "nested.conll", formats.bracketed_words(nests(path), several)))
    assert [[(m.first, m.last, m.kind) for m in each.mentions] for each in marked] == [
        [(1, 1, "word")],
        [(0, 1, "place"), (1, 1, "word")],
        [(3, 3, "word"), (5, 6, "place"), (6, 6, "word")],
    ]
    (document,) = read_marked(written(path.parent, "coref.conll", formats.bracketed_words([linked(path)], several)))
    assert document.name == "talk"
    assert len(coreference.gold(document)) == 2
    assert {len(entity) for entity in coreference.gold(document)} == {2}


def test_a_spacy_document_has_all_of_the_text(path: Path) -> None:
    """Its tokens and the spaces behind them make the text again; `train` reads it as JSON with spans."""
    prediction = linked(path)
    document = formats.spacy_document(prediction)
    text, end = "", 0
    for token, after in zip(document["tokens"], [*document["tokens"][1:], None], strict=True):
        assert token["start"] == end
        space = after is not None and after["start"] > token["end"] and TEXT[token["end"]] == " "
        text += TEXT[token["start"] : token["end"]] + " " * space
        end = token["end"] + space
    assert text == TEXT
    assert {len(group) for group in document["spans"].values()} == {2}
    found = read_tagged(written(path.parent, "spacy.jsonl", formats.spacy_lines(tagged(path), False)))
    assert [word for each in found for word in each.words] == [w for each in read_sentences(path) for w in each.words]
    assert sum(label[0] == "B" for each in found for label in each.labels) == 5


def test_brat_annotates_the_file_as_it_stands(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "brat"
    folder.mkdir()
    formats.write_brat([*nests(path), linked(written(tmp_path, "other.txt", ["Li saw New", "York."]))], folder)
    assert (folder / "talk.txt").read_text(encoding="utf-8") == TEXT
    lines = (folder / "talk.ann").read_text(encoding="utf-8").splitlines()
    for line in lines:
        _, place, text = line.split("\t")
        start, end = map(int, place.split(" ")[1:])
        assert TEXT[start:end] == text
    assert len(lines) == 6
    other = (folder / "other.ann").read_text(encoding="utf-8")
    assert re.search(r"^T\d\tMention 7 10;11 15\tNew York$", other, re.M)
    kinds = (folder / "annotation.conf").read_text().splitlines()
    assert kinds[:5] == ["[entities]", "Mention", "place", "word", "[relations]"]


@pytest.mark.parametrize("records", ['[{"text": "Li left."}, {"text": "I saw Li."}, {"text": "I saw Li."}]', None])
def test_brat_keeps_records_apart(records: str | None, tmp_path: Path) -> None:
    """That share a line, or a name."""
    named = [json.dumps({"id": "a", "text": text}) for text in ("Li left.", "I saw Li.", "I saw Li.")]
    sentences, of_names = (nested.TASK, named) if records is None else (tagging.TASK, [records])
    data = written(tmp_path, "notes.json" if records else "notes.jsonl", of_names)
    items = sentences.read_to_predict(data)
    places = [[i for i, word in enumerate(item.words) if word == "Li"] for item in items]
    found: list[Any] = [{(i, i, "person") for i in own} for own in places]
    if records:
        found = [["B-person" if word == "Li" else "O" for word in item.words] for item in items]
    folder = tmp_path / "brat"
    folder.mkdir()
    formats.write_brat([one for each in zip(items, found, strict=True) for one in sentences.predictions(*each)], folder)
    texts = sorted(folder.glob("*.txt"))
    assert sorted(path.read_text() for path in texts) == ["I saw Li.", "I saw Li.", "Li left."]
    for path in texts:
        (line,) = path.with_suffix(".ann").read_text().splitlines()
        assert line == ("T1\tperson 0 2\tLi" if path.read_text() == "Li left." else "T1\tperson 6 8\tLi")


def test_a_table_of_labels_is_read_again(tmp_path: Path) -> None:
    data = written(tmp_path, "posts.txt", ['Good, "really" good', "Bad;"])
    task = load("classification")
    items = task.read_to_predict(data)
    blocks = [[one for item, label in zip(items, "ab", strict=True) for one in task.predictions(item, (label, 0.5))]]
    found = read_labelled(written(tmp_path, "posts.csv", formats.LABELLED_TEXTS.lines(blocks, False)))
    assert [(each.label, each.text) for each in found] == [("a", 'Good, "really" good'), ("b", "Bad;")]


def test_every_task_writes_what_its_entry_says() -> None:
    for name, entry in TASKS.items():
        assert entry.formats[0] == JSON
        assert (COLUMNS in entry.formats) == (load(name).columns is not None), name
