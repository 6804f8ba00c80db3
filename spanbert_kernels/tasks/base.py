"""A task over files: what all tasks do alike, made of the functions and tables that are each one's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from spanbert_kernels.data.counts import DEVELOPMENT, TEST, TRAINING, counting, tallying
from spanbert_kernels.data.faults import DataFault, warn
from spanbert_kernels.data.sources import Source, name_of, some
from spanbert_kernels.models.tokenization import load_tokenizer
from spanbert_kernels.tasks import launch
from spanbert_kernels.tasks.attribution import (
    STEPS,
    Claim,
    Explanation,
    Pass,
    explanation_of,
    masking_token,
    parts_of_words,
    run,
)
from spanbert_kernels.tasks.batches import Example, outputs, without
from spanbert_kernels.tasks.familiarity import FIELD, capitalised
from spanbert_kernels.tasks.formats import Format
from spanbert_kernels.tasks.labels import label_fields, labels_of, listed, warn_of_unknown
from spanbert_kernels.tasks.means import OF_LABELS, Mean
from spanbert_kernels.tasks.predicting import chunks, line_format, predictions_for, several
from spanbert_kernels.tasks.predictions import Prediction
from spanbert_kernels.tasks.progress import bars, counted
from spanbert_kernels.tasks.registry import JSON
from spanbert_kernels.tasks.registry import TASKS as TASKS
from spanbert_kernels.tasks.span_training import Show, SpanTraining, show_tokens, shown
from spanbert_kernels.tasks.start import Start, load_trained
from spanbert_kernels.tasks.training import Development, Training, TrainingOptions, fit
from spanbert_kernels.tasks.vocabulary import Tokenizer

Scores = dict[str, float]
Batches = Iterator[tuple[list[Example], Any]]  # the examples of a batch, and what the model made of it
Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Outcome:
    """Of a training: the log, and on the held-out file the scores of the model and of the trivial baseline."""

    training: Training
    scores: Scores
    baseline: Scores


@dataclass(frozen=True)
class Judged:
    """Items, what a model found for each, and the scores of that."""

    items: Sequence[Any]
    found: Sequence[Any]
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class Task(Generic[Item, Found]):
    """A task; its items are what its files hold, such as documents, and it finds something for each.

    Attributes:
        noun: what an item is called.
        lack: what is said where there is nothing to learn or to find.
        kind: class of the model.
        read: items with what is to be found, of the files that a user names.
        read_plain: items to predict for.
        texts: what a vocabulary for an item is made of.
        paths: the files of an item's documents.
        marks: the labels in an item, each with its file and line.
        labels: of a model, from those that stand in the items to train on; None where it has none.
        known: the labels of a model that an item may have.
        fields: more of the model's configuration, for the items to train on, where to begin, and the items' source.
        bare: an item without what is to be found.
        encode: examples of items, arrays by name; counts what it cuts and leaves out. Its other names serve `decode`.
        count: counts the items and what is to be found in them, and gives the number of the latter.
        dataset: for the Trainer, of model, tokenizer, items, examples, span training or None, and a seed; by default
            the examples, or a span of each as `show` says.
        collate: makes a batch of examples.
        answers: what of a batch only a training needs.
        means: what the model's loss is the sum of.
        size: of an example; those of about one size are in a batch of `batch_size` where something is to be found.
        decode: what is found for each item, of a model and its batches.
        score: of what was found for items.
        measure: the name of the score that counts.
        baseline: scores of a trivial way, from items to train on, items, and what the model found for these.
        predictions: what was found for an item, in its text.
        columns: writes predictions as what the task learns from, if it can.
        groups: items in order; those of a group are predicted for together.
        claims: what is to be explained of an item, from model, tokenizer, items, and the model's passes over the
            examples of one of them.
        item_of: the number of an example's item.
        steps: of the way on which gradients are averaged for an explanation.
        quick: whether an explanation of words in such items takes minutes, not hours.
    """

    noun: str
    lack: str
    kind: Any
    read: Callable[[Source], list[Item]]
    read_plain: Callable[[Source], list[Item]]
    texts: Callable[[Item], Iterable[str]]
    paths: Callable[[Any], Sequence[Path]] = lambda item: [item.path]
    marks: Callable[[Item], Iterable[tuple[str, Path, int]]] = lambda item: ()
    labels: Callable[[set[str]], list[str]] | None = None
    known: Callable[[Any], list[str]] = labels_of
    fields: Callable[[Sequence[Item], Start, Source], dict[str, Any]] = lambda items, start, data: {}
    bare: Callable[[Item], Item]
    encode: Callable[[Any, Tokenizer, Sequence[Item]], list[Example]]
    count: Callable[[Any, Tokenizer, Sequence[Item], Sequence[Example]], int]
    dataset: Callable[[Any, Tokenizer, Sequence[Item], list[Example], SpanTraining | None, int], Any] | None = None
    show: Show = show_tokens
    collate: Callable[[list[Example]], dict[str, Tensor]]
    answers: tuple[str, ...] = ("labels",)
    means: tuple[Mean, ...] = OF_LABELS
    size: Callable[[Example], int] = lambda example: len(example["input_ids"])
    batch_size: int = 32
    decode: Callable[[Any, Sequence[Item], Batches], list[Found]]
    score: Callable[[Sequence[Item], Sequence[Found]], Scores]
    measure: str = "F1"
    baseline: Callable[[Sequence[Item], Sequence[Item], Sequence[Found]], Scores]
    predictions: Callable[[Item, Found], Iterable[Prediction]]
    columns: Format | None = None
    groups: Callable[[Sequence[Item]], Iterable[Sequence[Item]]] = chunks
    claims: Callable[[Any, Tokenizer, Sequence[Item], list[Pass]], Iterable[Claim]]
    item_of: Callable[[Example], int] = lambda example: int(example["item"])
    steps: int = STEPS
    quick: Callable[[Sequence[Item]], bool] = lambda items: True

    def train(
        self,
        data: Source,
        test: Source | None,
        start: Start,
        options: TrainingOptions,
        spans: SpanTraining | None,
        dev: Source | None = None,
    ) -> Outcome:
        """Trains on files, folders or several of them, and scores on others if there are any.

        With files `dev` the model is the one of all evaluations on these that had the best score.

        Raises:
            ValueError: the files hold nothing, or nothing to learn.
        """
        items = self._read(data, TRAINING)
        held_out = [] if test is None else self._read(test, TEST)
        development = [] if dev is None else self._read(dev, DEVELOPMENT)
        model, tokenizer = self.build(items, data, start, options.seed)
        setattr(self.network(model).config, FIELD, capitalised(self.texts_of(items)))
        training = self.fit(model, tokenizer, items, options, spans, development)
        if not held_out or launch.rank():
            return Outcome(training, {}, {})
        if options.fsdp:  # the other ranks, which hold the rest of it, have ended
            model, tokenizer = self.load(options.output)
        found = self._found(model, tokenizer, held_out, options.backend)
        scores = self.scores(model, held_out, found, options.backend)
        return Outcome(training, scores, self.trivial(model, items, held_out, found))

    def evaluate(self, folder: Path, data: Source, backend: str) -> Scores:
        """The scores of the model in a folder on such files."""
        return self.judge(folder, data, backend).scores

    def judge(self, folder: Path, data: Source, backend: str) -> Judged:
        """The same, with what is wanted and what was found."""
        model, tokenizer = self.load(folder)
        items = self._read(data, TEST)
        found = self._found(model, tokenizer, items, backend)
        return Judged(items, found, self.scores(model, items, found, backend))

    def predict(self, folder: Path, data: Source, backend: str, written: str = JSON) -> Iterator[str]:
        """What the model in a folder finds in such files, whose answers are not looked at, as lines without their ends.

        Lines name their file where there are several. `written` is a format of lines of the task's `TaskEntry`.
        """
        items = self.read_to_predict(data)
        found = predictions_for(self, self.load(folder), items, backend)
        return line_format(self, written).lines([found], several(self, items))

    def load(self, folder: Path) -> tuple[Any, Tokenizer]:
        """The model and the tokenizer that `train` wrote.

        Raises:
            ValueError: the folder's model is another task's, or lacks weights.
            OSError: there is no such folder, or no model in it.
        """
        return load_trained(self.kind, folder), load_tokenizer(folder)

    def read_to_predict(self, data: Source) -> list[Item]:
        """The items to predict for, without what is to be found.

        Raises:
            ValueError: the files hold nothing.
        """
        items = [self.bare(item) for item in self.read_plain(data)]
        if not items:
            raise ValueError(f"{name_of(data)}: there is nothing to predict for")
        return items

    def texts_of(self, items: Iterable[Item]) -> Iterator[str]:
        """Of all items."""
        return (text for item in items for text in self.texts(item))

    def build(self, items: Sequence[Item], data: Source, start: Start, seed: int) -> tuple[Any, Tokenizer]:
        """A model for the labels of the items and a tokenizer, as `start` says."""
        tokenizer = start.tokenizer(self.texts_of(items))
        fields = self.fields(items, start, data)
        if self.labels is not None:
            fields |= label_fields(self.labels_in(items))
        return start.build(self.kind, tokenizer, seed, **fields), tokenizer

    def labels_in(self, items: Iterable[Item]) -> list[str]:
        """Of a model that is to learn these items."""
        found = {label for item in items for label, _, _ in self.marks(item)}
        return [] if self.labels is None else self.labels(found)

    def fit(
        self,
        model: Any,
        tokenizer: Tokenizer,
        items: Sequence[Item],
        options: TrainingOptions,
        spans: SpanTraining | None = None,
        development: Sequence[Item] = (),
    ) -> Training:
        """Trains a model, whose labels stand in `model.config.id2label`, and writes it to `options.output`.

        Raises:
            ValueError: there is no item, or nothing to learn in any; `DataFault` for a label that the model lacks.
        """
        if not items:
            raise ValueError(f"there is no {self.noun} to train on")
        with counting(TRAINING):
            data = self.examples(model, tokenizer, items, spans, options.seed)
        return fit(
            *(model, options, data, self.batches(model)),
            means=self.means,
            development=self.development(model, tokenizer, development, options.backend),
            write_vocabulary=tokenizer.save_pretrained,
        )

    def development(self, model: Any, tokenizer: Tokenizer, items: Sequence[Item], backend: str) -> Development | None:
        """Items that say when a training is at its best, counted once; None where there are none."""
        if not items:
            return None
        with counting(DEVELOPMENT):
            bare, examples = self._to_score(model, tokenizer, items)

        def scores() -> Scores:
            with tallying():
                return self.scores(model, items, self.found(model, bare, examples, backend), backend)

        return Development(scores, self.measure)

    def examples(
        self, model: Any, tokenizer: Tokenizer, items: Sequence[Item], spans: SpanTraining | None, seed: int
    ) -> Any:
        """What the Trainer learns from, counted.

        Raises:
            ValueError: there is nothing to learn; `DataFault` for a label that the model does not have.
        """
        if self.labels is not None:
            known = self.known(model)
            for label, path, line in (mark for item in items for mark in self.marks(item)):
                if label not in known:
                    raise DataFault(path, line, f"unknown label {label}; the model has {listed(known)}")
        examples = self.encode(model, tokenizer, items)
        if not self.count(model, tokenizer, items, examples):
            raise ValueError(f"{self.paths(items[0])[0]}: {self.lack} to train on")
        if self.dataset is None:
            return shown(examples, spans, seed, self.show)
        return self.dataset(model, tokenizer, items, examples, spans, seed)

    def batches(self, model: Any, answers: bool = True) -> Callable[[list[Example]], dict[str, Tensor]]:
        """Makes batches for a model, with what only a training needs or without."""
        left_out = () if answers else self.answers
        if not getattr(model.config, "cross_document_layers", None):
            left_out = (*left_out, "cluster_ids")
        return without(self.collate, left_out)

    def find(self, model: Any, tokenizer: Tokenizer, items: Sequence[Item], backend: str = "auto") -> list[Found]:
        """For each item, on a backend, looking at nothing that is to be found."""
        items = [self.bare(item) for item in items]
        return self.found(model, items, self.encode(model, tokenizer, items), backend)

    def found(self, model: Any, items: Sequence[Item], examples: list[Example], backend: str) -> list[Found]:
        """The same, for items that are encoded."""
        batches = outputs(model, examples, self.batches(model, False), self.size, self.batch_size, backend)
        return self.decode(model, items, batches)

    def explain(
        self, model: Any, tokenizer: Tokenizer, items: Sequence[Item], limit: int | None = None, words: bool = True
    ) -> list[Explanation]:
        """The model's predictions for items, and how much each word counted for them.

        Args:
            model: a trained model.
            tokenizer: the model's.
            items: what is to be found in them is not looked at.
            limit: predictions at most, the first ones.
            words: whether shares are computed, which takes most of the time; else they are 0.

        Source: Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks.
        """
        return [explanation for explanation, _, _ in self.explained(model, tokenizer, items, limit, words)]

    def explainable(self, model: Any, tokenizer: Tokenizer, items: Sequence[Item]) -> int:
        """How many predictions for items there are to explain."""
        with tallying(), bars(shown=False):
            return sum(1 for _ in self.explained(model, tokenizer, items, words=False))

    def explained(
        self, model: Any, tokenizer: Tokenizer, items: Sequence[Item], limit: int | None = None, words: bool = True
    ) -> Iterator[tuple[Explanation, Claim, Pass]]:
        """The same, each with the prediction and the pass that it was made in."""
        items = [self.bare(item) for item in items]
        examples = self.encode(model, tokenizer, items)
        self.count(model, tokenizer, items, examples)
        yield from self.explained_examples(model, tokenizer, items, examples, limit, words)

    def explained_examples(
        self,
        model: Any,
        tokenizer: Tokenizer,
        items: Sequence[Item],
        examples: list[Example],
        limit: int | None,
        words: bool,
    ) -> Iterator[tuple[Explanation, Claim, Pass]]:
        """The same, for items that are encoded and counted."""
        network, token, collate = self.network(model), masking_token(tokenizer), self.batches(model, False)
        by_item: dict[int, list[Example]] = {}
        for example in examples:
            by_item.setdefault(self.item_of(example), []).append(example)
        left = limit
        for own in counted(list(by_item.values()), "explaining"):
            passes = [run(network, example, collate([example])) for example in own]
            found = list(islice(self.claims(model, tokenizer, items, passes), left))
            left = None if left is None else left - len(found)
            for number, each in enumerate(passes):
                chosen = [prediction for prediction in found if prediction.example == number]
                parts = parts_of_words(network, each.batch, chosen, token, self.steps if words else 0)
                for prediction, part in zip(chosen, parts, strict=True):
                    yield explanation_of(prediction, part), prediction, each
            if left == 0:
                break

    def network(self, model: Any) -> Any:
        """The module in a model."""
        return model

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
            bare, examples = self._to_score(model, tokenizer, items)
            return self.found(model, bare, examples, backend)

    def _to_score(self, model: Any, tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[list[Item], list[Example]]:
        """Items without what is to be found, and their examples, counted, with a warning of what cannot be found."""
        bare = [self.bare(item) for item in items]
        examples = self.encode(model, tokenizer, bare)
        if not self.count(model, tokenizer, items, examples):
            warn(f"{self.paths(items[0])[0]}: {self.lack} to find")
        if self.labels is not None:
            warn_of_unknown((mark for item in items for mark in self.marks(item)), self.known(model))
        return bare, examples


def load(name: str) -> Task[Any, Any]:
    """The task of that name."""
    found: Task[Any, Any] = importlib.import_module(f"spanbert_kernels.tasks.{name}").TASK
    return found
