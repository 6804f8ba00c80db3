"""The picture of an explanation: shaded words where their measured width puts them, or squares of document weights."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanbert_kernels.cli import explained, formatting
from spanbert_kernels.tasks import atomic

if TYPE_CHECKING:
    from spanbert_kernels.tasks.explanation import ClusterExplanation, Explanation

PICTURED = 12  # clusters, mentions or documents in the picture, which a page of paper holds
SQUARES = 3  # beside each other
ENTITIES = 24  # in rows
DPI, WIDTH, LINE, MARGIN = 150, 1350, 34, 30  # pixels, but for the first
SIZE, SMALL = 9.0, 7.5  # of letters
COLUMN = 300  # pixels of what is predicted, left of the words
MOST_LINES = 4  # of the words of a prediction
BLUE, SHADE, GREY = "tab:blue", 0.6, "#5b6470"


def draw(name: str, clusters: list[ClusterExplanation], spans: list[Explanation], path: Path, count: str = "") -> None:
    """Writes the picture: squares of document weights, entities beside documents, or shaded words of predictions."""
    import matplotlib

    from spanbert_kernels.cli.svg import TEXT

    with matplotlib.rc_context(TEXT), atomic.new_file(path) as aside:
        seen = [each for each in clusters if each.weights]
        if seen:
            figure = _squares(name, seen, count)
        elif explained.across_documents(spans):
            figure = _dots(name, spans)
        else:
            figure = _words(name, clusters, spans, count)
        figure.savefig(aside, dpi=DPI, format="png")


def _title(name: str, shown: int, count: str) -> str:
    return f"{_short(name, 60)}: {shown} of {count}"


def _short(text: str, length: int) -> str:
    return textwrap.shorten(formatting.one_line(text), length, placeholder="…") or "…"


def _squares(name: str, clusters: list[ClusterExplanation], count: str) -> Any:
    from matplotlib.figure import Figure

    shown = clusters[:PICTURED]
    columns = min(len(shown), SQUARES)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns + 1, 2.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    image = None
    for axes, each in zip(grid, shown, strict=False):
        image = axes.imshow(each.mean(), cmap="Blues", vmin=0, vmax=1)
        axes.set_title(_short(each.name or "documents", 30), fontsize=SIZE)
        names = [f"{number} {_short(text, 22)}" for number, text in enumerate(each.texts, start=1)]
        axes.set_yticks(range(len(names)), names, fontsize=SMALL)
        axes.set_xticks(range(len(names)), [str(number + 1) for number in range(len(names))], fontsize=SMALL)
        axes.set_xlabel("looked at", fontsize=SMALL)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    figure.suptitle(_title(name, len(shown), count or f"{len(clusters):,}"), fontsize=SIZE + 1)
    if image is not None:
        bar = figure.colorbar(image, ax=list(grid), shrink=0.6)
        bar.set_label("share of what was looked at", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
    return figure


def _dots(name: str, spans: list[Explanation]) -> Any:
    """How many mentions of an entity are in which document: a dot each, whose area says so."""
    from matplotlib.figure import Figure

    every = list(explained.entities_of(spans))
    shown, documents = every[:ENTITIES], sorted({(each.file, each.document) for each in spans})
    column = {document: number for number, document in enumerate(documents)}
    figure = Figure(figsize=(9, 1.6 + 0.24 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, (_, own) in enumerate(shown):
        counts = Counter(column[each.file, each.document] for each in own)
        axes.scatter(list(counts), [row] * len(counts), [14 * number for number in counts.values()], c=BLUE, alpha=0.7)
    labels = [f"{_short(title, 32)}, {len(own)}" for title, own in shown]
    axes.set_yticks(range(len(labels)), labels, fontsize=SMALL)
    axes.invert_yaxis()
    names = [_short(explained.title_of(*document), 26) for document in documents]
    axes.set_xticks(range(len(names)), names, fontsize=SMALL - 1, rotation=90)
    axes.grid(alpha=0.2)
    axes.set_title(f"{_short(name, 60)}: {len(shown)} of {len(every)} entities, and their mentions", fontsize=SIZE + 1)
    return figure


@dataclass(frozen=True)
class _Piece:
    """A text at a place: pixels from the left, lines from above."""

    left: float
    line: int
    text: str
    width: float = 0.0
    shade: float = 0.0
    colour: str = "black"
    bold: bool = False


class _Ruler:
    """Measures texts as they will be drawn."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.font_manager import FontProperties

        self.renderer, self.fonts = RendererAgg(WIDTH, LINE, DPI), FontProperties
        self.space = self.width("a b") - self.width("ab")

    def width(self, text: str, bold: bool = False) -> float:
        """In pixels."""
        font = self.fonts(size=SIZE, weight="bold" if bold else "normal")
        return float(self.renderer.get_text_width_height_descent(text, font, ismath=False)[0])


