"""The tagger: windows, scores, learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spanbert_kernels import SpanBERTForTokenClassification
from spanbert_kernels.data.conll_ner import TaggedSentence, read_tagged
from spanbert_kernels.tasks import tagging
from spanbert_kernels.tasks.checkpoints import CannotResume
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

Write = Callable[..., Path]


def options(output: Path, **more: Any) -> TrainingOptions:
    values = {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "quiet": True, **more}
    return TrainingOptions(output, **values)


def run(data: Path, output: Path, spans: SpanTraining | None = None, **more: Any) -> Any:
    """A tagger trained on a file: model, tokenizer and what came of it."""
    sentences = read_tagged(data)
    start = Start(size="tiny", vocabulary_size=200)
    tokenizer = start.tokenizer(" ".join(sentence.words) for sentence in sentences)
    labels = dict(enumerate(tagging.TASK.labels_in(sentences)))
    fields = {"id2label": labels, "label2id": {v: k for k, v in labels.items()}, "num_hidden_layers": 1}
    model = start.build(SpanBERTForTokenClassification, tokenizer, 0, **fields)
    return model, tokenizer, tagging.train(model, tokenizer, sentences, options(output, **more), spans)


def test_it_learns_and_is_loaded_again(tagged_file: Write, tmp_path: Path) -> None:
    """Fewer epochs than a word takes to be learnt by heart would not do: held-out sentences combine names anew."""
    data, test = tagged_file("train.conll", 48), read_tagged(tagged_file("test.conll", 16, first=100))
    model, tokenizer, training = run(data, tmp_path / "model", steps=60)
    assert training.values("loss")[-1] < 0.2 * training.values("loss")[0]
    assert training.paths["packed-training"] == 60
    scores = tagging.evaluate(model, tokenizer, test)
    assert scores["f1"] > 0.95
    assert tagging.TASK.evaluate(tmp_path / "model", test[0].path, "eager") == scores
    plain = tmp_path / "plain.txt"
    plain.write_text("Anna went to Oslo .\n\nNobody was there .\n")
    lines = list(tagging.TASK.predict(tmp_path / "model", plain, "auto", "columns"))
    assert lines[:4] == ["Anna\tB-person", "went\tO", "to\tO", "Oslo\tB-place"]
    assert lines[5:] == ["", "Nobody\tO", "was\tO", "there\tO", ".\tO", ""]


def test_nothing_to_resume(tagged_file: Write, tmp_path: Path) -> None:
    with pytest.raises(CannotResume, match="there is no checkpoint in"):
        run(tagged_file("train.conll", 8), tmp_path / "empty", resume=True)


def sentence(words: str, labels: str) -> TaggedSentence:
    return TaggedSentence(tuple(words.split()), tuple(labels.split()), Path("file.conll"), 3)


def test_windows_keep_words_whole_and_label_first_pieces() -> None:
    tokenizer = Start(vocabulary_size=30).tokenizer(["ab cd abcd"])
    long = sentence("abcd " * 12, "B-x " + "O " * 11)
    windows = tagging.windows_of([sentence("ab", "O"), long], tokenizer, ["O", "B-x"], 8)
    words = [window["begin"] + i for window in windows[1:] for i in range(len(window["word_starts"]))]
    assert words == list(range(12))
    for window in windows:
        assert len(window["input_ids"]) <= 8
        labelled = np.flatnonzero(window["labels"] != -100)
        assert labelled.tolist() == window["word_starts"].tolist(), "one label for each word"
    assert windows[1]["labels"][1] == 1


def test_a_word_longer_than_the_model() -> None:
    tokenizer = Start(vocabulary_size=30).tokenizer(["ab cd"])
    (window,) = tagging.windows_of([sentence("abcdcdabcdab", "O")], tokenizer, ["O"], 5)
    assert len(window["input_ids"]) <= 5


def test_scores_are_of_entities() -> None:
    gold = [["B-x", "I-x", "O", "B-y"]]
    assert tagging.score(gold, gold) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert tagging.score(gold, [["B-x", "O", "O", "B-y"]]) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}


def test_the_baseline_knows_words_alone() -> None:
    known = sentence("Anna saw Anna", "B-x O B-x")
    assert tagging.majority([known], [sentence("Anna saw Bob", "B-x O B-x")])["recall"] == 0.5


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, eager, got 'fast'"):
        dataclasses.replace(options(tmp_path), backend="fast")
    with pytest.raises(ValueError, match="no sentence"):
        tagging.train(None, None, [], options(tmp_path))  # type: ignore[arg-type]
