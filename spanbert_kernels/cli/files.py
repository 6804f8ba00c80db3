"""Where commands write, looked at before the work begins."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.errors import UserError
from spanbert_kernels.tasks import atomic

PATH = click.Path(path_type=Path, readable=False)  # who reads it says better why it cannot be read


def check_output(what: str, output: Path) -> None:
    """Before minutes of work: is there a place for what will be written?"""
    folder = output.parent
    if output.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder {formatting.path(folder)}"
    elif not os.access(output if output.exists() else folder, os.W_OK):
        reason = "permission denied"
    elif (not output.exists() or output.is_file()) and not os.access(output.resolve().parent, os.W_OK):
        reason = f"it is written aside first, and folder {formatting.path(folder)} takes no new file"
    else:
        return
    raise UserError(f"cannot write the {what} to {formatting.path(output)}: {reason}")


def check_output_folder(what: str, folder: Path) -> None:
    """Before minutes of work: is there a folder to write to, or a place for one?"""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        reason = f"{formatting.path(existing)} is no folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"{formatting.path(existing)}: permission denied"
    else:
        return
    raise UserError(f"cannot write the {what} to {formatting.path(folder)}: {reason}")


def check_apart(outputs: dict[str, Path]) -> None:
    """No two of the files that a command writes are one; `outputs` by what they are."""
    seen: dict[Path, str] = {}
    for what, path in outputs.items():
        other = seen.setdefault(path.resolve(), what)
        if other != what:
            raise UserError(f"the {other} and the {what} would both be written to {formatting.path(path)}")


@contextlib.contextmanager
def stream_to(what: str, path: Path) -> Iterator[IO[str]]:
    """A text file to write to, whole or not at all in the end; or says in a line why it cannot."""
    try:
        with atomic.new_text(path) as stream:
            yield stream
    except atomic.CannotWrite as error:
        reason = str(error).removeprefix(f"cannot write {path}: ")
        raise UserError(f"cannot write the {what} to {formatting.path(path)}: {reason}") from error


def write(what: str, path: Path, text: str) -> None:
    """Writes a text, whole or not at all, or says in a line why it cannot."""
    try:
        atomic.write_text(path, text)
    except OSError as error:
        reason = error.strerror or str(error).removeprefix(f"cannot write {path}: ")
        raise UserError(f"cannot write the {what} to {formatting.path(path)}: {reason}") from error
