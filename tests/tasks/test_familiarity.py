"""Texts that are unlike those that a model was trained on: one warning with the shares."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertTokenizer

from spanbert_kernels.data.faults import DataWarning
from spanbert_kernels.tasks import tagging
from spanbert_kernels.tasks.base import Task
from spanbert_kernels.tasks.familiarity import FIELD, SAMPLE, sample, warn_of_strange_texts
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

KNOWN = "Anna went to Oslo by train ."
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def said(text: str, trained: float | None, lower: bool = False, count: int = 9) -> str:
    words = [*SPECIAL, *KNOWN.split(" "), *KNOWN.lower().split(" "), *KNOWN.upper().split(" ")]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(dict.fromkeys(words))}, do_lower_case=lower)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_strange_texts(SimpleNamespace(**{FIELD: trained}), tokenizer, [text] * count, "talk.txt")
    assert len(caught) < 2
    return "".join(str(each.message) for each in caught)


@pytest.mark.parametrize(
    ("text", "trained", "lower", "words"),
    [
        (KNOWN, 0.3, False, None),
        (KNOWN, None, False, None),
        (KNOWN.lower(), 0.3, False, "talk.txt: 0% of the words are capitalised, in what the model was trained on 30%"),
        (KNOWN.upper(), 0.2, False, "100% of the words are capitalised"),
        (KNOWN, 0.01, False, "33% of the words are capitalised"),
        (KNOWN.upper(), 0.2, True, None),
        (KNOWN.lower(), None, False, None),
        (f"{KNOWN} Zo\u00eb", 0.3, False, "12% of the words are not in the model's vocabulary"),
        (f"Zo\u00eb {KNOWN.lower()}", 0.6, False, "vocabulary, and 14% of the words are capitalised"),
    ],
)
def test_one_warning(text: str, trained: float | None, lower: bool, words: str | None) -> None:
    heard = said(text, trained, lower)
    assert (words in heard) if words else not heard
    assert not said(text, trained, lower, count=2)


def test_of_much_text_the_beginning_is_looked_at() -> None:
    assert sum(map(len, sample(["a" * 1000] * 1000))) == SAMPLE
    assert len(next(iter(sample(["a" * SAMPLE * 3])))) == SAMPLE


def test_training_keeps_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the configuration, so that prediction warns."""

    def fit(task: Any, model: Any, tokenizer: Any, *more: Any) -> None:
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")

    monkeypatch.setattr(Task, "fit", fit)
    (tmp_path / "train.conll").write_text("Anna\tB-x\nWent\tO\nHome\tO\n\n" * 8)
    options = TrainingOptions(tmp_path / "model")
    tagging.TASK.train(tmp_path / "train.conll", None, Start(size="tiny", vocabulary_size=60), options, None)
    (tmp_path / "a.txt").write_text("anna went home\n" * 8)
    with pytest.warns(DataWarning, match=r"a\.txt: .*0% of the words are capitalised, .* trained on 100%"):
        list(tagging.TASK.predict(tmp_path / "model", tmp_path / "a.txt", "auto"))
