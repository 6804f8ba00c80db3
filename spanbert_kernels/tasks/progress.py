"""What long work shows: bars of evaluation and prediction; the Trainer has its own, transformers' others are off."""

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


def quiet_transformers() -> None:
    """No advice and no bars of transformers' own between ours."""
    import huggingface_hub
    from transformers.utils import logging

    logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()
    logging.disable_progress_bar()
