"""What a loss is a mean over: batches whose gradients are added up, of a rank or of several, weigh by that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spanbert_kernels.tasks.dealing import SPARE

IGNORED = -100

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Mean:
    """A part of a loss.

    Attributes:
        count: over how many things it is a mean, of a batch and the model's configuration.
        name: in the model's output; "loss" where it is all of it.
        more: what it is divided by beyond these.
    """

    count: Callable[[Batch, Any], Tensor | int]
    name: str = "loss"
    more: int = 0


def labels(batch: Batch, config: Any = None) -> Tensor:
    """Those that are not left out.

    Example:
        >>> import torch
        >>> int(labels({"labels": torch.tensor([[1, 0, -100]])}))
        2
    """
    return (batch["labels"] != IGNORED).sum()


def words(batch: Batch, config: Any = None) -> Tensor:
    """Those that begin somewhere."""
    return (batch["word_starts"] >= 0).sum()


def rows_of(name: str) -> Callable[[Batch, Any], int]:
    """Of the array of that name.

    Example:
        >>> rows_of("clusters")({"clusters": [0, 0, 1]}, None)
        3
    """
    return lambda batch, config: len(batch[name])


OF_LABELS = (Mean(labels),)
OF_WORDS = (Mean(words),)


def counts(batch: Batch, means: Sequence[Mean], config: Any) -> list[float]:
    """Over how many things each mean of a batch goes; over none where it is one that does not count."""
    return [0.0 if SPARE in batch else float(mean.count(batch, config)) for mean in means]


def shares(own: Sequence[float], of_all: Sequence[float], means: Sequence[Mean]) -> list[float]:
    """What each mean of a batch is to be multiplied by, for the sum over a step's batches to be the step's mean.

    Args:
        own, of_all: `counts` of the batch and of the step.
        means: what the loss is the sum of.

    Example:
        >>> shares([3.0, 1.0], [12.0, 3.0], [Mean(words), Mean(words, more=1)])
        [0.25, 0.5]
    """
    pairs = zip(own, of_all, means, strict=True)
    return [(count + mean.more) / (total + mean.more) if count else 0.0 for count, total, mean in pairs]


def weighed(loss: Tensor, output: Mapping[str, Any], means: Sequence[Mean], factors: Sequence[float]) -> Tensor:
    """The batch's part of the loss of a step.

    Args:
        loss: the batch's own; output: the model's, which has each mean where there are several.
        means: what the loss is the sum of; factors: `shares` of the batch.
    """
    terms = [loss] if len(means) == 1 else [output[mean.name] for mean in means]
    pairs = zip(terms, factors, strict=True)
    parts = [term * factor if factor else (term * 0.0).nan_to_num() for term, factor in pairs]  # NaN: of nothing
    return sum(parts[1:], parts[0])
