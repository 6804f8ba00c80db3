"""Batches of about so many tokens, of examples of about one length, which waste little on padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

STEP = 8  # lengths that are rounded up to the same multiple of it count as one


def tokens_in(example: Any) -> int:
    """Tokens of an example of any task: of a text, of all windows of a document, of a source and its target.

    Example:
        >>> tokens_in([{"windows": [{"input_ids": [1, 2]}, {"input_ids": [3]}]}, {"tokens": [1], "labels": [2]}])
        5
    """
    if isinstance(example, Mapping):
        if "input_ids" in example:
            return len(example["input_ids"])
        if "tokens" in example:
            return len(example["tokens"]) + len(example["labels"])
        return sum(tokens_in(value) for value in example.values() if isinstance(value, (list, tuple, Mapping)))
    return sum(map(tokens_in, example)) if isinstance(example, (list, tuple)) else 0


class TokenBatches(Dataset[list[Any]]):
    """Batches of examples: each holds as many of about one length as there is room for, one at least.

    Which examples are together changes with the epoch, how many batches there are does not; it depends on the seed, the
    epoch and the examples alone, so that a run that resumes sees the same.

    Example:
        >>> data = [{"input_ids": range(length)} for length in (3, 60, 4, 5, 64, 2)]
        >>> [[tokens_in(example) for example in batch] for batch in TokenBatches(data, 64, seed=0)]
        [[5, 4, 3, 2], [60], [64]]
    """

    def __init__(self, examples: Any, tokens: int, seed: int) -> None:
        self.examples, self.seed = examples, seed
        sizes = np.array([tokens_in(examples[index]) for index in range(len(examples))])
        self.rounded = -(-np.maximum(sizes, 1) // STEP) * STEP
        self.ends = self._ends(np.sort(self.rounded), tokens)
        self.set_epoch(0)

    @staticmethod
    def _ends(sizes: Any, tokens: int) -> list[int]:
        ends, used = [0], 0
        for index, size in enumerate(sizes.tolist()):
            if used and used + size > tokens:
                ends.append(index)
                used = 0
            used += size
        return [*ends, len(sizes)]

    def set_epoch(self, epoch: int) -> None:
        """Of the training: examples of one length change places."""
        if hasattr(self.examples, "set_epoch"):
            self.examples.set_epoch(epoch)
        drawn = np.random.default_rng((self.seed, epoch)).random(len(self.rounded))
        self.order = np.lexsort((drawn, self.rounded)).tolist()

    def __len__(self) -> int:
        return len(self.ends) - 1

    def sizes(self) -> list[int]:
        """Tokens of each batch, lengths rounded up; they are the same in every epoch."""
        return [int(sizes.sum()) for sizes in np.split(np.sort(self.rounded), self.ends[1:-1])]

    def __getitem__(self, index: int) -> list[Any]:
        """The examples of a batch."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return [self.examples[i] for i in self.order[self.ends[index] : self.ends[index + 1]]]


def in_batches(collate: Callable[[list[Any]], dict[str, Any]]) -> Callable[[Sequence[list[Any]]], dict[str, Any]]:
    """Makes tensors of the one batch that a data loader of `TokenBatches` gives."""
    return lambda batches: collate(batches[0])
