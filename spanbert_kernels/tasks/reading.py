"""What a task reads from the files that a user names: something at least, and counted as what it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from spanbert_kernels.data.counts import DEFAULT, counting, took
from spanbert_kernels.data.sources import Source, name_of, some

Item = TypeVar("Item")


def read(reader: Callable[[Source], list[Item]], source: Source | None, name: str) -> list[Item]:
    """What there is to train or score on; nothing, where no file is named.

    Args:
        reader: of the task's files.
        source: what the user names, or None.
        name: of the data, for what the reader counts.

    Raises:
        ValueError: the files hold nothing.
    """
    if source is None:
        return []
    with counting(name):
        return some(reader(source), source)


def read_to_predict(reader: Callable[[Source], list[Item]], source: Source, what: str | None = None) -> list[Item]:
    """What there is to predict for, counted as so many of `what`, unless what follows counts it.

    Raises:
        ValueError: the files hold nothing.
    """
    with counting(DEFAULT):
        found = reader(source)
        if not found:
            raise ValueError(f"{name_of(source)}: there is nothing to predict for")
        if what is not None:
            took(what, len(found))
    return found
