"""Files that commands write, and errors that a user can put right."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import click

from spanbert_kernels.cli import formatting


class UserError(click.ClickException):
    """What a user can put right: one line, exit code 2."""

    exit_code = 2


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """A file that cannot be used, or a wrong value, ends the command with a line that names it."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise UserError(first_line(error)) from error
        raise UserError(f"{formatting.path(Path(error.filename))}: {error.strerror.lower()}") from error
    except ValueError as error:
        raise UserError(first_line(error)) from error


def first_line(error: Exception) -> str:
    """Of an error's text, or else its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_output(what: str, output: Path) -> None:
    """Before minutes of work: is there a place for what will be written?"""
    folder = output.parent
    if output.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder {formatting.path(folder)}"
    elif not os.access(output if output.exists() else folder, os.W_OK):
        reason = "permission denied"
    else:
        return
    raise UserError(f"cannot write the {what} to {formatting.path(output)}: {reason}")


def write(what: str, path: Path, text: str) -> None:
    """Writes a text, or says in a line why it cannot."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the {what} to {formatting.path(path)}: {error.strerror or error}") from error
