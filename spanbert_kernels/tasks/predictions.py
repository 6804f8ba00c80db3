"""What tasks find in texts, in the characters of the text: what all output formats are made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spanbert_kernels.data.splitting import Located

NOWHERE = Located("", ())


@dataclass(frozen=True)
class Mark:
    """Characters of a text from `start` to before `end`, their type, and the entity that they are a mention of.

    The type or the entity is "" where a task does not tell it.
    """

    start: int
    end: int
    label: str = ""
    entity: str = ""


@dataclass(frozen=True)
class Prediction:
    """A text, or a sentence of it, and what was found in it.

    Attributes:
        path: the file that it is from.
        line: there; 0 where the document's name says more.
        located: the text and its words; without a text, what was found is about the whole file.
        marks: what was found in the text.
        marked: what the marks are called, "entities" or "mentions"; "" for a task that finds none.
        labels: of each word, where a task finds them.
        tree: of each word the head (0: the root, else 1-based) and the relation, where a task finds them.
        document: its name, where it may share its file with others.
        found: all else that was found, by name.
    """

    path: Path
    line: int = 0
    located: Located = NOWHERE
    marks: tuple[Mark, ...] = ()
    marked: str = ""
    labels: tuple[str, ...] = ()
    tree: tuple[Sequence[int], Sequence[str]] | None = None
    document: str = ""
    found: dict[str, Any] = field(default_factory=dict)

    def text_of(self, mark: Mark) -> str:
        """The marked characters."""
        return self.located.text[mark.start : mark.end]


def located(item: Any) -> Located:
    """Where the words of an item stand; where that is not known, they are joined by spaces."""
    return item.located or Located.joined(item.words)


def marks_of_labels(labels: Sequence[str], where: Located) -> tuple[Mark, ...]:
    """The entities that BIO labels of words stand for; I behind another type begins one.

    Example:
        >>> marks_of_labels(["B-person", "I-person", "O", "I-place"], Located.joined(["Ada", "King", "in", "Rome"]))
        (Mark(start=0, end=8, label='person', entity=''), Mark(start=12, end=16, label='place', entity=''))
    """
    found: list[Mark] = []
    before = "O"
    for label, (start, end) in zip(labels, where.places, strict=True):
        kind = label[2:]
        if label[0] == "I" and before[2:] == kind and found:
            found[-1] = replace(found[-1], end=end)
        elif label != "O":
            found.append(Mark(start, end, kind))
        before = label
    return tuple(found)


def merged(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """One for each text: those on sentences of the same text, which follow each other, become one.

    Example:
        >>> whole = Located("It rains. We stay.", [(0, 2), (3, 8), (8, 9)])
        >>> rest = replace(whole, places=[(10, 12), (13, 17), (17, 18)])
        >>> [one] = merged([Prediction(Path("a"), 1, whole), Prediction(Path("a"), 1, rest)])
        >>> one.located.words()
        ('It', 'rains', '.', 'We', 'stay', '.')
    """
    own: list[Prediction] = []
    for one in predictions:
        if own and not _goes_on(own[-1], one):
            yield _joined(own)
            own = []
        own.append(one)
    if own:
        yield _joined(own)


def _joined(each: Sequence[Prediction]) -> Prediction:
    first, *more = each
    if not more:
        return first
    return replace(
        first,
        located=replace(first.located, places=[place for one in each for place in one.located.places]),
        marks=tuple(mark for one in each for mark in one.marks),
        labels=tuple(label for one in each for label in one.labels),
    )


def _goes_on(before: Prediction, one: Prediction) -> bool:
    """Whether a prediction is on words behind another's in the same text; without words each is one of its own."""
    if not (before.located.places and one.located.places):
        return False
    same = _text_of(before) == _text_of(one)
    return same and before.located.places[-1][1] <= one.located.places[0][0]


def _text_of(one: Prediction) -> tuple[object, ...]:
    return one.path, one.line, one.document, one.located.start, one.located.text


def file_name(path: Path) -> str:
    """What UTF-8 cannot hold of a file's name is replaced; a line break in it is a space."""
    return " ".join(os.fsencode(path).decode("utf-8", errors="replace").splitlines())
