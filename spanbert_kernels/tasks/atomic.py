"""Files and folders that are there whole or not at all: written aside, brought to the disk, and renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PARTIAL = ".partial"  # ends the name of what is being written
_OF_TORCH = ("PytorchStreamWriter", "inline_container", "iostream")  # errors of its writer


class CannotWrite(OSError):
    """What could not be written, and why, in one line."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to; when the block ends what it holds takes the place of `path`, and when it fails nothing does.

    A link stays a link to the new content; a device or a pipe is written to as it is.

    Raises:
        CannotWrite: the file cannot be written, or not to its end.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with new_file(Path(folder, "a.txt")) as aside:
        ...         _ = aside.write_text("whole")
        ...     print(Path(folder, "a.txt").read_text(), os.listdir(folder))
        whole ['a.txt']
    """
    target = path.resolve()
    with writing(path):
        if target.exists() and not target.is_file():
            yield target
            return
        descriptor, name = tempfile.mkstemp(PARTIAL, f".{target.name[:100]}.", target.parent)
        os.close(descriptor)
        aside = Path(name)
        try:
            yield aside
            aside.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask())
            to_disk(aside)
            aside.replace(target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        to_disk(target.parent)


@contextlib.contextmanager
def new_text(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 file to write to, in place of what was there when the block ends.

    Raises:
        CannotWrite: the file cannot be written, or not to its end.
    """
    with new_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as stream:
        yield stream


def write_text(path: Path, text: str) -> None:
    """The text as a UTF-8 file, in place of what was there.

    Raises:
        CannotWrite: the file cannot be written, or not to its end.
    """
    with new_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write to; when the block ends it takes the place of `path`, and when it fails, nothing does.

    Raises:
        CannotWrite: something in it cannot be written, or not to its end.
    """
    aside = path.with_name(f".{path.name}{PARTIAL}")
    replaced = path.with_name(f".{path.name}.replaced{PARTIAL}")
    with writing(path), _emptied(aside):
        yield aside
        _tree_to_disk(aside)
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.replace(replaced)
        aside.replace(path)
        to_disk(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def files_into(folder: Path, last: str) -> Iterator[Path]:
    """A folder to write to; when the block ends its files move into `folder`, over those there, and `last` as the last.

    Meanwhile `folder` has no file `last`: who needs it does not take what is half old and half new for whole.

    Raises:
        CannotWrite: something cannot be written, or not to its end.
    """
    aside = folder / f".files{PARTIAL}"
    with writing(folder), _emptied(aside):
        yield aside
        _tree_to_disk(aside)
        (folder / last).unlink(missing_ok=True)
        to_disk(folder)
        files = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file()]
        for name in sorted(files, key=lambda name: (name == Path(last), name)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).replace(folder / name)
        to_disk(folder)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """While it lasts, what goes wrong with a disk is said of `path`.

    Raises:
        CannotWrite: in place of an OSError, and of what libraries that write in C++ and Rust raise.
    """
    try:
        yield
    except (CannotWrite, BrokenPipeError):
        raise
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {(error.strerror or str(error)).lower()}{_room(path)}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError" and not any(words in str(error) for words in _OF_TORCH):
            raise
        raise CannotWrite(f"cannot write {path} to its end: {str(error).splitlines()[0]}{_room(path)}") from error


def _room(path: Path) -> str:
    """Says so where the disk is full, or nearly."""
    with contextlib.suppress(OSError):
        existing = next(parent for parent in path.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(existing).free
        if free < 2**30:
            return f" ({free / 2**20:,.1f} MiB are free there)"
    return ""


@contextlib.contextmanager
def _emptied(aside: Path) -> Iterator[None]:
    """A new folder, without what an earlier process left in it; gone at the end."""
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Returns when a file, or a folder's list of names, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tree_to_disk(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            to_disk(Path(root, name))
        to_disk(Path(root))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
