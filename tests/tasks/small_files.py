"""A small file for each task to train on."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from small_texts import sentences

ROWS = sentences(5)
TEXTS = [" ".join(word for word, _ in rows) for rows in ROWS]


def marked(folder: Path, times: int = 1) -> Path:
    """Documents of one cluster; who is named in two, or in one several times, is one person."""
    text = ""
    for number, rows in enumerate(each * times for each in ROWS):
        marks = (f"({label[2:]}-{word})" if label != "O" else "_" for word, label in rows)
        lines = "".join(f"{word}\t{mark}\n" for (word, _), mark in zip(rows, marks, strict=True))
        text += f"# begin document all/{number}\n{lines}"
    return written(folder / "marked.conll", text)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def lines_of(folder: Path, **fields: Callable[[int], str]) -> Path:
    rows = ({name: value(i) for name, value in fields.items()} for i in range(len(TEXTS)))
    return written(folder / "lines.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def tagged(folder: Path) -> Path:
    blocks = ("".join(f"{word}\t{label}\n" for word, label in rows) for rows in ROWS)
    return written(folder / "tagged.conll", "\n".join(blocks))


def parsed(folder: Path) -> Path:
    """All words of a sentence hang on the last that is named, as what that is."""
    blocks = []
    for rows in ROWS:
        named = [(place, label[2:]) for place, (_, label) in enumerate(rows, start=1) if label != "O"]
        place, kind = [(1, "dep"), *named][-1]
        ends = (("0", "root") if i == place else (str(place), kind) for i in range(1, len(rows) + 1))
        lines = zip(range(1, len(rows) + 1), rows, ends, strict=True)
        blocks.append("".join(f"{i}\t{w}\t_\t_\t_\t_\t{head}\t{name}\t_\t_\n" for i, (w, _), (head, name) in lines))
    return written(folder / "trees.conllu", "\n".join(blocks))


def labelled(folder: Path) -> Path:
    return lines_of(folder, text=lambda i: TEXTS[i], label=lambda i: "xy"[i % 2], cluster=lambda i: f"c{i // 2}")


def translated(folder: Path) -> Path:
    written(folder / "source.txt", "\n".join(TEXTS))
    return written(folder / "target.txt", "\n".join(reversed(TEXTS))).parent


def related(folder: Path) -> Path:
    marked(folder).rename(folder / "documents.conll")
    return written(folder / "relations.tsv", "Anna\tParis\twent\nAnna\tClara\twrote\n").parent


def asked(folder: Path) -> Path:
    paragraphs = [
        {"context": text, "qas": [{"id": str(i), "question": "Who ?", "answers": [answer_in(text)]}]}
        for i, text in enumerate(TEXTS)
    ]
    return written(folder / "questions.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))


FILES: dict[str, Callable[[Path], Path]] = {  # something to train each task on
    "tagging": tagged,
    "nested": marked,
    "coreference": partial(marked, times=2),
    "cross_document_coreference": marked,
    "relations": related,
    "classification": labelled,
    "parsing": parsed,
    "question_answering": asked,
    "summarisation": partial(lines_of, source=lambda i: TEXTS[i] * 30, target=lambda i: TEXTS[i]),
    "extraction": partial(lines_of, source=lambda i: " ".join(TEXTS[i:] + TEXTS[:i]), target=lambda i: TEXTS[3]),
    "translation": translated,
}


def answer_in(text: str) -> dict[str, Any]:
    word = text.split()[-2]
    return {"text": word, "answer_start": text.index(word)}
