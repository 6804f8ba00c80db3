"""Span training: which tokens an epoch shows, and which carry loss."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spanbert_kernels import SpanBERTConfig, SpanBERTForTokenClassification
from spanbert_kernels.tasks import tagging
from spanbert_kernels.tasks.span_training import SpansOfDocuments, SpanTraining
from spanbert_kernels.tasks.training import TrainingOptions, fit

LONG, SHORT = 40, 5


def examples() -> list[dict[str, Any]]:
    found = []
    for tokens in (LONG, SHORT):
        ids = np.arange(tokens + 2)
        found.append({"input_ids": ids, "labels": np.concatenate([[-100], 100 + ids[1:-1], [-100]])})
    return found


def shown(crop: str, seed: int = 0, length: int = 8) -> SpansOfDocuments:
    return SpansOfDocuments(examples(), SpanTraining(length, crop), seed)


def test_only_the_span_is_encoded() -> None:
    example = shown("input")[0]
    ids, labels = example["input_ids"], example["labels"]
    assert (ids[0], ids[-1]) == (0, LONG + 1)  # the special tokens stay
    assert np.diff(ids[1:-1]).tolist() == [1] * 7
    np.testing.assert_array_equal(labels[1:-1], 100 + ids[1:-1])
    assert labels[0] == labels[-1] == -100


def test_only_the_span_carries_loss() -> None:
    example = shown("loss")[0]
    np.testing.assert_array_equal(example["input_ids"], np.arange(LONG + 2))
    places = np.flatnonzero(example["labels"] != -100)
    assert np.diff(places).tolist() == [1] * 7
    np.testing.assert_array_equal(example["labels"][places], 100 + places)


@pytest.mark.parametrize("crop", ["input", "loss"])
def test_a_short_document_is_whole(crop: str) -> None:
    np.testing.assert_array_equal(shown(crop)[1]["labels"], examples()[1]["labels"])


def test_every_token_gets_its_turn_and_a_run_repeats() -> None:
    data, again = shown("input"), shown("input")
    starts = []
    for epoch in range(300):
        data.set_epoch(epoch)
        again.set_epoch(epoch)
        np.testing.assert_array_equal(data[0]["input_ids"], again[0]["input_ids"])
        starts.append(int(data[0]["input_ids"][1]))
    assert set(starts) == set(range(1, LONG - 8 + 2))
    assert [int(shown("input", seed)[0]["input_ids"][1]) for seed in range(8)] != starts[:8]


@pytest.mark.parametrize(("length", "crop", "text"), [(0, "loss", "at least 1, got 0"), (3, "both", "got 'both'")])
def test_bad_options(length: int, crop: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SpanTraining(length, crop)


def test_the_trainer_tells_the_epoch(tmp_path: Path) -> None:
    """Of four examples in batches of two, over three epochs; resumed in the middle of the second."""
    seen: list[int] = []

    class Noted(SpansOfDocuments):
        def set_epoch(self, epoch: int) -> None:
            seen.append(epoch)
            super().set_epoch(epoch)

    def fitted(**more: Any) -> None:
        data = Noted(examples() * 2, SpanTraining(8, "input"), 0)
        options = TrainingOptions(tmp_path, epochs=3, batch_size=2, quiet=True, save_steps=3, **more)
        config = {"vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        torch.manual_seed(0)
        model = SpanBERTForTokenClassification(SpanBERTConfig(**config, intermediate_size=8, num_labels=160))
        fit(model, options, data, tagging.collate)

    fitted()
    assert [epoch for epoch, _ in itertools.groupby(seen)] == [0, 1, 2]
    seen.clear()
    (tmp_path / "checkpoint-6").rename(tmp_path / "later")
    fitted(resume=True)
    assert [epoch for epoch, _ in itertools.groupby(seen)] == [1, 2]
