"""Nested entities: bracket files, windows, span training, learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spanbert_kernels import SpanBERTForSpanClassification
from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.entities import read_marked
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.tasks import nested
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

PEOPLE, PLACES = ("Anna", "Boris", "Clara"), ("Paris", "Oslo", "Quito")
LABELS = ["none", "person", "place"]


def file_of(count: int) -> str:
    """Each document: `the mayor of P met N in Q .`, where the mayor of P is a person around a place."""
    documents = []
    for i in range(count):
        p, q, n = PLACES[i % 3], PLACES[(i // 3) % 3], PEOPLE[i % 3]
        words = f"the mayor of {p} met {n} in {q} .".split()
        marks = ["(person-1", "_", "_", "(place-2)person-1)", "_", "(person-3-Name)", "_", "(place-4)", "_"]
        rows = (f"{j}\t{word}\t{mark}\n" for j, (word, mark) in enumerate(zip(words, marks, strict=True)))
        documents.append(f"# begin document d{i}\n{''.join(rows)}# end document\n\n")
    return "".join(documents)


def read(tmp_path: Path, text: str) -> list[MarkedDocument]:
    path = tmp_path / "marked.conll"
    path.write_text(text)
    return read_marked(path)


def test_brackets(tmp_path: Path) -> None:
    first, second = read(tmp_path, file_of(2))
    assert (first.name, second.name, second.lines[0]) == ("d0", "d1", 14)
    assert first.mentions == (
        Mention(0, 3, "person", "1"), Mention(3, 3, "place", "2"), Mention(5, 5, "person", "3"),
        Mention(7, 7, "place", "4"),
    )  # fmt: skip
    assert read_marked(tmp_path) == [first, second]
    crossing = "a (3\nb (x-1-Of-a-kind(3)\nc x-1-Of-a-kind)3)\n"
    (document,) = read(tmp_path, crossing)
    assert document.mentions == (Mention(0, 2, "", "3"), Mention(1, 2, "x", "1"), Mention(1, 1, "", "3"))
    (document,) = read(tmp_path, "d 0 a (e1| (e2\nd 1 b e2)| e1)\n")
    assert [(m.first, m.last, m.entity) for m in document.mentions] == [(0, 1, "e1"), (0, 1, "e2")]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a\n", 1, "a word and its brackets are wanted, got 'a'"),
        ("a _\nb x-1)\n", 2, r"'x-1\)' closes a mention that is not open"),
        ("a _\nb (x-1\nc _\n", 2, r"a mention of '\(x-1' is never closed"),
        ("a x-1\n", 1, "'x-1' is not a mention's bracket"),
        ("a ((x-1)\n", 1, r"'\(\(x-1\)' is not a mention's bracket"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, line: int, reason: str) -> None:
    with pytest.raises(DataFault, match=f"marked.conll, line {line}: {reason}"):
        read(tmp_path, text)


def tokenizer_for(documents: list[MarkedDocument]) -> Any:
    return Start(vocabulary_size=200).tokenizer(" ".join(document.words) for document in documents)


def joined(documents: list[MarkedDocument]) -> MarkedDocument:
    """One document of several."""
    words: list[str] = []
    mentions = []
    for document in documents:
        mentions += [Mention(m.first + len(words), m.last + len(words), m.kind, "1") for m in document.mentions]
        words += document.words
    return MarkedDocument("long", tuple(words), tuple(mentions), Path("long.conll"), tuple(range(1, len(words) + 1)))


def test_windows_end_with_sentences_and_know_their_mentions(tmp_path: Path) -> None:
    document = joined(read(tmp_path, file_of(9)))
    tokenizer = tokenizer_for([document])
    windows = nested.windows_of([document], tokenizer, LABELS, 40)
    assert len(windows) > 2
    found = set()
    for window in windows:
        example = window
        assert len(example["input_ids"]) <= 40
        assert document.words[window["begin"] + len(example["word_starts"]) - 1] == "."
        pieces = tokenizer.convert_ids_to_tokens(example["input_ids"].tolist())
        assert [pieces[c][0] for c in example["word_starts"]] == [
            word[0] for word in document.words[window["begin"] : window["begin"] + len(example["word_starts"])]
        ]
        for (first, last), label in zip(example["mentions"].tolist(), example["labels"].tolist(), strict=True):
            found.add((first + window["begin"], last + window["begin"], LABELS[label]))
    assert found == nested.gold(document)


@pytest.mark.parametrize("crop", ["input", "loss"])
def test_span_training(tmp_path: Path, crop: str) -> None:
    document = read(tmp_path, file_of(1))[0]
    (window,) = nested.windows_of([document], tokenizer_for([document]), LABELS, 40)
    whole = window
    span = slice(int(whole["word_starts"][3]), int(whole["word_starts"][6]))  # Paris met Anna
    shown = nested.show(whole, span, crop)
    assert shown["mentions"].tolist() == [[0, 0], [2, 2]]
    assert shown["labels"].tolist() == [2, 1]
    ids = shown["input_ids"][shown["word_starts"]]
    np.testing.assert_array_equal(ids, whole["input_ids"][whole["word_starts"][3:6]])
    assert len(shown["input_ids"]) == (len(whole["input_ids"]) if crop == "loss" else span.stop - span.start + 2)


def test_it_learns_and_is_loaded_again(tmp_path: Path) -> None:
    documents = read(tmp_path, file_of(27))
    tokenizer = tokenizer_for(documents)
    start = Start(size="tiny")
    fields = {"id2label": dict(enumerate(LABELS)), "num_hidden_layers": 1, "max_span_width": 6}
    model = start.build(SpanBERTForSpanClassification, tokenizer, 0, **fields)
    options = TrainingOptions(tmp_path / "model", steps=60, batch_size=9, learning_rate=3e-3, quiet=True)
    training = nested.train(model, tokenizer, documents, options)
    assert training.paths["packed-training"] == 60
    scores = nested.evaluate(model, tokenizer, documents)
    assert scores["F1"] > 0.95
    assert nested.TASK.evaluate(tmp_path / "model", documents[0].path, "eager") == scores
    plain = tmp_path / "plain.txt"
    plain.write_text("the mayor of Oslo met Clara in Paris .\n")
    (line,) = nested.TASK.predict(tmp_path / "model", plain, "auto")
    assert {"start": 0, "end": 17, "label": "person", "text": "the mayor of Oslo"} in json.loads(line)["entities"]
    columns = nested.TASK.predict(tmp_path / "model", plain, "auto", "columns")
    (found,) = read(tmp_path, "".join(f"{line}\n" for line in columns))
    assert {(m.first, m.last, m.kind) for m in found.mentions} >= {(0, 3, "person"), (3, 3, "place")}


def test_targets_and_wide_mentions(tmp_path: Path) -> None:
    documents = read(tmp_path, file_of(2))
    tokenizer = tokenizer_for(documents)
    fields = {"num_hidden_layers": 1, "max_span_width": 3, "num_labels": 3, "hidden_dropout_prob": 0.0}
    model = Start(size="tiny").build(SpanBERTForSpanClassification, tokenizer, 0, **fields)
    batch = nested.collate(nested.windows_of(documents, tokenizer, LABELS, 40))
    output = model(**batch)
    wanted = [0] * len(output.spans)
    for place, (first, last) in enumerate(output.spans.tolist()):
        document, shift = documents[first >= 9], 9 * (first >= 9)
        for mention in document.mentions:
            if (mention.first + shift, mention.last + shift) == (first, last):
                wanted[place] = LABELS.index(mention.kind)
    assert sum(label > 0 for label in wanted) == 6  # the two of four words are too wide
    loss = torch.nn.functional.cross_entropy(output.logits, torch.tensor(wanted), reduction="sum") / 18
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)


def test_scores_and_baseline(tmp_path: Path) -> None:
    documents = read(tmp_path, file_of(3))
    assert nested.score(documents, [nested.gold(d) for d in documents])["F1"] == 1.0
    half = [{span for span in nested.gold(d) if span[2] == "place"} | {(0, 0, "place")} for d in documents]
    assert nested.score(documents, half) == {"precision": 2 / 3, "recall": 0.5, "F1": 4 / 7}
    assert nested.dictionary(documents, documents)["recall"] == 1.0


def test_bad_input(tmp_path: Path) -> None:
    documents = read(tmp_path, file_of(1))
    tokenizer = tokenizer_for(documents)
    model = Start(size="tiny").build(SpanBERTForSpanClassification, tokenizer, 0)
    with pytest.raises(ValueError, match="word_starts"):
        model(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="mentions and labels come together"):
        model(torch.zeros(1, 4, dtype=torch.long), word_starts=torch.zeros(1, 1).long(), labels=torch.zeros(1))
    with pytest.raises(ValueError, match="there is no document"):
        nested.train(model, tokenizer, [], TrainingOptions(tmp_path))
