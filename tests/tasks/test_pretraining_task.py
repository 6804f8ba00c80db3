"""Pre-training: blocks, masked examples, falling losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_texts import sentences

from spanbert_kernels import SpanBERTForPreTraining
from spanbert_kernels.tasks import pretraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

TEXTS = [" ".join(word for rows in sentences(12, first) for word, _ in rows) for first in range(0, 120, 12)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return Start(vocabulary_size=80).tokenizer(TEXTS)


def test_blocks_are_of_one_document_and_end_with_sentences(tokenizer: Any) -> None:
    blocks = pretraining.blocks_of(TEXTS, tokenizer, 24)
    assert all(1 <= len(block.tokens) <= 22 and len(block.tokens) == len(block.word_starts) for block in blocks)
    assert all(block.word_starts[0] for block in blocks)
    assert all(tokenizer.decode(block.tokens).endswith(".") for block in blocks)
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert np.concatenate([block.tokens for block in blocks]).tolist() == [t for text in whole for t in text]


def test_without_a_sentence_end_words_stay_whole(tokenizer: Any) -> None:
    blocks = pretraining.blocks_of(["Annanna " * 30], tokenizer, 12)
    assert len(blocks) > 2
    assert all(block.word_starts[0] for block in blocks)
    with pytest.raises(ValueError, match="got length 2"):
        pretraining.blocks_of(TEXTS, tokenizer, 2)


def test_examples(tokenizer: Any) -> None:
    data = pretraining.MaskedBlocks(pretraining.blocks_of(TEXTS, tokenizer, 40), tokenizer, seed=3)
    first = data[0]
    np.testing.assert_array_equal(first["input_ids"], data[0]["input_ids"])
    data.set_epoch(1)
    assert not np.array_equal(first["input_ids"], data[0]["input_ids"])
    for index in range(len(data)):
        example, block = data[index], data.blocks[index]
        labels, ids = example["labels"], example["input_ids"]
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        masked = labels != -100
        assert masked.sum() == np.ceil(0.15 * len(block.tokens))
        np.testing.assert_array_equal(labels[1:-1][masked[1:-1]], block.tokens[masked[1:-1]])
        np.testing.assert_array_equal(ids[1:-1][~masked[1:-1]], block.tokens[~masked[1:-1]])
        for start, end in example["spans"].tolist():
            assert masked[start : end + 1].all()
            assert not masked[start - 1]
            assert not masked[end + 1]
            assert 2 <= start <= end <= len(block.tokens) - 1  # a token of the text on both sides


def test_batches(tokenizer: Any) -> None:
    data = pretraining.MaskedBlocks(pretraining.blocks_of(TEXTS, tokenizer, 40), tokenizer, seed=3)
    batch = pretraining.collate([data[0], data[1], data[2]])
    for row, first, last in batch["spans"].tolist():
        assert (batch["labels"][row, first : last + 1] != -100).all()
    assert torch.equal(batch["attention_mask"] == 0, batch["attention_mask"].cumprod(1) == 0)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_both_losses_fall(tokenizer: Any, tmp_path: Path) -> None:
    model = Start(size="tiny").build(SpanBERTForPreTraining, tokenizer, 0, num_hidden_layers=1)
    options = TrainingOptions(
        tmp_path, steps=60, batch_size=8, learning_rate=3e-3, evaluate_steps=20, quiet=True, warmup=0.1
    )
    training = pretraining.pretrain(model, tokenizer, TEXTS[:-2], TEXTS[-2:], options, length=40)
    for name in ("eval_mlm_loss", "eval_sbo_loss"):
        values = training.values(name)
        assert len(values) == 3
        assert values[-1] < 0.8 * values[0], name
    assert training.paths["packed-training"] == 60
    again = SpanBERTForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again.cls.predictions.bias, model.cls.predictions.bias)


def test_bad_arguments(tokenizer: Any, tmp_path: Path) -> None:
    model = Start(size="tiny").build(SpanBERTForPreTraining, tokenizer, 0, max_position_embeddings=32)
    with pytest.raises(ValueError, match="length 40 is more than the 32 positions"):
        pretraining.pretrain(model, tokenizer, TEXTS, [], TrainingOptions(tmp_path), 40)
    with pytest.raises(ValueError, match="no text"):
        pretraining.pretrain(model, tokenizer, [" "], [], TrainingOptions(tmp_path), 32)
