"""The formats that predictions are written in: JSON lines, the columns that tasks learn from, spaCy's and brat's."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from spanbert_kernels.data.conllu import write_tree
from spanbert_kernels.data.text import read_text
from spanbert_kernels.tasks.atomic import new_text, write_text
from spanbert_kernels.tasks.predictions import Mark, Prediction, file_name, merged

LINE_ENDS = re.compile(r"[\r\n]+")
Lines = Iterator[str]  # without their ends
Write = Callable[[Iterable[Prediction], bool], Lines]  # of predictions, and whether they are of several files


@dataclass(frozen=True)
class Format:
    """How predictions become lines, and the line that stands above all."""

    write: Write
    header: str = ""

    def lines(self, blocks: Iterable[Iterable[Prediction]], several: bool) -> Lines:
        """Of blocks of predictions; no text is in two of them, so that the lines of each can be had before the next."""
        if self.header:
            yield self.header
        for block in blocks:
            yield from self.write(block, several)


def json_lines(predictions: Iterable[Prediction], several: bool) -> Lines:
    """An object a text: the text, and what was found with its characters and its own text."""
    for one in merged(predictions):
        fields: dict[str, Any] = {"file": file_name(one.path)} if several else {}
        named = {"document": one.document, "line": one.line, "start": one.located.start, "text": one.located.text}
        fields |= {name: value for name, value in named.items() if value}
        if one.marked:
            fields[one.marked] = [_mark(one, mark) for mark in one.marks]
        if one.tree:
            fields["words"] = [
                {"start": start, "end": end, "text": word, "head": head, "relation": relation}
                for (start, end), word, head, relation in zip(
                    one.located.places, one.located.words(), *one.tree, strict=True
                )
            ]
        yield json.dumps(fields | one.found, ensure_ascii=False)


def _mark(one: Prediction, mark: Mark) -> dict[str, Any]:
    named = {name: value for name in ("label", "entity") if (value := getattr(mark, name))}
    return {"start": mark.start, "end": mark.end, **named, "text": one.text_of(mark)}


def labelled_words(predictions: Iterable[Prediction], several: bool) -> Lines:
    """A word and its BIO label a line, an empty line after each sentence."""
    for one in predictions:
        yield from _file(one, several)
        yield from (f"{word}\t{label}" for word, label in zip(one.located.words(), one.labels, strict=True))
        yield ""


def bracketed_words(predictions: Iterable[Prediction], several: bool) -> Lines:
    """A word and the brackets of its mentions a line, between marks of documents."""
    for one in predictions:
        yield f"#begin document {one.document or f'{one.path.stem} {one.line}'}"
        first = {start: word for word, (start, _) in enumerate(one.located.places)}
        last = {end: word for word, (_, end) in enumerate(one.located.places)}
        brackets: list[list[str]] = [[] for _ in one.located.places]
        for number, mark in enumerate(sorted(one.marks, key=lambda each: (each.start, -each.end)), start=1):
            name = f"{_name(mark.label)}-{mark.entity or number}" if mark.label else mark.entity or str(number)
            begin, end = first[mark.start], last[mark.end]
            if begin == end:
                brackets[begin].append(f"({name})")
            else:
                brackets[begin].append(f"({name}")
                brackets[end].insert(0, f"{name})")
        yield from (f"{word}\t{'|'.join(own) or '_'}" for word, own in zip(one.located.words(), brackets, strict=True))
        yield "#end document"


def trees(predictions: Iterable[Prediction], several: bool) -> Lines:
    """CoNLL-U, a sentence after the other."""
    for one in predictions:
        assert one.tree is not None
        yield from _file(one, several)
        heads, relations = one.tree
        yield write_tree(one.located.words(), list(heads), list(relations))


def labelled_texts(predictions: Iterable[Prediction], several: bool) -> Lines:
    """A table with commas: label and text."""
    for one in predictions:
        row = io.StringIO()
        csv.writer(row, lineterminator="").writerow([one.found["label"], one.located.text])
        yield row.getvalue()


def related_entities(predictions: Iterable[Prediction], several: bool) -> Lines:
    """Entity, entity and relation a line, between tabs."""
    return ("\t".join(one.found[name] for name in ("first", "second", "relation")) for one in predictions)


def summarised(predictions: Iterable[Prediction], several: bool) -> Lines:
    """JSON lines: source and target."""
    pairs = ({"source": one.located.text, "target": one.found["summary"]} for one in predictions)
    return (json.dumps(pair, ensure_ascii=False) for pair in pairs)


def translations(predictions: Iterable[Prediction], several: bool) -> Lines:
    """A translation a line."""
    return (one.found["translation"] for one in predictions)


def spacy_lines(predictions: Iterable[Prediction], several: bool) -> Lines:
    """A spaCy `Doc` a line, as its `to_json` writes and its `from_json` reads them."""
    return (json.dumps(each, ensure_ascii=False) for each in map(spacy_document, merged(predictions)))


def spacy_document(one: Prediction) -> dict[str, Any]:
    """A text as spaCy's `Doc.to_json` has it: entities that do not overlap in `ents`, else the span group `sc`.

    White space beyond one space between words is a token of its own there.
    """
    tokens: list[dict[str, Any]] = []
    number_of: list[int] = []
    end = 0
    text = one.located.text
    for place in [*one.located.places, (len(text), len(text))]:
        gap = end + (text[end : end + 1] == " " and end > 0)
        if gap < place[0]:
            tokens.append({"id": len(tokens), "start": gap, "end": place[0]})
        end = place[1]
        number_of.append(len(tokens))
        tokens.append({"id": len(tokens), "start": place[0], "end": end})
    tokens.pop()
    if one.tree:
        for token in tokens:  # white space hangs on the word before it
            token |= {"head": max(token["id"] - 1, 0), "dep": ""}
        for number, head, relation in zip(number_of, *one.tree, strict=False):
            tokens[number] |= {"head": number_of[head - 1] if head > 0 else number, "dep": relation}
    marks = [{"start": mark.start, "end": mark.end, "label": mark.label} for mark in one.marks]
    found: dict[str, Any] = {"text": text, "tokens": tokens}
    if one.labels:
        found["ents"] = marks
    elif one.marked == "entities":
        found["spans"] = {"sc": [{**mark, "kb_id": ""} for mark in marks]}
    elif one.marked:
        groups: dict[str, list[dict[str, Any]]] = {}
        for mark in one.marks:
            own = {"start": mark.start, "end": mark.end, "label": mark.label or "MENTION", "kb_id": ""}
            groups.setdefault(f"coref_clusters_{mark.entity}", []).append(own)
        found["spans"] = groups
    if "label" in one.found:
        found["cats"] = {one.found["label"]: one.found["probability"]}
    return found


JSON_LINES, SPACY_LINES = Format(json_lines), Format(spacy_lines)
LABELLED_WORDS, BRACKETED_WORDS, TREES = Format(labelled_words), Format(bracketed_words), Format(trees)
LABELLED_TEXTS, RELATED_ENTITIES = Format(labelled_texts, "label,text"), Format(related_entities)
SUMMARISED, TRANSLATIONS = Format(summarised), Format(translations)


def write_brat(predictions: Iterable[Prediction], folder: Path) -> None:
    """A text and its stand-off annotations for each document, and the configuration that brat wants beside them.

    A file of plain text stays one document, whose text is written as it stands; any other text is one of its own, such
    as records that share a line or a name.
    """
    kinds: set[str] = set()
    names: set[str] = set()
    for (path, _), group in groupby(enumerate(merged(predictions)), key=_brat_document):
        own = [one for _, one in group]
        whole = own[0].located.start is not None
        text = read_text(path) if whole else own[0].located.text
        name = _free(re.sub(r"[^\w.-]+", "_", path.stem if whole else f"{path.stem} {_title(own[0])}"), names)
        marks = [(one, mark, (one.located.start or 0)) for one in own for mark in one.marks]
        entities: dict[str, list[int]] = {}
        lines = []
        for number, (one, mark, shift) in enumerate(marks, start=1):
            kind = _name(mark.label) or "Mention"
            kinds.add(kind)
            pieces = [match.span() for match in re.finditer(r"[^\r\n]+", one.text_of(mark))]
            begin = mark.start + shift
            where = ";".join(f"{begin + first} {begin + last}" for first, last in pieces)
            lines.append(f"T{number}\t{kind} {where}\t{LINE_ENDS.sub(' ', one.text_of(mark))}")
            if mark.entity:
                entities.setdefault(mark.entity, []).append(number)
                lines.append(f"#{number}\tAnnotatorNotes T{number}\tentity {mark.entity}")
        lines += [f"*\tEquiv {' '.join(f'T{each}' for each in own)}" for own in entities.values() if len(own) > 1]
        for suffix, content in ((".txt", text), (".ann", "".join(f"{line}\n" for line in lines))):
            with new_text(folder / f"{name}{suffix}") as stream:
                stream.write(content)
    equal = "Equiv\tArg1:<ENTITY>, Arg2:<ENTITY>, <REL-TYPE>:symmetric-transitive"
    sections = ["[entities]", *sorted(kinds), "[relations]", equal, "[events]", "[attributes]"]
    write_text(folder / "annotation.conf", "\n".join(sections) + "\n")


def _brat_document(numbered: tuple[int, Prediction]) -> tuple[Path, int | None]:
    number, one = numbered
    return one.path, None if one.located.start is not None else number


def _title(one: Prediction) -> str:
    return one.document or str(one.line)


def _free(name: str, names: set[str]) -> str:
    """A name that no document has yet."""
    number, free = 1, name
    while free in names:
        number += 1
        free = f"{name}-{number}"
    names.add(free)
    return free


def _name(label: str) -> str:
    """A type without what separates types from others in columns and in brat's files."""
    return re.sub(r"[^\w]+", "_", label)


def _file(one: Prediction, several: bool) -> Sequence[str]:
    """What stands above a sentence of columns: a line, or none where there is one file."""
    return [f"# file = {file_name(one.path)}"] if several else []
