"""Reads dependency trees from CoNLL-U; what does not parse is named with file and line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.text import is_blank, lines_of, read_text

WORD, OTHER = re.compile(r"[1-9]\d*"), re.compile(r"\d+[-.]\d+")  # the latter: multiword tokens and empty nodes
ID, FORM, HEAD, RELATION, COLUMNS = 0, 1, 6, 7, 10


@dataclass(frozen=True)
class ParsedSentence:
    """Words with their heads (0: the root, else 1-based) and relations, and the line of the first word."""

    words: tuple[str, ...]
    heads: tuple[int, ...]
    relations: tuple[str, ...]
    path: Path
    line: int


def read_trees(path: Path) -> list[ParsedSentence]:
    """Sentences of a CoNLL-U file: words alone, without multiword tokens and empty nodes.

    Raises:
        DataFault: a line without ten columns, words that are not numbered from 1 on, a head that is no word of the
            sentence or the word itself, a relation that is missing, a sentence with no root or several, or a cycle.
        OSError: the file cannot be read.
    """
    sentences = []
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate([*lines_of(read_text(path)), ""], start=1):
        if is_blank(line):
            if rows:
                sentences.append(_sentence(path, rows))
            rows = []
        elif not line.startswith("#"):
            columns = line.split("\t")
            if len(columns) != COLUMNS:
                raise DataFault(path, number, f"{COLUMNS} columns are wanted, got {len(columns)}")
            if OTHER.fullmatch(columns[ID]):
                continue
            if columns[ID] != str(len(rows) + 1):
                raise DataFault(path, number, f"word {len(rows) + 1} is wanted, got {columns[ID]!r}")
            rows.append((number, columns))
    return sentences


def _sentence(path: Path, rows: list[tuple[int, list[str]]]) -> ParsedSentence:
    heads = []
    for place, (line, columns) in enumerate(rows, start=1):
        head = columns[HEAD]
        if (head != "0" and not WORD.fullmatch(head)) or int(head) > len(rows) or int(head) == place:
            raise DataFault(path, line, f"head {head!r} is not another word of the sentence, nor 0")
        if columns[RELATION] in ("", "_"):
            raise DataFault(path, line, "there is no relation")
        heads.append(int(head))
    first = rows[0][0]
    if heads.count(0) != 1:
        raise DataFault(path, first, f"a sentence has one root, this one has {heads.count(0)}")
    if (looped := in_cycle(heads)) is not None:
        raise DataFault(path, rows[looped - 1][0], f"word {looped} depends on itself")
    words = tuple(columns[FORM] for _, columns in rows)
    return ParsedSentence(words, tuple(heads), tuple(columns[RELATION] for _, columns in rows), path, first)


def in_cycle(heads: list[int]) -> int | None:
    """A word that no way of heads leads to the root from; heads `[W]`, 0 for the root, words counted from 1."""
    reaches = {0}
    for start in range(1, len(heads) + 1):
        trail: list[int] = []
        word = start
        while word not in reaches:
            if word in trail:
                return word
            trail.append(word)
            word = heads[word - 1]
        reaches.update(trail)
    return None


def write_tree(words: tuple[str, ...], heads: list[int], relations: list[str]) -> str:
    """A sentence in CoNLL-U, with its empty line; a head below 0 is not known."""
    rows = (
        f"{i}\t{word}\t_\t_\t_\t_\t{'_' if head < 0 else head}\t{relation}\t_\t_\n"
        for i, (word, head, relation) in enumerate(zip(words, heads, relations, strict=True), start=1)
    )
    return "".join(rows)
