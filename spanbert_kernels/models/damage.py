"""What is wrong with the files of a checkpoint, as far as it can be seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class CannotLoad(ValueError):
    """A checkpoint that cannot be loaded; the message names the file and says what to do, in one line."""


@contextlib.contextmanager
def loading(folder: str | os.PathLike[str]) -> Iterator[None]:
    """While a checkpoint is loaded: a damaged file of a local folder is named, whatever a library says of it.

    Raises:
        CannotLoad: in place of any error that is no OSError; or of one, where a file is damaged.
    """
    try:
        yield
    except (MemoryError, CannotLoad):
        raise
    except Exception as error:
        if _out_of_memory(error) or not Path(folder).is_dir():
            raise
        for path in sorted(Path(folder).iterdir()):
            reason = damage(path)
            if reason is not None:
                raise CannotLoad(f"cannot load {path}: it {reason}") from error
        if isinstance(error, OSError) or (isinstance(error, ValueError) and not isinstance(error, UnicodeError)):
            raise
        raise CannotLoad(f"cannot load the checkpoint in {folder}: {_first_line(error)}") from error


def damage(path: Path) -> str | None:
    """What is wrong with a file, to follow its name; None where nothing is to be seen.

    Example:
        >>> damage(Path("nowhere/model.safetensors"))
        'is missing'
    """
    if path.is_dir():
        return None
    if not path.is_file():
        return "is no file" if path.exists() else "is missing"
    with path.open("rb") as file:
        head = file.read(len(LFS_POINTER))
    if not head:
        return "is empty"
    if head == LFS_POINTER:
        return "is a Git LFS pointer, not the file itself: fetch that with `git lfs pull`"
    check = _CHECKS.get(path.suffix)
    return None if check is None else check(path)


def _json(path: Path) -> str | None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({error}): cut off? Copy it again"
    return None


def _safetensors(path: Path) -> str | None:
    try:
        with safe_open(path, framework="numpy"):
            return None
    except SafetensorError as error:
        return f"is no whole safetensors file ({error}): cut off? Copy it again"


def _zip(path: Path) -> str | None:
    """What torch.save writes, whose parts have checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        return f"is not what torch.save writes ({error}): cut off? Copy it again"
    return None if damaged is None else f"is damaged (its part {damaged}): copy it again"


def _zip_or_older(path: Path) -> str | None:
    """Files of torch before 1.6 are no zip files."""
    with path.open("rb") as file:
        return _zip(path) if file.read(2) == b"PK" else None


def _text(path: Path) -> str | None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return f"is no UTF-8 text (byte {error.start:,}): copy it again"
    return None


_CHECKS = {
    ".json": _json,
    ".safetensors": _safetensors,
    ".pt": _zip,
    ".pth": _zip,
    ".bin": _zip_or_older,
    ".txt": _text,
}


def _out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
