"""Readers of document formats: the text of one file in, named documents out."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert_kernels.data.text import lines_of

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".rst"})
JSON_FIELDS = ("text", "document", "article", "source", "abstract", "body", "content", "sentences", "tokens", "words")
JSON_NAMES = ("doc_id", "id", "paper_id", "name", "title")
SENTENCES_PER_DOCUMENT = 10  # where a column file marks sentences but no documents
SNIFFED_LINES = 400

_BEGIN_DOCUMENT = re.compile(r"#\s*begin document\b[\s:=]*(.*)", re.IGNORECASE)
_END_DOCUMENT = re.compile(r"#\s*end document\b", re.IGNORECASE)
_NEW_DOCUMENT = re.compile(r"#\s*newdoc(?:\s+id)?\b\s*=?\s*(.*)")
_INTEGER = re.compile(r"-?\d+")


class NotADocument(ValueError):
    """The file is readable but holds no document; its message says why."""


@dataclass(frozen=True)
class Document:
    """One document: what it is called, what it says, and the file it came from."""

    name: str
    text: str
    source: Path


Complain = Callable[[str], None]  # hears what part of a file could not be read; the reader goes on
# (text of the file, stem of its name, complain) -> (name, text) pairs
Reader = Callable[[str, str, Complain], Iterator[tuple[str, str]]]


def read_plain(content: str, stem: str, complain: Complain) -> Iterator[tuple[str, str]]:
    """Plain text: one document a file."""
    yield stem, content


def _flatten(value: Any) -> str | None:
    """A string, a list of sentences or a list of lists of tokens as one text; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = [_flatten(item) for item in value]
        if all(part is not None for part in parts):
            return " ".join(part.strip() for part in parts if part is not None)
    return None


