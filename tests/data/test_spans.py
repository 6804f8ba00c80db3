"""Entities as spans in JSON: GLiNER's tokens, spaCy's, doccano's and Prodigy's characters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spanbert_kernels.data.counts import tallying
from spanbert_kernels.data.entities import read_marked, read_nested, read_tagged
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.spans import read_spans

TEXT = "Anna Smith lives in Oslo."
WORDS = ("Anna", "Smith", "lives", "in", "Oslo", ".")


def written(tmp_path: Path, *records: Any, name: str = "a.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"tokenized_text": list(WORDS), "ner": [[0, 1, "person"], [4, 4, "place"]]},
        {"tokens": list(WORDS), "ner": [[4, 4, "place"], [0, 1, "person"]]},
        {"text": TEXT, "entities": [[0, 10, "person"], [20, 24, "place"]]},
        {"text": TEXT, "label": [[0, 10, "person"], [20, 24, "place"]]},
        {
            "text": TEXT,
            "spans": [{"start": 0, "end": 10, "label": "person"}, {"start": 20, "end": 24, "label": "place"}],
        },
        {
            "text": TEXT,
            "ents": [{"start": 0, "end": 10, "label": "person"}, {"start": 20, "end": 24, "label": "place"}],
            "tokens": [
                {"id": i, "start": TEXT.index(word), "end": TEXT.index(word) + len(word)}
                for i, word in enumerate(WORDS)
            ],
        },
    ],
)
def test_shapes(tmp_path: Path, record: dict[str, Any]) -> None:
    path = written(tmp_path, record)
    (document,) = read_spans(path)
    assert document.words == WORDS
    assert [(m.first, m.last, m.kind) for m in document.mentions] == [(0, 1, "person"), (4, 4, "place")]
    assert read_nested(path) == [document]
    (sentence,) = read_tagged(path)
    assert sentence.labels == ("B-person", "I-person", "O", "O", "B-place", "O")


def test_words_of_a_text_without_tokens(tmp_path: Path) -> None:
    """As plain text is split; where a mention begins behind the sign of a name or a topic, the sign is a word."""
    text = "I'm in 東京 (2nd), @zoe."
    (document,) = read_spans(written(tmp_path, {"text": text, "entities": [[7, 9, "place"], [18, 21, "person"]]}))
    assert document.words == ("I", "'m", "in", "東", "京", "(", "2nd", ")", ",", "@", "zoe", ".")
    assert [(m.first, m.last) for m in document.mentions] == [(3, 4), (10, 10)]
    (document,) = read_spans(written(tmp_path, {"text": text}), mentions=False)
    assert document.words[-2:] == ("@zoe", ".")


def test_a_span_inside_a_word_is_left_out_and_counted(tmp_path: Path) -> None:
    with tallying() as tally:
        (document,) = read_spans(written(tmp_path, {"text": TEXT, "entities": [[0, 3, "x"], [0, 4, "y"]]}))
    assert [(m.first, m.last, m.kind) for m in document.mentions] == [(0, 0, "y")]
    assert tally.counts["Data"].left == {("mention", "begins or ends inside a word"): 1}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"heading": "x", "ner": []},
            "a text, or words under tokenized_text, tokens, words are wanted; there are heading, ner",
        ),
        (
            {"tokenized_text": ["a"], "labels": []},
            "spans such as .* are wanted under ner; there are tokenized_text, labels",
        ),
        ({"text": "a b"}, "spans such as .* are wanted under entities, spans, ents; there are text"),
        ({"tokenized_text": ["a"], "ner": [[0, 1, "x"]]}, r"span \[0, 1, 'x'\] is not one of the words 0 to 0"),
        ({"tokenized_text": ["a", "b"], "ner": [[1, 0, "x"]]}, "is not one of the words"),
        ({"text": "a b", "entities": [[0, 4, "x"]]}, "does not lie in the text of 3 characters"),
        ({"text": "a b", "entities": [[0, 1]]}, r"a span has start, end and label, got \[0, 1\]"),
        ({"text": "a b", "entities": [[0, True, "x"]]}, "a span has start, end and label"),
        ({"text": "a b", "entities": ["a"]}, "a span has start, end and label, got 'a'"),
        ({"text": "a b", "entities": [["a", 0, 1]]}, "a span has start, end and label"),
        ({"text": " ", "entities": []}, "a document without words"),
        ({"tokenized_text": ["a", ""], "ner": []}, "an empty word"),
        ({"text": "a b", "tokens": [1], "entities": []}, "tokens must be words, or have start and end"),
    ],
)
def test_another_shape_is_refused(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    good = {"text": "a", "entities": []}
    with pytest.raises(DataFault, match=f"a.jsonl, line 2: .*{reason}"):
        read_spans(written(tmp_path, good, record))


def test_overlapping_spans_are_no_labels_of_words(tmp_path: Path) -> None:
    path = written(tmp_path, {"tokenized_text": list(WORDS), "ner": [[0, 1, "person"], [1, 1, "name"]]})
    assert len(read_nested(path)[0].mentions) == 2
    with pytest.raises(DataFault, match="line 1: 'Smith' overlaps another entity: the task is nested"):
        read_tagged(path)


def test_spans_say_nothing_of_coreference(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="line 1: which mentions are of one entity is read from CoNLL"):
        read_marked(written(tmp_path, {"text": TEXT, "entities": []}))
