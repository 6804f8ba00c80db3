"""Where a training begins: vocabularies as other programs write them, and models that know other labels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spanbert_kernels import (
    SpanBERTConfig,
    SpanBERTForCoreference,
    SpanBERTForDependencyParsing,
    SpanBERTForQuestionAnswering,
    SpanBERTForRelations,
    SpanBERTForSequenceClassification,
    SpanBERTForSpanClassification,
    SpanBERTForTokenClassification,
    SpanBERTModel,
)
from spanbert_kernels.data.faults import DataWarning
from spanbert_kernels.models import SpanBERTTokenizer
from spanbert_kernels.tasks.labels import head_of, label_fields, labels_of
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.vocabulary import read_tokenizer, rows_of

SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LABELLED = (
    SpanBERTForTokenClassification,
    SpanBERTForSpanClassification,
    SpanBERTForSequenceClassification,
    SpanBERTForRelations,
    SpanBERTForDependencyParsing,
)


@pytest.mark.parametrize(
    ("text", "ids", "rows"),
    [
        (SPECIAL + "Anna\nwent\n", [5, 6, 1], 7),
        (SPECIAL + "Anna\nAnna\nwent\n", [6, 7, 1], 8),
        (SPECIAL + "Anna\n\nwent\n\n\n", [5, 7, 1], 8),
        ((SPECIAL + "Anna\nwent\n").replace("\n", "\r\n"), [5, 6, 1], 7),
        ("\ufeff" + SPECIAL + "Anna\nwent", [5, 6, 1], 7),
        (SPECIAL + "[CLS]\nAnna\nwent\n", [6, 7, 1], 8),
        ("[UNK]\nAnna\nwent\n", [1, 2, 0], 7),
        ("Anna\nwent\n" + SPECIAL, [0, 1, 3], 7),
        (SPECIAL + "Anna\x85\nAnna\nwent\n", [6, 7, 1], 8),
    ],
    ids=["plain", "twice", "blank", "crlf", "mark", "special twice", "no special", "special last", "next line"],
)
def test_vocabularies(tmp_path: Path, text: str, ids: list[int], rows: int) -> None:
    """As many rows as the largest number needs, also after the tokenizer was saved."""
    path = tmp_path / "vocab.txt"
    path.write_bytes(text.encode())
    start = Start(vocabulary=path)
    tokenizer = start.tokenizer([])
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, SpanBERTTokenizer.from_pretrained(tmp_path / "saved")):
        assert each("Anna went nowhere", add_special_tokens=False)["input_ids"] == ids
        encoded = each("Anna went")["input_ids"]
        assert (encoded[0], encoded[-1]) == (each.cls_token_id, each.sep_token_id)
        assert rows_of(each) == rows
    model = start.build(SpanBERTModel, tokenizer, 0, **SMALL)
    model(torch.tensor([[*encoded, tokenizer.mask_token_id, tokenizer.pad_token_id]]))  # every number has a row


@pytest.mark.parametrize("text", ["", "\n\n", "Anna\nwent\n"])
def test_no_vocabulary(tmp_path: Path, text: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"vocab.txt: a vocabulary has an entry a line and \[UNK\] among them"):
        read_tokenizer(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Start]:
    """The start that a model of the class is, its vocabulary beside it."""

    def write(kind: Any, labels: list[str] | None = None) -> Start:
        folder = tmp_path_factory.mktemp("checkpoint")
        start = Start(vocabulary_size=30)
        tokenizer = start.tokenizer(["Anna went"])
        fields = label_fields(labels) if labels else {}
        start.build(kind, tokenizer, 7, **SMALL, **fields).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return Start(model=str(folder))

    return write


def built(start: Start, kind: Any, labels: list[str] | None = None) -> tuple[Any, list[str]]:
    """The model and what was warned of."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        fields = label_fields(labels) if labels else {}
        model = start.build(kind, start.tokenizer([]), 3, **fields)
    return model, [str(each.message) for each in heard if each.category is DataWarning]


