"""Span training: each step sees one random span of a document, as input or as what carries loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from spanbert_kernels.tasks.batches import IGNORED

CROPS = ("input", "loss")
Example = dict[str, Any]
Show = Callable[[Example, slice, str], Example]


@dataclass(frozen=True)
class SpanTraining:
    """What a step sees of a document.

    Attributes:
        span_length: tokens of the span.
        crop: "input", only its tokens are encoded, or "loss", all are and only it carries loss.
    """

    span_length: int = 64
    crop: str = "loss"

    def __post_init__(self) -> None:
        if self.span_length < 1:
            raise ValueError(f"span_length must be at least 1, got {self.span_length}")
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {self.crop!r}")


def show_tokens(example: Example, span: slice, crop: str) -> Example:
    """The span of an example with a label for every token."""
    labels = np.asarray(example["labels"])
    if crop == "loss":
        kept = np.full_like(labels, IGNORED)
        kept[span] = labels[span]
        return {**example, "labels": kept}
    return {**example, "input_ids": cut(example["input_ids"], span), "labels": cut(labels, span)}


def cut(tokens: Any, span: slice) -> Any:
    """The tokens of the span, and the special ones around the document."""
    tokens = np.asarray(tokens)
    return np.concatenate([tokens[:1], tokens[span], tokens[-1:]])


class SpansOfDocuments(Dataset[Example]):
    """Examples with `input_ids`, of which each epoch shows one span as `show` says.

    The document's tokens stand from column `example["first"]` (1 where it says none) to the last but one.
    The span depends on the seed, the epoch and the example alone, so that a run that resumes sees the same.
    """

    def __init__(self, examples: Sequence[Example], spans: SpanTraining, seed: int, show: Show = show_tokens) -> None:
        self.examples, self.spans, self.seed, self.show = examples, spans, seed, show
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.examples)

    def set_epoch(self, epoch: int) -> None:
        """Of the training."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Example:
        """The example with its span; a document that is no longer than the span is shown whole."""
        example = self.examples[index]
        first = int(example.get("first", 1))
        tokens = len(example["input_ids"]) - 1 - first
        if tokens <= self.spans.span_length:
            return example
        generator = np.random.default_rng((self.seed, self.epoch, index))
        start = first + int(generator.integers(tokens - self.spans.span_length + 1))
        return self.show(example, slice(start, start + self.spans.span_length), self.spans.crop)


def shown(examples: Sequence[Example], spans: SpanTraining | None, seed: int, show: Show = show_tokens) -> Any:
    """The examples, or with span training those that show a span in each epoch."""
    return examples if spans is None else SpansOfDocuments(examples, spans, seed, show)
