"""Standard input as blocks of whole lines, as they come, for what is read line by line."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from typing import BinaryIO

from spanbert_kernels.data import kinds
from spanbert_kernels.data.faults import NotText
from spanbert_kernels.data.jsonl import parse_value
from spanbert_kernels.data.text import STANDARD_INPUT, decode, lines_of

AT_ONCE = 1 << 16  # bytes


def blocks_of(stream: BinaryIO, by_line: bool) -> Iterator[tuple[str, int]]:
    r"""Texts of whole lines that come together, and the number of their first line.

    Args:
        stream: what comes in.
        by_line: whether lines can be read without those behind them; where they are columns or one JSON value they
            cannot, and all come together.

    Raises:
        NotText: it is not text.

    Example:
        >>> import io
        >>> [text for text, _ in blocks_of(io.BytesIO(b"It rains.\nIt snows."), by_line=True)]
        ['It rains.\n', 'It snows.']
    """
    number = 1
    for data in _lines(stream, by_line):
        try:
            text = decode(data, STANDARD_INPUT)
        except NotText as fault:
            raise NotText(STANDARD_INPUT, fault.line + number - 1, fault.reason) from None
        yield text, number
        number += len(lines_of(text)) - 1


def _lines(stream: BinaryIO, by_line: bool) -> Iterator[bytes]:
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    data = b""
    first = True
    while more := read(AT_ONCE):
        data += more
        end = data.rfind(b"\n") + 1
        if not end:
            continue
        if first and not (by_line and _is_lines(data[:end])):
            yield data + stream.read()
            return
        first = False
        yield data[:end]
        data = data[end:]
    if data:
        yield data


def _is_lines(data: bytes) -> bool:
    """Whether so many whole lines are plain text or JSON lines."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    text = decode(data, STANDARD_INPUT)
    kind = kinds.sniff(text)
    if kind != kinds.JSON:
        return kind == kinds.PLAIN and "\t" not in text  # one row of columns looks like plain text
    try:
        return isinstance(parse_value(next(line for line in lines_of(text) if line.strip())), dict)
    except ValueError:
        return False
