"""Reads JSON lines, or one JSON value: records with the lines they stand in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.text import encodable, first_line_of, is_blank, lines_of, read_text

# What records call their text, the likeliest first
TEXTS = ("text", "content", "body", "article", "document", "sentence", "message", "post", "comment", "review")
SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")

Complain = Callable[[int, str], None]


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file and their lines: one a line, those of one array, or a single one.

    Half a surrogate pair becomes a question mark.

    Raises:
        DataFault: what is not JSON, or no object.
        OSError: the file cannot be read.
    """
    before = first_line_of(path) - 1

    def refuse(line: int, reason: str) -> None:
        raise DataFault(path, line + before, reason)

    for number, value in parse_values(read_text(path), refuse):
        line = number + before
        if not isinstance(value, dict):
            raise DataFault(path, line, f"a JSON object is wanted, got {json.dumps(value, ensure_ascii=False)[:40]!r}")
        yield line, value


def with_text(fields: dict[str, Any]) -> dict[str, Any]:
    """A record's fields by lower-case names; its text is `text`, whatever it is called.

    Example:
        >>> with_text({"ID": 3, "Content": "It rains."})
        {'id': 3, 'content': 'It rains.', 'text': 'It rains.'}
    """
    named = {name.casefold(): value for name, value in fields.items()}
    found = next((named[name] for name in TEXTS if isinstance(named.get(name), str)), None)
    return named if found is None else {**named, "text": named.get("text", found)}


def parse_values(text: str, complain: Complain) -> Iterator[tuple[int, Any]]:
    r"""The values of JSON lines, or of one array, and their lines; `complain` hears of a line that is none.

    Example:
        >>> list(parse_values('{"a": 1}\n\n[2]\n', print))
        [(1, {'a': 1}), (3, [2])]
        >>> list(parse_values('[{"a": 1},\n {"a": 2}]', print))
        [(1, {'a': 1}), (2, {'a': 2})]
    """
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        whole, end = _DECODER.raw_decode(text, start)
        alone = not text[end:].strip(" \t\r\n")
    except (ValueError, RecursionError):
        alone = False
    if alone:
        yield from _elements(text, start) if isinstance(whole, list) else [(_line(text, start), _clean(whole, text))]
        return
    for number, line in enumerate(lines_of(text), start=1):
        if is_blank(line):
            continue
        try:
            value = parse_value(line)
        except (ValueError, RecursionError) as error:
            complain(number, f"not JSON: {_reason(error)}")
        else:
            yield number, value


def parse_value(text: str) -> Any:
    """One JSON value; half a surrogate pair becomes a question mark.

    Raises:
        ValueError: it is not JSON, or holds NaN or Infinity.
        RecursionError: it is nested too deeply.
    """
    value, end = _DECODER.raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))
    if rest := text[end:].strip(" \t\r\n"):
        raise ValueError(f"{rest[:20]!r} stands behind the value")
    return _clean(value, text)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):  # of one line, whose number is said elsewhere
        return f"{error.msg} (character {error.pos + 1})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _elements(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """The elements of an array that begins at `start` and is known to be JSON, with their lines."""
    place, line, counted = _after(text, start + 1), _line(text, start), start
    while text[place] != "]":
        line, counted = line + len(lines_of(text[counted:place])) - 1, place
        value, end = _DECODER.raw_decode(text, place)
        yield line, _clean(value, text[place:end])
        place = _after(text, end)


def _after(text: str, place: int) -> int:
    match = _BETWEEN.match(text, place)
    return match.end() if match else place


def _line(text: str, place: int) -> int:
    return len(lines_of(text[:place]))


def _clean(value: Any, text: str) -> Any:
    return _replaced(value) if _HALF.search(text) else value


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [_replaced(item) for item in value]
    if isinstance(value, dict):
        return {encodable(name): _replaced(item) for name, item in value.items()}
    return value
