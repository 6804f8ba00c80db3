"""Scores of what is found against what is wanted."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from typing import Any


def scores_of_sets(wanted: Sequence[Set[Any]], found: Sequence[Collection[Any]]) -> dict[str, float]:
    """Precision, recall and F1 over all sets together.

    Example:
        >>> scores_of_sets([{"a", "b"}, {"c"}], [{"a"}, set()])
        {'precision': 1.0, 'recall': 0.3333333333333333, 'F1': 0.5}
    """
    right = sum(len(own & set(given)) for own, given in zip(wanted, found, strict=True))
    given, there = sum(map(len, found)), sum(map(len, wanted))
    return {
        "precision": right / max(given, 1),
        "recall": right / max(there, 1),
        "F1": 2 * right / max(given + there, 1),
    }
