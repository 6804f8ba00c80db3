"""Input files as streams of UTF-8, whatever they are compressed or encoded with."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from spanbert_kernels.data.text import other_form

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_OWN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_ARROWS = {".zst": "zstd", ".lz4": "lz4"}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_FIRST = 16  # bytes that say what a stream is


class Lines(Protocol):
    """What lines are read from."""

    def read(self, size: int, /) -> bytes:
        """So many bytes, fewer at the end."""

    def readline(self, size: int, /) -> bytes:
        """A line with its end, or so many bytes of it."""


def compression_of(path: Path) -> str | None:
    """The suffix that says how a file is compressed.

    Example:
        >>> compression_of(Path("a.jsonl.GZ")), compression_of(Path("a.txt"))
        ('.gz', None)
    """
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSED else None


def opened(raw: BinaryIO, path: Path) -> BinaryIO:
    """The content of an open file as it was before it was compressed.

    Raises:
        ModuleNotFoundError: its compression needs pyarrow, which is not installed.
    """
    compression = compression_of(path)
    if compression is None:
        return raw
    if compression in _OWN:
        return cast(BinaryIO, _OWN[compression](raw, "rb"))
    import pyarrow

    return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(raw, compression=_ARROWS[compression]), 1 << 20))


def in_utf8(stream: BinaryIO) -> Lines:
    """The same in UTF-8, of one that is in UTF-16, which its byte order mark says.

    Raises:
        EOFError: it holds text in another form, such as a PDF.
    """
    return _Recoded(stream) if _is_utf16(stream) else stream


def as_text(stream: BinaryIO) -> io.TextIOWrapper:
    """The lines of a stream with their ends, without a byte order mark; it closes the stream when it goes.

    Raises:
        EOFError: it holds text in another form, such as a PDF.
    """
    return io.TextIOWrapper(stream, encoding="utf-16" if _is_utf16(stream) else "utf-8-sig", newline="")


def _is_utf16(stream: BinaryIO) -> bool:
    first = bytes(cast(Any, stream).peek(_FIRST)[:_FIRST])
    if (form := other_form(first)) is not None:
        raise EOFError(f"it {form}")
    return first.startswith(_UTF16)


class _Recoded:
    """What is read from UTF-16, as UTF-8; sizes are in characters."""

    def __init__(self, stream: BinaryIO) -> None:
        self.text = io.TextIOWrapper(stream, encoding="utf-16", newline="\n")

    def read(self, size: int, /) -> bytes:
        """So many characters, fewer at the end."""
        return self.text.read(size).encode()

    def readline(self, size: int, /) -> bytes:
        """A line with its end, or so many characters of it."""
        return self.text.readline(size).encode()