def _words(name: str, clusters: list[ClusterExplanation], spans: list[Explanation], count: str) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import IdentityTransform

    found = _rows(clusters, spans)
    ruler = _Ruler()
    pieces = [_Piece(MARGIN, 0, _title(name, min(len(found), PICTURED), count or f"{len(found):,}"), bold=True)]
    line = 1
    for where, row in found[:PICTURED]:
        own = list(_laid_out(where, row, ruler, line))
        pieces += own
        line = max(piece.line for piece in own) + 1
    if not found:
        pieces.append(_Piece(MARGIN, 1, "nothing was found to explain"))
    pieces += _scale(ruler, line + 1)
    height = (line + 3) * LINE
    figure, in_pixels = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI), IdentityTransform()
    for each in pieces:
        bottom = height - (each.line + 1.4) * LINE
        if each.width:
            figure.add_artist(
                Rectangle(
                    (each.left - 2, bottom - 9), each.width + 4, LINE - 6, transform=in_pixels, color=BLUE,
                    alpha=SHADE * each.shade, linewidth=0,
                )
            )  # fmt: skip
        font: dict[str, Any] = {"size": SIZE, "weight": "bold" if each.bold else "normal", "color": each.colour}
        figure.text(each.left, bottom, each.text, transform=in_pixels, **font)
    return figure


def _rows(clusters: list[ClusterExplanation], spans: list[Explanation]) -> list[tuple[str, explained.ShownPrediction]]:
    """Where each is, and what it shows."""
    if spans:
        return [(explained.name_of(each) or Path(each.file).name, explained.row_of(each)) for each in spans]
    every = explained.clusters_of(clusters)
    return [pair for cluster in every for pair in zip(cluster.names, cluster.rows, strict=True)]


def _laid_out(where: str, row: explained.ShownPrediction, ruler: _Ruler, line: int) -> Iterable[_Piece]:
    yield _Piece(MARGIN, line, _fitted(row.label, COLUMN - MARGIN, ruler))
    looked = max(row.seen.items(), key=lambda entry: entry[1], default=None)
    below = where if looked is None else f"looked at {looked[0]}: {looked[1]:.2f}"
    yield _Piece(MARGIN, line + 1, _fitted(below, COLUMN - MARGIN, ruler), colour=GREY)
    left, first, last = float(COLUMN), line, line + MOST_LINES - 1
    for word in row.words:
        text = formatting.one_line(word.text)
        bold = word.part == "about"
        width = ruler.width(text, bold)
        if left + width > WIDTH - MARGIN and left > COLUMN:
            if line == last:
                yield _Piece(left, line, explained.GAP)
                break
            left, line = float(COLUMN), line + 1
        yield _Piece(left, line, text, width, word.shade, bold=bold)
        left += width + (ruler.space if word.space else 0)
    yield _Piece(MARGIN, max(line, first + 1), "")


def _fitted(text: str, room: float, ruler: _Ruler) -> str:
    """The text, or as much of it as there is room for."""
    text = _short(text, 60) if text else ""
    while len(text) > 2 and ruler.width(text) > room:
        text = f"{text[:-2]}…"
    return text


def _scale(ruler: _Ruler, line: int) -> Iterable[_Piece]:
    """The scale of shades."""
    left = float(COLUMN)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        text = f" {share:g} "
        width = ruler.width(text) + 16
        yield _Piece(left, line, text, width, share)
        left += width + 4
    yield _Piece(left + 8, line, "beside the word that counts most", colour=GREY)
