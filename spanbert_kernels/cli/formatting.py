"""Numbers, names and texts as people read them, the same in the terminal's table and in the report."""

from __future__ import annotations

import math
import os
import unicodedata
from pathlib import Path

from spanbert_kernels.cli.measuring import MEBIBYTE

LONGEST_LINE = 1000  # characters; a message may quote a line of somebody's file
_JOINERS = "\u200c\u200d"  # emoji and several scripts are written with them
_HARMLESS = ("Zs", "Cn", "Co")  # spaces, and what this Python's tables do not know yet


def seconds(value: float) -> str:
    """Three significant digits in the unit that suits.

    Example:
        >>> seconds(12.345), seconds(0.0456), seconds(0.000123)
        ('12.3 s', '45.6 ms', '123 µs')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{_three_digits(value / 1e-6)} µs"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def rate(count: int, time: float) -> str:
    """Things per second, to three significant digits.

    Example:
        >>> rate(8192, 3.3)
        '2,480'
    """
    value = count / time
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else _three_digits(value)


def memory(size: int) -> str:
    """Bytes as MiB or GiB; what lies below one MiB is not told apart.

    Example:
        >>> memory(1000), memory(300 * 2**20), memory(3 * 2**30)
        ('< 1 MiB', '300 MiB', '3.00 GiB')
    """
    if size < MEBIBYTE:
        return "< 1 MiB"
    if size < 1024 * MEBIBYTE:
        return f"{size / MEBIBYTE:,.0f} MiB"
    return f"{_three_digits(size / 2**30)} GiB"


def speed_up(value: float) -> str:
    """How many times faster; below 1 it is slower.

    Example:
        >>> speed_up(3.456), speed_up(0.82), speed_up(231.7)
        ('3.46 x', '0.82 x', '232 x')
    """
    return f"{_three_digits(value)} x"


def error(value: float) -> str:
    """Two significant digits; an exact match is 0.

    Example:
        >>> error(1.234e-6), error(0.0)
        ('1.2e-06', '0')
    """
    if math.isnan(value):
        return "NaN"
    return f"{value:.1e}" if value else "0"


def share(value: float) -> str:
    """A share in percent.

    Example:
        >>> share(0.387)
        '39 %'
    """
    return f"{100 * value:.0f} %"


def count(number: int, thing: str) -> str:
    """A number and its noun.

    Example:
        >>> count(1, "file"), count(1200, "file")
        ('1 file', '1,200 files')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def path(name: Path) -> str:
    r"""A path that any terminal and any UTF-8 file can take: bytes that are no UTF-8 are replaced, controls escaped.

    Example:
        >>> path(Path("r\udce9sum\udce9.txt")), path(Path("a\x1b[2J\n.txt"))
        ('r\ufffdsum\ufffd.txt', 'a\\x1b[2J\\n.txt')
    """
    return one_line(os.fsencode(name).decode("utf-8", errors="replace"))


def one_line(text: str) -> str:
    r"""A text without anything that moves a cursor, turns the direction of writing or breaks the line: escapes instead.

    Example:
        >>> one_line("a\tb\r\n"), one_line("\u202egpj.exe")
        ('a\\tb\\r\\n', '\\u202egpj.exe')
    """
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    harmless = character.isprintable() or character in _JOINERS or unicodedata.category(character) in _HARMLESS
    return character if harmless else character.encode("unicode_escape").decode("ascii")


def for_terminal(text: str) -> str:
    r"""Lines that a terminal shows as they are: controls are escaped, and of a line too long the middle is left out.

    Example:
        >>> for_terminal("one\x07\ntwo"), len(for_terminal("x" * 10**6))
        ('one\\x07\ntwo', 1000)
    """
    return "\n".join(_cut(one_line(line)) for line in text.split("\n"))


def _cut(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    tail = LONGEST_LINE // 4
    return f"{line[: LONGEST_LINE - tail - 3]} … {line[-tail:]}"
