"""Reads and writes CoNLL-U: trees, words, running text; what does not parse is named with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import conllu
from conllu.exceptions import ParseException

from spanbert_kernels.data import kinds
from spanbert_kernels.data.columns import CONLLU_COLUMNS
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.sources import Source, files_of
from spanbert_kernels.data.splitting import Located
from spanbert_kernels.data.text import is_blank, lines_of, read_text

NEW_DOCUMENT = re.compile(r"#\s*newdoc(?:\s+id)?\b\s*=?\s*(.*)")
_SPACES = re.compile(" {2,}")  # the parser would take them for a tab


@dataclass(frozen=True)
class Token:
    """A line with ten columns: a word, a multiword token such as 2-3 or an empty node such as 2.1."""

    line: int
    id: int | tuple[int, str, int]
    form: str
    head: str
    relation: str
    misc: str

    @property
    def is_word(self) -> bool:
        """Neither a multiword token nor an empty node."""
        return isinstance(self.id, int)


@dataclass(frozen=True)
class Sentence:
    """The tokens between two empty lines, and the comments before them."""

    tokens: tuple[Token, ...]
    comments: tuple[tuple[int, str], ...]
    metadata: dict[str, str | None]

    @property
    def line(self) -> int:
        """The first one."""
        return min([line for line, _ in self.comments] + [token.line for token in self.tokens])

    @property
    def words(self) -> tuple[Token, ...]:
        """Without multiword tokens and empty nodes."""
        return tuple(token for token in self.tokens if token.is_word)

    @property
    def new_document(self) -> str | None:
        """The name of the document that begins here, "" for one without a name, None where none does."""
        marks = [match[1].strip() for _, comment in self.comments if (match := NEW_DOCUMENT.match(comment))]
        return marks[-1] if marks else None

    def text(self) -> str:
        """The comment `# text`, or the forms as they were written.

        A multiword token stands for its words, an empty node is not in the text, and SpaceAfter=No joins.
        """
        if text := self.metadata.get("text"):
            return text
        pieces: list[str] = []
        covered = 0
        for token in self.tokens:
            if isinstance(token.id, tuple):
                if token.id[1] == ".":
                    continue
                covered = token.id[2]
            elif token.id <= covered:
                continue
            pieces.append(token.form if "SpaceAfter=No" in token.misc.split("|") else f"{token.form} ")
        return "".join(pieces).strip(" ")


@dataclass(frozen=True)
class ParsedSentence:
    """Words with their heads (0: the root, else 1-based) and relations, and the lines of the first word and of all.

    `located` says where the words stand in the text, if there was one to split.
    """

    words: tuple[str, ...]
    heads: tuple[int, ...]
    relations: tuple[str, ...]
    path: Path
    line: int
    lines: tuple[int, ...] = ()
    located: Located | None = field(default=None, compare=False, repr=False)

    def line_of(self, word: int) -> int:
        """The line of a word by its number from 0 on; other tokens may stand between words."""
        return self.lines[word] if self.lines else self.line + word


def read_sentences(path: Path) -> list[Sentence]:
    """All sentences of a CoNLL-U file, one of comments alone too.

    Raises:
        DataFault: a line without ten columns, an ID that is none, or words that are not numbered from 1 on.
        OSError: the file cannot be read.
    """
    return list(parse_sentences(read_text(path), path))


def parse_sentences(text: str, path: Path) -> Iterator[Sentence]:
    """The same of a text; `path` is for messages."""
    rows: list[tuple[int, str]] = []
    for number, line in enumerate([*lines_of(text), ""], start=1):
        if not is_blank(line):
            rows.append((number, line))
        elif rows:
            yield _sentence(path, rows)
            rows = []


def _sentence(path: Path, rows: list[tuple[int, str]]) -> Sentence:
    comments = [(number, line) for number, line in rows if line.startswith("#")]
    parsed: Any = conllu.parse_token_and_metadata("\n".join(line for _, line in comments) or "#")
    tokens = _tokens(path, [(number, line) for number, line in rows if not line.startswith("#")])
    for place, token in enumerate((token for token in tokens if token.is_word), start=1):
        if token.id != place:
            raise DataFault(path, token.line, f"word {place} is wanted, got '{token.id}'")
    return Sentence(tuple(tokens), tuple(comments), dict(parsed.metadata))


def _tokens(path: Path, rows: list[tuple[int, str]]) -> list[Token]:
    for number, line in rows:
        if (width := line.count("\t") + 1) != CONLLU_COLUMNS:
            raise DataFault(path, number, f"{CONLLU_COLUMNS} columns are wanted, got {width}")
    try:
        found = conllu.parse_token_and_metadata("\n".join(_SPACES.sub(" ", line) for _, line in rows) or "#", **_CELLS)
    except (ParseException, ValueError) as error:
        if len(rows) == 1:
            raise DataFault(path, rows[0][0], str(error)) from None
        return [token for row in rows for token in _tokens(path, [row])]
    tokens = []
    for (number, line), cells in zip(rows, found, strict=True):
        if cells["id"] is None or not cells["form"]:
            raise DataFault(path, number, f"an ID and a form are wanted, got {line[:40]!r}")
        tokens.append(Token(number, *(cells.get(name, "_") for name in ("id", "form", "head", "deprel", "misc"))))
    return tokens


def _as_it_stands(cells: list[str], column: int) -> str:
    return cells[column]


_CELLS: dict[str, Any] = {"field_parsers": dict.fromkeys(("xpos", "feats", "head", "deps", "misc"), _as_it_stands)}


def read_trees(source: Source) -> list[ParsedSentence]:
    """Trees of CoNLL-U: words alone, without multiword tokens and empty nodes.

    Args:
        source: a file, a folder, or several of them.

    Raises:
        DataFault: what `read_sentences` raises, a head that is no word of the sentence or the word itself, a relation
            that is missing, a sentence with no root or several, or a cycle.
        OSError: the file cannot be read.
    """
    found = []
    for path in files_of(source, (".conllu",)):
        with kinds.only(path, (kinds.CONLLU,), "trees in CoNLL-U"):
            found += [_tree(path, each.words) for each in read_sentences(path) if each.words]
    return found


def _tree(path: Path, words: tuple[Token, ...]) -> ParsedSentence:
    heads = []
    for place, token in enumerate(words, start=1):
        head = int(token.head) if re.fullmatch(r"0|[1-9][0-9]{0,8}", token.head) else -1
        if not 0 <= head <= len(words) or head == place:
            raise DataFault(path, token.line, f"head {token.head!r} is not another word of the sentence, nor 0")
        if token.relation in ("", "_"):
            raise DataFault(path, token.line, "there is no relation")
        heads.append(head)
    first = words[0].line
    if heads.count(0) != 1:
        raise DataFault(path, first, f"a sentence has one root, this one has {heads.count(0)}")
    if (looped := in_cycle(heads)) is not None:
        raise DataFault(path, words[looped - 1].line, f"word {looped} depends on itself")
    forms = tuple(token.form for token in words)
    relations = tuple(token.relation for token in words)
    return ParsedSentence(forms, tuple(heads), relations, path, first, tuple(token.line for token in words))


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
