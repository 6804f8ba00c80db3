"""What commands say: the only place that prints, so that nobody's file name or text can play with the terminal."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import click
from rich import console
from rich.text import Text

from spanbert_kernels.cli import formatting
from spanbert_kernels.tasks import launch

STANDARD_OUTPUT = "standard output"


def say(text: str, error: bool = False) -> None:
    """A line, or several, to standard output or to standard error; controls are escaped, long lines cut.

    Of several ranks the first one speaks for all.
    """
    if launch.rank():
        return
    with _named():
        click.echo(formatting.for_terminal(text), err=error)


def warn(text: str) -> None:
    """A warning to standard error."""
    say(f"Warning: {text}", error=True)


def pour(text: str) -> None:
    """Results: as they are to a file or a pipe; a terminal gets their controls escaped, but for tabs and line ends."""
    if sys.stdout is not None and sys.stdout.isatty():
        text = re.sub(r"[^\t\n]+", lambda cell: formatting.one_line(cell[0]), text)
    with _named():
        click.echo(text, nl=False, color=True)  # click would take what looks like a colour out of the results


class Console(console.Console):
    """rich's console; in strings, also those in tables, controls are escaped and long lines cut."""

    def print(self, *objects: Any, **how: Any) -> None:
        """As rich's; an error of standard output says whose it is."""
        with _named():
            super().print(*objects, **how)

    def on_broken_pipe(self) -> None:
        """Leaves it to the boundary, which knows the exit code."""
        raise BrokenPipeError

    def render_str(self, text: str, **how: Any) -> Text:
        """What rich makes of every string."""
        return super().render_str(formatting.for_terminal(text), **how)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = STANDARD_OUTPUT
        raise