def _json_records(content: str, complain: Complain) -> Iterator[Any]:
    """The records of JSON lines, of one JSON array, or of one JSON object."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        bad: list[str] = []
        for number, line in enumerate(lines_of(content), start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                bad.append(f"line {number} is not JSON ({error})")
        if bad:
            more = f", and {len(bad) - 1:,} more line{'s' * (len(bad) > 2)}" if len(bad) > 1 else ""
            complain(bad[0] + more)
    else:
        yield from whole if isinstance(whole, list) else [whole]


def read_json(content: str, stem: str, complain: Complain) -> Iterator[tuple[str, str]]:
    """JSON lines or one JSON value: a record's text is its first field of `JSON_FIELDS`."""
    found = False
    for number, record in enumerate(_json_records(content, complain), start=1):
        if not isinstance(record, dict):
            continue
        text = next((text for field in JSON_FIELDS if (text := _flatten(record.get(field))) is not None), None)
        if text is None:
            continue
        found = True
        name = next((record[field] for field in JSON_NAMES if isinstance(record.get(field), (str, int))), None)
        yield str(name) if name is not None else f"{stem} {number}", text
    if not found:
        raise NotADocument(f"no record with a field {', '.join(JSON_FIELDS[:4])}")


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Runs of lines that an empty line (or one of white space alone) ends."""
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _conllu_sentence(rows: list[list[str]]) -> str:
    """The text of a sentence from its forms: a multiword token stands for its words, SpaceAfter=No joins."""
    pieces: list[str] = []
    covered_until = 0
    for row in rows:
        identifier, form, misc = row[0], row[1], row[9] if len(row) > 9 else "_"
        if "." in identifier:  # an empty node of the enhanced graph is not in the text
            continue
        if "-" in identifier:
            covered_until = int(identifier.split("-")[1])
        elif int(identifier) <= covered_until:
            continue
        pieces.append(form if "SpaceAfter=No" in misc.split("|") else form + " ")
    return "".join(pieces).strip()


def read_conllu(content: str, stem: str, complain: Complain) -> Iterator[tuple[str, str]]:
    """CoNLL-U: documents from `# newdoc`, sentences from `# text` or from the forms."""
    documents: list[tuple[str | None, list[str]]] = []
    for block in _blocks(lines_of(content)):
        text: str | None = None
        rows = []
        for line in block:
            if match := _NEW_DOCUMENT.match(line):
                documents.append((match[1].strip() or f"{stem} {len(documents) + 1}", []))
            elif line.startswith("#"):
                key, _, value = line[1:].partition("=")
                text = value.strip() if key.strip() == "text" else text
            else:
                rows.append(line.split("\t"))
        if not rows:
            continue
        if any(len(row) < 2 or not re.fullmatch(r"\d+([-.]\d+)?", row[0]) for row in rows):
            raise NotADocument(f"a row that is not CoNLL-U: {block[-1][:60]!r}")
        if not documents:
            documents.append((None, []))
        documents[-1][1].append(text if text is not None else _conllu_sentence(rows))
    yield from _named(documents, stem)


def _named(documents: list[tuple[str | None, list[str]]], stem: str) -> Iterator[tuple[str, str]]:
    """Marked documents as they are; a run of sentences without a mark is cut every `SENTENCES_PER_DOCUMENT`."""
    if len(documents) == 1 and documents[0][0] is None:
        sentences = documents[0][1]
        if len(sentences) <= SENTENCES_PER_DOCUMENT:
            yield stem, "\n".join(sentences)
            return
        for number, first in enumerate(range(0, len(sentences), SENTENCES_PER_DOCUMENT), start=1):
            yield f"{stem} {number}", "\n".join(sentences[first : first + SENTENCES_PER_DOCUMENT])
    else:
        for name, sentences in documents:
            if sentences:
                yield name or stem, "\n".join(sentences)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()


def word_column(rows: list[list[str]]) -> int:
    """The first column that neither counts (integers) nor names the document (repeats the row above)."""
    width = min(len(row) for row in rows)
    for column in range(width):
        values = [row[column] for row in rows]
        integers = sum(_INTEGER.fullmatch(value) is not None for value in values)
        repeats = sum(value == above for value, above in zip(values[1:], values, strict=False))
        if 2 * integers <= len(values) and (len(values) == 1 or 2 * repeats <= len(values) - 1):
            return column
    raise NotADocument("no column of words")


def read_columns(content: str, stem: str, complain: Complain) -> Iterator[tuple[str, str]]:
    """CoNLL columns: documents from `#begin document` or `-DOCSTART-`, sentences from empty lines."""
    lines = lines_of(content)
    rows = [cells for line in lines[: 20 * SNIFFED_LINES] if (cells := _cells(line)) and _is_row(line)]
    if not rows or min(map(len, rows)) < 2:
        raise NotADocument("rows of fewer than two columns")
    column = word_column(rows[:SNIFFED_LINES])
    documents: list[tuple[str | None, list[str]]] = []
    words: list[str] = []

    def end_sentence() -> None:
        if words:
            if not documents:
                documents.append((None, []))
            documents[-1][1].append(" ".join(words))
            words.clear()

    for line in lines:
        mark = _BEGIN_DOCUMENT.match(line)
        if mark or line.startswith("-DOCSTART-"):
            end_sentence()
            documents.append((_document_name(mark[1]) if mark else None, []))
        elif not line.strip() or _END_DOCUMENT.match(line):
            end_sentence()
        elif _is_row(line):
            cells = _cells(line)
            if len(cells) > column and cells[column]:
                words.append(cells[column])
    end_sentence()
    documents = [document for document in documents if document[1]]
    if len(documents) > 1:
        documents = [(name or f"{stem} {number}", text) for number, (name, text) in enumerate(documents, start=1)]
    elif documents and any(map(_BEGIN_DOCUMENT.match, lines)):
        documents = [(documents[0][0] or stem, documents[0][1])]
    yield from _named(documents, stem)


def _is_row(line: str) -> bool:
    """A row of columns. `#` may be a word: a line that begins with it is a comment if it holds no tab."""
    if line.startswith("-DOCSTART-") or not line.strip():
        return False
    return not (line.startswith("#") and "\t" not in line)


def _document_name(mark: str) -> str | None:
    """`(corpus_airbus/100911); part 000` -> `corpus_airbus/100911`; a part above 0 stays in the name."""
    if match := re.match(r"\((.*?)\)(?:;\s*part\s+(\d+))?", mark):
        part = int(match[2] or 0)
        return f"{match[1]} part {part}" if part else match[1] or None
    return mark.strip() or None


READERS: dict[str, Reader] = {
    **dict.fromkeys(TEXT_SUFFIXES, read_plain),
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".conllu": read_conllu,
    ".conll": read_columns,
    ".iob": read_columns,
    ".bio": read_columns,
}
CORPUS_SUFFIXES = frozenset(READERS) - TEXT_SUFFIXES


def sniff(content: str) -> Reader:
    """The reader for a file whose suffix says nothing, from its first lines; plain text where nothing else fits."""
    lines = [line for line in lines_of(content)[:SNIFFED_LINES] if line.strip()]
    if not lines:
        return read_plain
    if lines[0].lstrip().startswith(("{", "[{")):
        return read_json
    rows = [line.split("\t") for line in lines if _is_row(line)]
    if rows and all(len(row) == 10 and row[0][:1].isdigit() for row in rows):
        return read_conllu
    if any(map(_BEGIN_DOCUMENT.match, lines)) or lines[0].startswith("-DOCSTART-"):
        return read_columns
    # words in a cell hold no spaces; a table with running text in it is not a column file
    if len(rows) > 1 and all(2 <= len(row) <= 16 and not any(" " in cell.strip() for cell in row) for row in rows):
        return read_columns
    return read_plain
