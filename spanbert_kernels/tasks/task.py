"""What every task offers, and where it is found: adding a task is adding its file and a row to `TASKS`.

Importing this loads no PyTorch; `load` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spanbert_kernels.data.sources import Source
    from spanbert_kernels.tasks.span_training import SpanTraining
    from spanbert_kernels.tasks.start import Start
    from spanbert_kernels.tasks.training import Training, TrainingOptions

TASKS = {
    "tagging": "named entities as labels of words",
    "nested": "named entities that may lie in each other, as labels of spans",
    "coreference": "which mentions of a document are of one entity",
    "cross_document_coreference": "which mentions of a cluster of documents are of one entity",
    "relations": "which entities of a cluster of documents stand in which relation",
    "classification": "sentiment or topic of documents, alone or in clusters",
    "parsing": "dependency trees",
    "question_answering": "answers that stand in a text",
    "summarisation": "summaries of documents",
    "translation": "translations of lines",
}
Scores = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """Of a training: the log, and on the held-out file the scores of the model and of the trivial baseline."""

    training: Training
    scores: Scores
    baseline: Scores


@dataclass(frozen=True)
class Task:
    """A task over files.

    Attributes:
        train: what to train on and, optional, to test on, each a file, a folder or several of them; where to begin;
            how; span training, or None.
        evaluate: scores of the model in a folder on such a source, on a backend.
        predict: texts of lines, the last line end left out, for such a source, on a backend.
    """

    train: Callable[[Source, Source | None, Start, TrainingOptions, SpanTraining | None], Outcome]
    evaluate: Callable[[Path, Source, str], Scores]
    predict: Callable[[Path, Source, str], Iterator[str]]


def load(name: str) -> Task:
    """The task of that name."""
    found: Task = importlib.import_module(f"spanbert_kernels.tasks.{name}").TASK
    return found