@pytest.mark.parametrize("kind", LABELLED, ids=lambda kind: kind.__name__)
def test_other_labels_get_a_new_head(checkpoint: Callable[..., Start], kind: Any) -> None:
    """Of another number, of the same number, in another order; all else stays."""
    start = checkpoint(kind, ["none", "left", "right"])
    before = kind.from_pretrained(start.model)
    head = head_of(kind, before.config)
    assert head
    assert head != set(before.state_dict())
    for labels in (["none", "up"], ["none", "up", "down"], ["none", "right", "left"]):
        model, heard = built(start, kind, labels)
        assert heard == [
            f"{start.model} was trained for the labels none, left, right: it gets a new head for {', '.join(labels)}"
        ]
        assert labels_of(model) == labels
        for name, tensor in model.state_dict().items():
            same = tensor.shape == before.state_dict()[name].shape and torch.equal(tensor, before.state_dict()[name])
            assert same or name in head, name
            assert not same or name not in head or not tensor.any(), f"{name} has a meaning of its own"
    model, heard = built(start, kind, ["none", "left", "right"])
    assert heard == []
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_head_of_another_task_is_not_taken(checkpoint: Callable[..., Start]) -> None:
    """Token and sequence classification call it by the same name."""
    start = checkpoint(SpanBERTForTokenClassification, ["x", "y"])
    model, heard = built(start, SpanBERTForSequenceClassification, ["x", "y"])
    names = "classifier.bias, classifier.weight"
    assert heard == [f"{start.model} was trained for another task: {names} begin anew"]
    old = SpanBERTForTokenClassification.from_pretrained(start.model)
    assert not torch.equal(model.classifier.weight, old.classifier.weight)
    words = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(model.state_dict()[words], old.state_dict()[words])


@pytest.mark.parametrize(
    ("before", "kind", "new"),
    [
        (SpanBERTForRelations, SpanBERTForCoreference, "distances.weight"),
        (SpanBERTForCoreference, SpanBERTForRelations, "distances.weight"),
        (SpanBERTForRelations, SpanBERTForDependencyParsing, ""),
        (SpanBERTForQuestionAnswering, SpanBERTForCoreference, None),
    ],
)
def test_what_fits_of_another_task_is_taken(
    checkpoint: Callable[..., Start], before: Any, kind: Any, new: str | None
) -> None:
    """Relations and coreference call other things by the same names."""
    start = checkpoint(before)
    model, heard = built(start, kind)
    if new is None:
        assert heard == []
    else:
        assert re.fullmatch(rf".* was trained for another task: .*{new}.* begin anew", heard[0])
    old = before.from_pretrained(start.model).state_dict()
    assert all(torch.equal(tensor, old[name]) for name, tensor in model.bert.state_dict(prefix="bert.").items())


def test_an_encoder_gets_its_head_in_silence(checkpoint: Callable[..., Start]) -> None:
    model, heard = built(checkpoint(SpanBERTModel), SpanBERTForTokenClassification, ["O", "B-x", "I-x"])
    assert (heard, model.config.num_labels) == ([], 3)


def test_answers_have_two_ends_whatever_the_labels_were(checkpoint: Callable[..., Start]) -> None:
    start = checkpoint(SpanBERTForTokenClassification, ["a", "b", "c"])
    model = start.build(SpanBERTForQuestionAnswering, start.tokenizer([]), 0, num_labels=2)
    assert model.qa_outputs.out_features == 2


def test_too_few_positions(checkpoint: Callable[..., Start]) -> None:
    start = checkpoint(SpanBERTModel)
    config = SpanBERTConfig.from_pretrained(start.model)
    config.max_position_embeddings = 3
    config.save_pretrained(start.model)
    with pytest.raises(ValueError, match="has 3 positions, 4 at least are needed"):
        start.build(SpanBERTModel, start.tokenizer([]), 0)


def test_a_vocabulary_larger_than_the_model(checkpoint: Callable[..., Start], tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(SPECIAL + "\n".join(f"word{i}" for i in range(100)))
    start = Start(checkpoint(SpanBERTModel).model, vocabulary=path)
    with pytest.raises(ValueError, match=r"knows \d+ entries, but .*vocab.txt has 105"):
        start.build(SpanBERTModel, start.tokenizer([]), 0)
