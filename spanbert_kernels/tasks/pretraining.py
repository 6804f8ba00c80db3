"""Pre-training: blocks of text, SpanBERT's masking anew in every epoch, masked language model and span boundaries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import EvalPrediction

from spanbert_kernels import host
from spanbert_kernels.data.counts import TEST, TRAINING, counting, left_out, took
from spanbert_kernels.models import SpanBERTForPreTraining
from spanbert_kernels.tasks.batches import IGNORED, padded
from spanbert_kernels.tasks.means import Batch, Mean, labels
from spanbert_kernels.tasks.training import Training, TrainingOptions, fit
from spanbert_kernels.tasks.vocabulary import Tokenizer

SENTENCE_ENDS = (".", "!", "?")


@dataclass(frozen=True)
class Block:
    """Word pieces of one document, without special tokens, and where its words begin."""

    tokens: NDArray[np.int64]
    word_starts: NDArray[np.bool_]


def blocks_of(texts: Iterable[str], tokenizer: Tokenizer, length: int) -> list[Block]:
    """Texts cut into blocks of at most `length` tokens, the two special ones counted, each of one document.

    A block ends with a sentence where one ends in it, else with a word.

    Raises:
        ValueError: `length` leaves no room for a word piece.
    """
    room = length - 2
    if room < 1:
        raise ValueError(f"a block needs room for two special tokens and one more, got length {length}")
    ends = {tokenizer.convert_tokens_to_ids(mark) for mark in SENTENCE_ENDS} - {tokenizer.unk_token_id}
    found = []
    for text in texts:
        encoded = tokenizer(text, add_special_tokens=False, verbose=False)
        tokens = np.array(encoded["input_ids"], dtype=np.int64)
        if not len(tokens):
            left_out("document", "without a token")
            continue
        took("document")
        words = encoded.word_ids()
        starts = np.array([i == 0 or words[i] != words[i - 1] for i in range(len(words))], dtype=bool)
        begin = 0
        while begin < len(tokens):
            end = _cut(tokens, starts, begin, min(begin + room, len(tokens)), ends)
            found.append(Block(tokens[begin:end], starts[begin:end]))
            begin = end
    took("block", len(found))
    return found


def _cut(
    tokens: NDArray[np.int64], starts: NDArray[np.bool_], begin: int, end: int, sentence_ends: set[int | list[int]]
) -> int:
    """Where the block that begins at `begin` and reaches to `end` at most ends."""
    if end == len(tokens):
        return end
    for token in range(end, begin, -1):
        if int(tokens[token - 1]) in sentence_ends:
            return token
    words = np.flatnonzero(starts[begin + 1 : end + 1])
    return begin + 1 + int(words[-1]) if len(words) else end


class MaskedBlocks(Dataset[dict[str, Any]]):
    """Blocks with masks that depend on the seed, the epoch and the block alone: a run that resumes draws the same."""

    def __init__(self, blocks: Sequence[Block], tokenizer: Tokenizer, seed: int) -> None:
        self.blocks, self.seed, self.epoch = blocks, seed, 0
        self.first, self.last, self.mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
        self.stream = np.concatenate([block.tokens for block in blocks])  # random tokens have the corpus' distribution

    def __len__(self) -> int:
        return len(self.blocks)

    def set_epoch(self, epoch: int) -> None:
        """Of the training; held-out data stay at epoch 0."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids`, `labels`, and the `spans` that have a token of the text on both sides."""
        block = self.blocks[index]
        inputs, starts, ends = host.mask_spans(
            block.tokens,
            np.array([0, len(block.tokens)]),
            block.word_starts,
            seed=((self.seed << 20) + self.epoch << 32) + index,
            mask_token=self.mask,
            random_tokens=self.stream,
        )
        labels = np.full(len(inputs) + 2, IGNORED, dtype=np.int64)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            labels[start + 1 : end + 1] = block.tokens[start:end]
        inside = (starts > 0) & (ends < len(inputs))
        return {
            "input_ids": np.concatenate([[self.first], inputs, [self.last]]),
            "labels": labels,
            "spans": np.stack([starts[inside] + 1, ends[inside]], 1),  # columns, inclusive
        }


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A padded batch `[B, L]`; `spans [S, 3]` are row, first and last column."""
    batch = padded(examples, {"input_ids": 0, "labels": IGNORED})
    spans = [np.insert(example["spans"], 0, row, axis=1) for row, example in enumerate(examples)]
    return {**batch, "spans": torch.from_numpy(np.concatenate(spans))}


def _of_spans(batch: Batch, config: Any) -> int:
    """Tokens that are predicted from the borders of their spans."""
    _, first, last = batch["spans"].unbind(1)
    return int((last - first + 1).clamp(max=config.max_span_targets).sum())


MEANS = (Mean(labels, "mlm_loss"), Mean(_of_spans, "sbo_loss", more=1))


def losses(prediction: EvalPrediction) -> dict[str, float]:
    """Both losses, means over the batches."""
    mlm, sbo = prediction.predictions
    return {"mlm_loss": float(np.mean(mlm)), "sbo_loss": float(np.mean(sbo))}


def pretrain(
    model: SpanBERTForPreTraining,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    held_out: Sequence[str],
    options: TrainingOptions,
    length: int = 128,
) -> Training:
    """Trains both objectives on texts and writes model and tokenizer to `options.output`.

    Args:
        texts, held_out: documents; the losses of the second are logged as `eval_mlm_loss` and `eval_sbo_loss`.
        length: tokens of a block, special ones included.

    Raises:
        ValueError: there is no text to train on, or `length` is more than the model has positions.
    """
    if length > model.config.positions:
        raise ValueError(f"length {length} is more than the {model.config.positions} positions there are")
    with counting(TRAINING):
        blocks = blocks_of(texts, tokenizer, length)
    if not blocks:
        raise ValueError("there is no text to train on")
    train = MaskedBlocks(blocks, tokenizer, options.seed)
    with counting(TEST):
        evaluated = blocks_of(held_out, tokenizer, length)
    test = MaskedBlocks(evaluated, tokenizer, options.seed) if evaluated else None
    return fit(
        *(model, options, train, collate, test, losses),
        means=MEANS,
        write_vocabulary=tokenizer.save_pretrained,
    )
