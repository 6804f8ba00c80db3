"""MUC, B3 and CEAFe as the CoNLL scorer has them: scorch's, made right where mentions repeat or none is found."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from statistics import mean
from typing import TypeVar

from scorch.scores import b_cubed, ceaf_e, muc

METRICS = {"MUC": muc, "B3": b_cubed, "CEAFe": ceaf_e}
Mention = TypeVar("Mention", bound=Hashable)


def disjoint(entities: Iterable[Iterable[Mention]]) -> list[set[Mention]]:
    """The entities with each mention in the first one that holds it alone, as the CoNLL scorer does.

    A mention in two entities would count twice, and scores would exceed 1.

    Example:
        >>> disjoint([["a", "b"], ["b", "c"], ["a"]])
        [{...}, {'c'}]
    """
    seen: set[Mention] = set()
    found = []
    for entity in entities:
        own = set(entity) - seen
        seen |= own
        found += [own] if own else []
    return found


def f1_scores(key: Sequence[Iterable[Mention]], response: Sequence[Iterable[Mention]]) -> dict[str, float]:
    """F1 of MUC, B3 and CEAFe of the entities found against those wanted, and their mean, CoNLL F1.

    Where no mention is in both, all are 0 (scorch divides by it).

    Example:
        >>> f1_scores([["a", "b"]], [["c"]])
        {'MUC': 0.0, 'B3': 0.0, 'CEAFe': 0.0, 'CoNLL F1': 0.0}
    """
    wanted, found = disjoint(key), disjoint(response)
    common = set().union(*wanted) & set().union(*found)
    scores = {name: float(metric(wanted, found)[2]) if common else 0.0 for name, metric in METRICS.items()}
    return {**scores, "CoNLL F1": mean(scores.values())}
