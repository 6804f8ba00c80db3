"""Progress bars of evaluation and prediction; the Trainer has its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
_shown = ContextVar("shown", default=False)


@contextlib.contextmanager
def bars(shown: bool = True) -> Iterator[None]:
    """While it lasts, a model that runs over a file says on stderr how far it is, if `shown`; else it is silent.

    Example:
        >>> with bars(shown=False):
        ...     list(counted([1, 2], "numbers"))
        [1, 2]
    """
    before = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(before)


def counted(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with a bar called `what` that vanishes at the end."""
    yield from tqdm(items, desc=what, leave=False, disable=not _shown.get())
