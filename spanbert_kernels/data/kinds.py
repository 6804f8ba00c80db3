"""What kind of file a file is: by its suffix or, where that says nothing, by its first lines."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from spanbert_kernels.data.columns import BEGIN, CONLLU_COLUMNS, DOCSTART, NO_MARK, is_label, is_mark, parse_columns
from spanbert_kernels.data.faults import DataFault, NotText
from spanbert_kernels.data.text import STANDARD_INPUT, is_blank, lines_of, read_text

PLAIN, JSON, CONLLU, CONLL, TABLE = "plain text", "JSON", "CoNLL-U", "CoNLL columns", "a table"
OF_SUFFIX = {
    ".conllu": CONLLU,
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio", ".bioes"), CONLL),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), JSON),
    **dict.fromkeys((".csv", ".tsv"), TABLE),
}
TEXTS = frozenset({".txt", ".text"})
IN_COLUMNS = frozenset({name for name, kind in OF_SUFFIX.items() if kind == CONLL} | {"conll"})
WORDS = IN_COLUMNS | {name for name, kind in OF_SUFFIX.items() if kind in (CONLLU, JSON)}
SNIFFED_LINES = 400
_JSON = re.compile(r"\s*(\[\s*)?\{\s*([\"}]|$)")


def kind_of(path: Path) -> str:
    """The kind of a file, which is read only where its suffix says nothing.

    Example:
        >>> kind_of(Path("a.conllu"))
        'CoNLL-U'
    """
    suffix = path.suffix.lower()
    if suffix.endswith("conll"):  # .v4_gold_conll
        return CONLL
    if suffix == ".tsv":  # a table, but for GermEval and others who write columns there
        found = sniff(read_text(path))
        return TABLE if found == PLAIN else found
    return OF_SUFFIX.get(suffix) or sniff(read_text(path))


@contextlib.contextmanager
def only(path: Path, taken: Collection[str], words: str) -> Iterator[None]:
    """While it lasts, what is wrong with a file of a kind that is not `taken` begins with what is wanted, in `words`.

    Raises:
        DataFault: what was raised, if need be with that in front.
    """
    try:
        yield
    except NotText:
        raise
    except DataFault as fault:
        kind = kind_of(path)
        if kind in taken:
            raise
        raise DataFault(path, fault.line, f"{words} are wanted, and this looks like {kind}: {fault.reason}") from None


def suffix_of(path: Path) -> str:
    """The suffix of a file's name, in lower case; of standard input, one of what stands there."""
    if path != STANDARD_INPUT:
        return path.suffix.lower()
    return {JSON: ".jsonl", CONLLU: ".conllu"}.get(sniff(read_text(path)), ".txt")


def sniff(text: str) -> str:
    r"""The kind of a text, from its first lines; plain text where nothing else fits.

    Example:
        >>> sniff("EU NNP B-ORG\nrejects VBZ O\n"), sniff("It rains .\nIt snows .\n")
        ('CoNLL columns', 'plain text')
    """
    lines = [line for line in lines_of(text)[:SNIFFED_LINES] if not is_blank(line)]
    if not lines:
        return PLAIN
    if _JSON.match(text):
        return JSON
    if any(map(BEGIN.match, lines)) or lines[0].startswith(DOCSTART):
        return CONLL
    rows = [row.cells for document in parse_columns("\n".join(lines)) for row in document.rows()]
    tabbed = all("\t" in line for line in lines if not line.startswith("#"))
    if rows and tabbed and all(len(row) == CONLLU_COLUMNS and row[0][:1].isdigit() for row in rows):
        return CONLLU
    widths = {len(row) for row in rows}
    if not tabbed:
        last = [row[-1] for row in rows]
        labelled = all(map(is_label, last)) and (len(rows) > 1 or last != ["O"])
        marked = all(map(is_mark, last)) and not NO_MARK.issuperset(last)
        return CONLL if widths and min(widths) == max(widths) > 1 and (labelled or marked) else PLAIN
    # words in a cell hold no spaces; a table with running text in it is not a column file
    words = all(2 <= len(row) <= 16 and not any(" " in cell for cell in row) for row in rows)
    return CONLL if words and len(rows) > 1 else PLAIN
