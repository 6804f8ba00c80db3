"""Hears of every change that this process is about to make to a folder: where a kill would leave it as it is then."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
_listeners: list[tuple[str, Callable[[], object]]] = []
_installed: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listeners or (event != "open" and event not in CHANGES):
        return
    folder, listener = _listeners[-1]
    path = arguments[0]
    if not isinstance(path, (str, bytes, os.PathLike)) or not os.path.abspath(os.fsdecode(path)).startswith(folder):
        return
    listeners = _listeners[:]
    _listeners.clear()  # what the listener itself does is no change
    try:
        listener()
    finally:
        _listeners[:] = listeners


@contextlib.contextmanager
def before_each(folder: Path, listener: Callable[[], object]) -> Iterator[None]:
    """While it lasts, the listener is called before each change and each opening of a file in the folder."""
    if not _installed:
        sys.addaudithook(_hook)  # cannot be taken out again
        _installed.append(True)
    _listeners.append((str(folder.absolute()), listener))
    try:
        yield
    finally:
        _listeners.clear()
