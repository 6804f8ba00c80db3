"""Predictions for many items, the first ones early."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from spanbert_kernels.data.sources import name_of
from spanbert_kernels.tasks.familiarity import warn_of_strange_texts
from spanbert_kernels.tasks.formats import JSON_LINES, SPACY_LINES, Format
from spanbert_kernels.tasks.predictions import Prediction
from spanbert_kernels.tasks.progress import bars, counted
from spanbert_kernels.tasks.registry import COLUMNS, JSON, SPACY
from spanbert_kernels.tasks.vocabulary import Tokenizer

if TYPE_CHECKING:
    from spanbert_kernels.tasks.base import Task

TOGETHER = 256  # items that a model is run over before their predictions are handed on


def chunks(items: Sequence[Any], size: int = TOGETHER) -> Iterator[Sequence[Any]]:
    """So many of them after the others."""
    return (items[first : first + size] for first in range(0, len(items), size))


def predictions_for(
    task: Task[Any, Any], trained: tuple[Any, Tokenizer], items: Sequence[Any], backend: str, first: bool = True
) -> Iterator[Prediction]:
    """What a trained model with its tokenizer finds for items, group by group.

    Where they are the `first` ones, a warning says whether they are unlike what the model knows.
    """
    model, tokenizer = trained
    if first:
        name = name_of(list(dict.fromkeys(path for item in items for path in task.paths(item))))
        warn_of_strange_texts(task.network(model).config, tokenizer, task.texts_of(items), name)
    groups = list(task.groups(items))
    for group in counted(groups, "predicting") if len(groups) > 1 else groups:
        with contextlib.nullcontext() if len(groups) == 1 else bars(shown=False):
            examples = task.encode(model, tokenizer, group)
            task.count(model, tokenizer, group, examples)
            found = task.found(model, group, examples, backend)
        for item, own in zip(group, found, strict=True):
            yield from task.predictions(item, own)


def several(task: Task[Any, Any], items: Iterable[Any]) -> bool:
    """Whether items are of several files."""
    return len({path for item in items for path in task.paths(item)}) > 1


def line_format(task: Task[Any, Any], name: str) -> Format:
    """What writes a task's predictions in a format of lines, one of those of its `TaskEntry`."""
    found = {JSON: JSON_LINES, COLUMNS: task.columns, SPACY: SPACY_LINES}[name]
    assert found is not None
    return found
