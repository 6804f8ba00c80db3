"""What long work shows: bars on a terminal, else a line now and then; the Trainer has its own bars."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
Hear = Callable[[str], None]
SHARE = 0.1  # of the work between two lines
SECONDS, AT_LEAST = 30.0, 5.0  # between two lines at most, and at least: what takes seconds says nothing
_shown = ContextVar("shown", default=False)
_hear: ContextVar[Hear | None] = ContextVar("hear", default=None)


@contextlib.contextmanager
def bars(shown: bool = True, hear: Hear | None = None) -> Iterator[None]:
    """While it lasts, a model that runs over a file says on stderr how far it is, if `shown`; else `hear` gets lines.

    Example:
        >>> with bars(shown=False):
        ...     list(counted([1, 2], "numbers"))
        [1, 2]
    """
    before = _shown.set(shown), _hear.set(None if shown else hear)
    try:
        yield
    finally:
        _shown.reset(before[0])
        _hear.reset(before[1])


def counted(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with a bar called `what` that vanishes at the end, or lines that begin with that word."""
    telling = Telling(len(items), what)
    for number, item in enumerate(tqdm(items, desc=what, leave=False, disable=not _shown.get())):
        telling.at(number)
        yield item


class Telling:
    """Lines about work of so many parts: one for each tenth of it, or after half a minute.

    Example:
        >>> with bars(False, print):
        ...     Telling(8, "step").say(2, "loss 0.500")
        step 2 of 8 (25 %), loss 0.500
    """

    def __init__(self, total: int, what: str, done: int = 0) -> None:
        self.total, self.what, self.begun_with = total, what, done
        self.hear = _hear.get()
        self.begun = self.last = time.monotonic()
        self.said = done

    def at(self, done: int, notes: Iterable[str] = ()) -> None:
        """So much is done; says so where it is time, with the first of the notes."""
        if self.hear is None:
            return
        waited = time.monotonic() - self.last
        if waited >= SECONDS or (waited >= AT_LEAST and done - self.said >= SHARE * self.total):
            self.say(done, next(iter(notes), ""))

    def say(self, done: int, note: str = "") -> None:
        """Says so now."""
        if self.hear is None:
            return
        self.last, self.said = time.monotonic(), done
        parts = [f"{self.what} {done:,} of {self.total:,} ({done / max(self.total, 1):.0%})".replace("%)", " %)"), note]
        taken = self.last - self.begun
        if taken >= AT_LEAST and self.begun_with < done < self.total:
            left = taken / (done - self.begun_with) * (self.total - done)
            parts.append(f"{left:.0f} s left" if left < 100 else f"{left / 60:.0f} min left")
        self.hear(", ".join(part for part in parts if part))


def quiet_transformers() -> None:
    """No advice and no bars of transformers' own between ours."""
    import huggingface_hub
    from transformers.utils import logging

    logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    logging.disable_progress_bar()
