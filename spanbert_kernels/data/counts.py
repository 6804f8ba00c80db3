"""What a command took from its files, what it cut or left out, and why: nothing vanishes in silence."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

DEFAULT = "Data"
TRAINING, DEVELOPMENT, TEST = "Training data", "Development data", "Test data"


@dataclass
class Counts:
    """Numbers of things, such as documents or mentions, by what they are called.

    Attributes:
        name: of the data, such as "Test data".
        taken: how many there were to work on.
        cut: of these, how many lost a part, and to what.
        left: how many were left out, and why.

    Example:
        >>> counts = Counts("Data")
        >>> counts.taken["mention"] += 5
        >>> counts.left["mention", "wider than 30 words"] += 1
        >>> str(counts)
        'Data: took 5 mentions; left out 1 mention (wider than 30 words)'
    """

    name: str = DEFAULT
    taken: Counter[str] = field(default_factory=Counter)
    cut: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(+self.cut or +self.left or self.taken)

    def __str__(self) -> str:
        there = +self.taken or self.taken  # what is to be found is nowhere where it is to be predicted
        taken = ", ".join(_number(count, what) for what, count in there.items())
        parts = [f"took {taken or 'nothing'}"]
        for verb, counts in ("cut", self.cut), ("left out", self.left):
            listed = [f"{_number(count, what)} ({why})" for (what, why), count in counts.items() if count]
            parts += [f"{verb} {', '.join(listed)}"] if listed else []
        return f"{self.name}: {'; '.join(parts)}"


@dataclass
class Tally:
    """The counts of a command, one for each of its data, and who hears of them."""

    hear: Callable[[str], None]
    counts: dict[str, Counts] = field(default_factory=dict)
    current: str = DEFAULT
    said: set[str] = field(default_factory=set)

    def of_current(self) -> Counts:
        """The counts that grow now."""
        return self.counts.setdefault(self.current, Counts(self.current))


_tally: ContextVar[Tally | None] = ContextVar("tally", default=None)


@contextlib.contextmanager
def tallying(hear: Callable[[str], None] = lambda line: None) -> Iterator[Tally]:
    """While it lasts, `took`, `cut` and `left_out` count; `hear` gets a line for each data, at the end at the latest.

    Example:
        >>> with tallying(print) as tally, counting("Test data"):
        ...     took("sentence", 2)
        Test data: took 2 sentences
        >>> tally.counts["Test data"].taken["sentence"]
        2
    """
    tally = Tally(hear)
    token = _tally.set(tally)
    try:
        yield tally
    finally:
        say()
        _tally.reset(token)


@contextlib.contextmanager
def counting(name: str) -> Iterator[None]:
    """While it lasts, what is counted is of the data of that name."""
    tally = _tally.get()
    if tally is None:
        yield
        return
    before, tally.current = tally.current, name
    try:
        yield
    finally:
        tally.current = before


def say() -> None:
    """Says what was counted and not said yet; before hours of training, say."""
    tally = _tally.get()
    for counts in tally.counts.values() if tally else ():
        if tally and counts and counts.name not in tally.said:
            tally.said.add(counts.name)
            tally.hear(str(counts))


def took(what: str, number: int = 1) -> None:
    """So many are there to work on."""
    if tally := _tally.get():
        tally.of_current().taken[what] += number


def cut(what: str, to: str, number: int = 1) -> None:
    """So many of those taken lost a part."""
    if tally := _tally.get():
        tally.of_current().cut[what, to] += number


def left_out(what: str, why: str, number: int = 1) -> None:
    """So many are not worked on."""
    if tally := _tally.get():
        tally.of_current().left[what, why] += number


def _number(count: int, what: str) -> str:
    many = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{count:,} {what if count == 1 else many}"
