"""A task over files: what all tasks do alike, made of the functions that are each one's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from spanbert_kernels.data.counts import TEST, TRAINING, counting, took
from spanbert_kernels.data.sources import Source, name_of, some
from spanbert_kernels.models.tokenization import load_tokenizer
from spanbert_kernels.tasks.predictions import Lines
from spanbert_kernels.tasks.registry import TASKS as TASKS
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start, load_trained
from spanbert_kernels.tasks.training import Training, TrainingOptions, fit
from spanbert_kernels.tasks.vocabulary import Tokenizer

Scores = dict[str, float]
Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Outcome:
    """Of a training: the log, and on the held-out file the scores of the model and of the trivial baseline."""

    training: Training
    scores: Scores
    baseline: Scores


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Item, Found]):
    """A task; its items are what its files hold, such as documents, and it finds something for each.

    Attributes:
        noun: what an item is called.
        kind: class of the model.
        read: items with what is to be found, of the files that a user names.
        read_plain: items to predict for.
        texts: what a vocabulary for an item is made of.
        fields: of the model's configuration, for the items to train on, where to begin, and the items' source.
        examples: for the Trainer, with span training or None, and a seed; counts the items, and raises `ValueError`
            where there is nothing to learn. `DataFault` for a label that the model does not have.
        collate: makes the batches for a model.
        check: counts the items that a model is scored on, and warns of what it cannot find.
        find: for each item, on a backend, looking at nothing that is to be found.
        score: of what was found for items.
        baseline: scores of a trivial way, from items to train on, items, and what the model found for these.
        lines: of a prediction.
        prepare: counts what becomes of items before they are predicted for.
        paths: the files of an item's documents.
        counts_itself: whether reading or `prepare` counts the items to predict for.
    """

    noun: str
    kind: Any
    read: Callable[[Source], list[Item]]
    read_plain: Callable[[Source], list[Item]]
    texts: Callable[[Item], Iterable[str]]
    fields: Callable[[Sequence[Item], Start, Source], dict[str, Any]] = lambda items, start, data: {}
    examples: Callable[[Any, Tokenizer, Sequence[Item], SpanTraining | None, int], Any]
    collate: Callable[[Any], Callable[[list[Any]], dict[str, Tensor]]]
    check: Callable[[Any, Tokenizer, Sequence[Item]], None]
    find: Callable[[Any, Tokenizer, Sequence[Item], str], list[Found]]
    score: Callable[[Sequence[Item], Sequence[Found]], Scores]
    baseline: Callable[[Sequence[Item], Sequence[Item], Sequence[Found]], Scores]
    lines: Callable[[Lines, Item, Found], Iterable[str]]
    prepare: Callable[[Any, Tokenizer, Sequence[Item]], None] = lambda model, tokenizer, items: None
    paths: Callable[[Any], Sequence[Path]] = lambda item: [item.path]
    counts_itself: bool = False

    def train(
        self, data: Source, test: Source | None, start: Start, options: TrainingOptions, spans: SpanTraining | None
    ) -> Outcome:
        """Trains on files, folders or several of them, and scores on others if there are any.

        Raises:
            ValueError: the files hold nothing, or nothing to learn.
        """
        items = self._read(data, TRAINING)
        held_out = [] if test is None else self._read(test, TEST)
        model, tokenizer = self.build(items, data, start, options.seed)
        training = self.fit(model, tokenizer, items, options, spans)
        if not held_out:
            return Outcome(training, {}, {})
        found = self._found(model, tokenizer, held_out, options.backend)
        scores = self.scores(model, held_out, found, options.backend)
        return Outcome(training, scores, self.trivial(model, items, held_out, found))

    def evaluate(self, folder: Path, data: Source, backend: str) -> Scores:
        """The scores of the model in a folder on such files."""
        model, tokenizer = self.load(folder)
        return self.evaluate_items(model, tokenizer, self._read(data, TEST), backend)

    def predict(self, folder: Path, data: Source, backend: str) -> Iterator[str]:
        """What the model in a folder finds in such files, whose answers are not looked at, as lines without their ends.

        Lines name their file where there are several.
        """
        items = self.read_to_predict(data)
        model, tokenizer = self.load(folder)
        self.prepare(model, tokenizer, items)
        lines = Lines(path for item in items for path in self.paths(item))
        for item, found in zip(items, self.find(model, tokenizer, items, backend), strict=True):
            yield from self.lines(lines, item, found)

    def load(self, folder: Path) -> tuple[Any, Tokenizer]:
        """The model and the tokenizer that `train` wrote.

        Raises:
            ValueError: the folder's model is another task's, or lacks weights.
            OSError: there is no such folder, or no model in it.
        """
        return load_trained(self.kind, folder), load_tokenizer(folder)

    def read_to_predict(self, data: Source) -> list[Item]:
        """The items to predict for, counted.

        Raises:
            ValueError: the files hold nothing.
        """
        items = self.read_plain(data)
        if not items:
            raise ValueError(f"{name_of(data)}: there is nothing to predict for")
        if not self.counts_itself:
            took(self.noun, sum(len(self.paths(item)) for item in items))
        return items

    def build(self, items: Sequence[Item], data: Source, start: Start, seed: int) -> tuple[Any, Tokenizer]:
        """A model for the labels of the items and a tokenizer, as `start` says."""
        tokenizer = start.tokenizer(text for item in items for text in self.texts(item))
        return start.build(self.kind, tokenizer, seed, **self.fields(items, start, data)), tokenizer

    def fit(
        self,
        model: Any,
        tokenizer: Tokenizer,
        items: Sequence[Item],
        options: TrainingOptions,
        spans: SpanTraining | None = None,
    ) -> Training:
        """Trains a model, whose labels stand in `model.config.id2label`, and writes it to `options.output`.

        Raises:
            ValueError: there is no item, or nothing to learn in any; `DataFault` for a label that the model lacks.
        """
        if not items:
            raise ValueError(f"there is no {self.noun} to train on")
        with counting(TRAINING):
            examples = self.examples(model, tokenizer, items, spans, options.seed)
        return fit(model, options, examples, self.collate(model), write_vocabulary=tokenizer.save_pretrained)

    def evaluate_items(self, model: Any, tokenizer: Tokenizer, items: Sequence[Item], backend: str = "auto") -> Scores:
        """The scores of a model; what it has no label or no room for is missed."""
        return self.scores(model, items, self._found(model, tokenizer, items, backend), backend)

    def scores(self, model: Any, items: Sequence[Item], found: Sequence[Found], backend: str) -> Scores:
        """Of what a model found."""
        return self.score(items, found)

    def trivial(self, model: Any, train_on: Sequence[Item], items: Sequence[Item], found: Sequence[Found]) -> Scores:
        """Of the trivial baseline, to compare the scores of a model with."""
        return self.baseline(train_on, items, found)

    def _read(self, data: Source, name: str) -> list[Item]:
        with counting(name):
            return some(self.read(data), data)

    def _found(self, model: Any, tokenizer: Tokenizer, items: Sequence[Item], backend: str) -> list[Found]:
        with counting(TEST):
            self.check(model, tokenizer, items)
            return self.find(model, tokenizer, items, backend)


def load(name: str) -> Task[Any, Any]:
    """The task of that name."""
    found: Task[Any, Any] = importlib.import_module(f"spanbert_kernels.tasks.{name}").TASK
    return found
