"""Files as text: every reader opens its files here, and nothing is replaced or guessed."""

from __future__ import annotations

import codecs
import contextlib
import re
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from spanbert_kernels.data import memory
from spanbert_kernels.data.faults import NotAFile, NotText

BLANKS = " \t"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Of files that hold text in a form of their own: what they begin with, what they are, and what would be read
_SAVE = "save its text as plain text, or its table as CSV"
_OTHER_FORMS = {
    b"PK\x03\x04": f"is a ZIP archive, as files of Word, Excel and LibreOffice are: {_SAVE}",
    b"\xd0\xcf\x11\xe0": f"is a file of an older Word or Excel: {_SAVE}",
    b"%PDF": "is a PDF: save its text as plain text",
    b"{\\rtf": "is rich text: save it as plain text",
    b"\x1f\x8b": "is compressed: unpack it with `gunzip`",
}
MEMORY_OF_TEXT = 6  # bytes that a byte of a file takes while it is decoded and parsed
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LINE_END = re.compile("\r\n?|\n")
STANDARD_INPUT = Path("-")
_given: ContextVar[tuple[str, int] | None] = ContextVar("given", default=None)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        NotAFile: it is a pipe, a socket or a device, which may never end, or more than there is memory for, or stands
            for a file that is elsewhere, or has its text in another form, such as a PDF.
        NotText: it is neither UTF-8 nor UTF-16 with a byte order mark.
        OSError: it cannot be read.
    """
    if path == STANDARD_INPUT and (given := _given.get()):
        return given[0]
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise NotAFile(path, f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file")
    free = memory.available()
    if status.st_size * MEMORY_OF_TEXT > free:
        size = f"{status.st_size / 2**20:,.0f} MiB"
        raise NotAFile(path, f"has {size}, more than the {free / 2**20:,.0f} MiB of free memory can work on: split it")
    data = path.read_bytes()
    if data.startswith(LFS_POINTER):
        raise NotAFile(path, "is a Git LFS pointer, not the file itself: fetch that with `git lfs pull`")
    if (form := other_form(data)) is not None:
        raise NotAFile(path, form)
    return decode(data, path)


def other_form(data: bytes) -> str | None:
    """What a file that begins so is instead of text, and what to do about it; None where nothing is known.

    Example:
        >>> other_form(b"%PDF-1.7"), other_form(b"Anna laughs.")
        ('is a PDF: save its text as plain text', None)
    """
    return next((said for begin, said in _OTHER_FORMS.items() if data.startswith(begin)), None)


@contextlib.contextmanager
def standard_input(text: str, first: int = 1) -> Iterator[None]:
    """While it lasts, the file `-` holds that text, whose first line is the one of that number.

    Example:
        >>> with standard_input("It rains."):
        ...     read_text(STANDARD_INPUT)
        'It rains.'
    """
    token = _given.set((text, first))
    try:
        yield
    finally:
        _given.reset(token)


def first_line_of(path: Path) -> int:
    """The number of the first line that `read_text` gives; above 1 where earlier ones were read before."""
    given = _given.get()
    return given[1] if given and path == STANDARD_INPUT else 1


def decode(data: bytes, path: Path) -> str:
    r"""Bytes as text: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Args:
        data: what stands in the file.
        path: the file, for the message.

    Raises:
        NotText: anything else, and text that holds a NUL.

    Example:
        >>> decode("Zoë".encode("utf-16"), Path("names.txt"))
        'Zoë'
        >>> decode(b"A\nZo\xeb", Path("names.txt"))
        Traceback (most recent call last):
        ...
        spanbert_kernels.data.faults.NotText: names.txt, line 2: not UTF-8 text (byte 4 is 0xeb)
    """
    encoding, name = ("utf-16", "UTF-16") if data.startswith(_UTF16) else ("utf-8-sig", "UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        # the decoder of UTF-8 counts from behind the mark
        mark = len(codecs.BOM_UTF8) if encoding == "utf-8-sig" and data.startswith(codecs.BOM_UTF8) else 0
        place = error.start + mark
        line = 1 + len(_LINE_END.findall(data[:place].decode(encoding, errors="ignore")))
        raise NotText(path, line, f"not {name} text (byte {place:,} is 0x{data[place]:02x})") from None
    if "\0" in text:
        before = text[: text.index("\0")]
        raise NotText(path, 1 + len(_LINE_END.findall(before)), f"binary (character {len(before):,} is NUL)")
    return text


def lines_of(text: str) -> list[str]:
    r"""The lines of a text, which end at \n, \r\n or \r alone: U+2028, U+0085 and their like are text.

    Example:
        >>> lines_of("one\r\ntwo\u2028still two\rthree\n")
        ['one', 'two\u2028still two', 'three', '']
    """
    return _LINE_END.split(text)


def cells_of(line: str) -> list[str]:
    r"""The cells of a line in columns: between tabs where there are any, else between runs of spaces.

    Example:
        >>> cells_of("New York\tB-place"), cells_of("10\u00a0km  O ")
        (['New York', 'B-place'], ['10\xa0km', 'O'])
    """
    if "\t" in line:
        return [cell.strip(" ") for cell in line.split("\t")]
    return words_of(line)


def words_of(line: str) -> list[str]:
    r"""The words of a line, between spaces and tabs: a no-break space is part of a word.

    Example:
        >>> words_of(" 10\u00a0km  to Oslo")
        ['10\xa0km', 'to', 'Oslo']
    """
    return [word for word in line.replace("\t", " ").split(" ") if word]


def is_blank(line: str) -> bool:
    """Nothing but spaces and tabs."""
    return not line.strip(BLANKS)


def encodable(text: str) -> str:
    r"""JSON can spell half a surrogate pair, which no tokenizer and no file takes: a question mark stands for it.

    Example:
        >>> encodable("nice \ud83d day")
        'nice ? day'
    """
    return text.encode("utf-8", errors="replace").decode("utf-8")
