"""What was found, as a table that people read in a terminal; its rows come one by one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from spanbert_kernels.cli import formatting

if TYPE_CHECKING:
    from spanbert_kernels.tasks.formats import Format
    from spanbert_kernels.tasks.predictions import Mark, Prediction

TABLE = "table"
WIDTHS = (14, 24, 14)  # of a row's cells but for the last, which gets what is left
NARROWEST, WIDEST = 20, 90  # of the last
Row = tuple[str, str, str, str]
HEADER: Row = ("where", "found", "as", "in")


def table_of(output: Path | None) -> Format:
    """The table, as wide as the terminal, or in a file as wide as it may be."""
    from spanbert_kernels.tasks.formats import Format

    room = WIDEST if output is not None else shutil.get_terminal_size().columns - sum(WIDTHS) - 2 * len(WIDTHS)
    last = min(max(room, NARROWEST), WIDEST)

    def write(predictions: Iterable[Prediction], several: bool) -> Iterator[str]:
        return (_line(row, last) for row in rows_of(predictions, several, last))

    return Format(write, _line(HEADER, last))


def rows_of(predictions: Iterable[Prediction], several: bool, room: int) -> Iterator[Row]:
    """Where it was found, what, as what, and the words around it."""
    from spanbert_kernels.tasks.predictions import merged

    for one in merged(predictions):
        name = one.path.name if several else ""
        where = one.document or (f"{name}:{one.line}" if name and one.line else name or f"line {one.line}")
        if one.marked:
            for mark in sorted(one.marks, key=lambda each: (int(each.entity or 0), each.start, each.end)):
                what = " ".join(filter(None, (mark.label, mark.entity and f"entity {mark.entity}")))
                yield where, one.text_of(mark), what, around(one, mark, room)
        elif one.tree:
            words = one.located.words()
            for word, head, relation in zip(words, *one.tree, strict=True):
                yield where, word, relation, f"of {words[head - 1]}" if head > 0 else ""
        elif "relation" in one.found:
            first, second, kind = (str(one.found[name]) for name in ("first", "second", "relation"))
            yield name, first, kind, second
        else:
            values = list(one.found.values())
            yield where, str(values[-1 if "answer" in one.found else 0]), _chance(one), _shown(one)


def _chance(one: Prediction) -> str:
    return f"{one.found['probability']:.2f}" if "probability" in one.found else ""


def _shown(one: Prediction) -> str:
    return one.located.text or str(one.found.get("question", ""))


def around(one: Prediction, mark: Mark, room: int) -> str:
    """A mention between the characters beside it.

    Example:
        >>> from spanbert_kernels.data.splitting import Located
        >>> from spanbert_kernels.tasks.predictions import Mark, Prediction
        >>> text = "In the spring we moved to Oslo, and stayed there."
        >>> around(Prediction(Path("a"), 1, Located(text, ())), Mark(26, 30), 24)
        '…oved to [Oslo], and st…'
    """
    text = one.located.text
    side = max((room - (mark.end - mark.start) - 4) // 2, 0)
    first, last = max(mark.start - side, 0), min(mark.end + side, len(text))
    before, after = "…" * (first > 0), "…" * (last < len(text))
    return f"{before}{text[first : mark.start]}[{text[mark.start : mark.end]}]{text[mark.end : last]}{after}"


def _line(row: Row, last: int) -> str:
    cells = [" ".join(formatting.one_line(cell.replace("\n", " ").replace("\r", "")).split()) for cell in row]
    return "  ".join(map(_fitted, cells, (*WIDTHS, last))).rstrip()


def _fitted(cell: str, width: int) -> str:
    return set_cell_size(cell, width) if cell_len(cell) <= width else f"{set_cell_size(cell, width - 1)}…"
