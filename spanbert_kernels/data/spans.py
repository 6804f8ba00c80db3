"""Reads entities from JSON with spans: GLiNER's tokens, or spaCy's and doccano's characters."""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import pairwise
from pathlib import Path
from typing import Any

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.counts import left_out
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.jsonl import read_records, with_text
from spanbert_kernels.data.splitting import Located, Place, words_in
from spanbert_kernels.data.text import is_blank

TOKENS = ("tokenized_text", "tokens", "words")
TOKEN_SPANS = "ner"  # of GLiNER: [first, last, type], the last token included
CHARACTER_SPANS = ("entities", "spans", "ents", "label", "labels")  # [start, end, type], the end not included
NAMES = ("doc_id", "id", "paper_id", "name", "title")

Places = list[Place]


def read_spans(path: Path, mentions: bool = True) -> list[MarkedDocument]:
    """Documents of JSON lines or of a JSON array, each with words and typed spans of them.

    GLiNER: `{"tokenized_text": [...], "ner": [[0, 1, "person"]]}`, the last token included. spaCy: `{"text": ...,
    "entities": [[0, 4, "person"]]}`, or dictionaries of start, end and label under entities, spans or ents, in
    characters, the end not included; without tokens, the text is split as plain text is. A span that begins or ends
    between two letters is left out, and counted. Which mentions are of one entity is not said there: each has its own.

    Args:
        path: the file.
        mentions: whether the spans are wanted; else the words alone are.

    Raises:
        DataFault: a record without words or text or, where wanted, without spans, or a span that lies outside.
        OSError: the file cannot be read.
    """
    return [_document(path, number, line, fields, mentions) for number, (line, fields) in _numbered(path)]


def _numbered(path: Path) -> list[tuple[int, tuple[int, dict[str, Any]]]]:
    return list(enumerate(read_records(path), start=1))


def _document(path: Path, number: int, line: int, fields: dict[str, Any], wanted: bool) -> MarkedDocument:
    fields = with_text(fields)
    name = next((str(fields[key]) for key in NAMES if isinstance(fields.get(key), (str, int))), f"{path.stem} {number}")
    text = fields.get("text")
    tokens = next((fields[key] for key in TOKENS if isinstance(fields.get(key), list)), None)
    found: list[tuple[int, int, str]] = []
    located = None
    if tokens is not None and all(isinstance(token, str) for token in tokens):
        words = tuple(tokens)
        if wanted:
            found = _of_tokens(path, line, fields, len(words))
    elif isinstance(text, str):
        spans = _character_spans(path, line, fields, text) if wanted else []
        located = Located(text, _places(path, line, text, tokens, {edge for span in spans for edge in span[:2]}))
        words = located.words()
        found = _of_characters(spans, located.places)
    else:
        seen = ", ".join(fields) or "no fields"
        raise DataFault(path, line, f"a text, or words under {', '.join(TOKENS)} are wanted; there are {seen}"[:200])
    if not words or any(map(is_blank, words)):
        raise DataFault(path, line, "a document without words" if not words else "an empty word")
    marked = tuple(Mention(first, last, kind, str(i)) for i, (first, last, kind) in enumerate(sorted(found)))
    return MarkedDocument(name, words, marked, path, (line,) * len(words), located)


def _places(path: Path, line: int, text: str, tokens: Any, edges: Set[int]) -> Places:
    """Where the words are: the tokens' own starts and ends where they have them.

    Else the words of the text, of which `edges` cut off what is no letter, such as the @ of a name in a post.
    """
    if tokens is None:
        cuts = {edge for edge in edges if text[edge - 1 : edge].isalnum() != text[edge : edge + 1].isalnum()}
        words = words_in(text)
        inside = ([start, *sorted(cuts & {*range(start + 1, end)}), end] for start, end in words)
        return [part for bounds in inside for part in pairwise(bounds)]
    found: Places = []
    for token in tokens:
        start, end = (token.get("start"), token.get("end")) if isinstance(token, dict) else (None, None)
        before = found[-1][1] if found else 0
        if not (isinstance(start, int) and isinstance(end, int) and before <= start < end <= len(text)):
            raise DataFault(path, line, f"tokens must be words, or have start and end in the text, got {token!r}"[:200])
        if text[start:end].strip():
            found.append((start, end))
    return found


def _of_tokens(path: Path, line: int, fields: dict[str, Any], words: int) -> list[tuple[int, int, str]]:
    spans = fields.get(TOKEN_SPANS)
    if not isinstance(spans, list):
        seen = ", ".join(fields)
        raise DataFault(
            path, line, f"spans such as [0, 1, 'person'] are wanted under {TOKEN_SPANS}; there are {seen}"[:200]
        )
    found = []
    for span in spans:
        first, last, kind = _parts(path, line, span)
        if not _is_span(first, last + 1, words):
            raise DataFault(path, line, f"span {span!r} is not one of the words 0 to {words - 1}")
        found.append((first, last, kind))
    return found


def _character_spans(path: Path, line: int, fields: dict[str, Any], text: str) -> list[tuple[int, int, str]]:
    spans = next((fields[key] for key in CHARACTER_SPANS if isinstance(fields.get(key), list)), None)
    if spans is None:
        seen = ", ".join(fields)
        wanted = f"spans such as [0, 4, 'person'] are wanted under {', '.join(CHARACTER_SPANS[:3])}"
        raise DataFault(path, line, f"{wanted}; there are {seen}"[:200])
    found = [_parts(path, line, span) for span in spans]
    for span, (start, end, _) in zip(spans, found, strict=True):
        if not _is_span(start, end, len(text)):
            raise DataFault(path, line, f"span {span!r} does not lie in the text of {len(text)} characters")
    return found


def _of_characters(spans: Sequence[tuple[int, int, str]], places: Sequence[Place]) -> list[tuple[int, int, str]]:
    """The same by words; what begins or ends inside of one is left out."""
    starts = {start: word for word, (start, _) in enumerate(places)}
    ends = {end: word for word, (_, end) in enumerate(places)}
    whole = [(start, end, kind) for start, end, kind in spans if start in starts and end in ends]
    left_out("mention", "begins or ends inside a word", len(spans) - len(whole))
    return [(starts[start], ends[end], kind) for start, end, kind in whole]


def _is_span(start: Any, end: Any, length: int) -> bool:
    return type(start) is int and type(end) is int and 0 <= start < end <= length


def _parts(path: Path, line: int, span: Any) -> tuple[int, int, str]:
    parts: Sequence[Any] = ()
    if isinstance(span, dict):
        parts = [span.get("start"), span.get("end"), span.get("label", span.get("type"))]
    elif isinstance(span, list) and len(span) >= 3:
        parts = span[:3]
    if not (parts and type(parts[0]) is int and type(parts[1]) is int and isinstance(parts[2], str) and parts[2]):
        raise DataFault(path, line, f"a span has start, end and label, got {span!r}"[:200])
    return parts[0], parts[1], parts[2]
