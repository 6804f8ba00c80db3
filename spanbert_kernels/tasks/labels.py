"""Labels of models and of data, which need not be the same."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from spanbert_kernels.data.faults import DataWarning

SHOWN = 12  # labels in a message


def labels_of(model: Any) -> list[str]:
    """Of a model, in their order."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)]


def label_fields(labels: Collection[str]) -> dict[str, Any]:
    """Of a model's configuration.

    Example:
        >>> label_fields(["O", "B-x"])
        {'id2label': {0: 'O', 1: 'B-x'}, 'label2id': {'O': 0, 'B-x': 1}}
    """
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def listed(labels: Collection[str]) -> str:
    """In words, the first ones of many.

    Example:
        >>> listed(["B-x", "I-x"])
        'B-x, I-x'
    """
    more = len(labels) - SHOWN
    return ", ".join(islice(labels, SHOWN)) + (f" and {more} more" if more > 0 else "")


def warn_of_unknown(found: Iterable[tuple[str, Path, int]], known: Collection[str]) -> None:
    """One warning for all labels, with file and line, that are not among those that a model knows: they are missed."""
    counts: Counter[str] = Counter()
    first: tuple[Path, int] | None = None
    names = frozenset(known)
    for label, path, line in found:
        if label not in names:
            counts[label] += 1
            first = first or (path, line)
    if first is not None:
        path, line = first
        count = counts.total()
        warnings.warn(
            f"{path}, line {line}: the model does not know {listed(counts)}, only {listed(known)}: "
            f"{count:,} label{' is' if count == 1 else 's are'} missed",
            DataWarning,
            stacklevel=3,
        )


def head_of(kind: Any, config: Any) -> set[str]:
    """Names of the parameters of the model class `kind` whose shape is decided by the number of labels.

    Example:
        >>> from spanbert_kernels import SpanBERTConfig, SpanBERTForTokenClassification
        >>> sorted(head_of(SpanBERTForTokenClassification, SpanBERTConfig(num_hidden_layers=1)))
        ['classifier.bias', 'classifier.weight']
    """
    shapes = []
    for more in (1, 2):
        other = type(config).from_dict(config.to_dict())
        other.num_labels = config.num_labels + more
        with torch.device("meta"):
            shapes.append({name: tuple(tensor.shape) for name, tensor in kind(other).state_dict().items()})
    one, other_shapes = shapes
    return {name for name, shape in one.items() if other_shapes[name] != shape}
