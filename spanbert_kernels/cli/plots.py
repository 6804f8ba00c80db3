"""The report's plots, each an SVG element that takes its colours from the page."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.measuring import MEBIBYTE
from spanbert_kernels.cli.results import DemoResult

# Placeholders: in the SVG each becomes a CSS variable, so that the plots follow the page into the dark.
TODAY, OURS, INK, RULE, PAPER = "#b8bfc9", "#2f6690", "#22262b", "#d9dde3", "#fefefe"
_VARIABLES = {TODAY: "today", OURS: "accent", INK: "ink", RULE: "rule", PAPER: "paper"}
MOST_DOCUMENTS_SHOWN = 32  # a heat map with more has unreadable names
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.fonttype": "none",  # real text, in the page's font
    "svg.hashsalt": "spanbert_kernels",  # the same numbers give the same bytes
}


def _svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for an HTML page: no prolog, metadata, fixed size or colours."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # The text stays text, so what the font here lacks a browser finds elsewhere.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # In points, as matplotlib means them: a wide page does not blow the text up.
    svg = re.sub(r'(<svg\b[^>]*?) width="([^"]*)"', r'\1 style="max-width: \2"', svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(
        r' id="(?:figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend|\w*Collection)_\d+"', "", svg
    )
    svg = svg.replace("'DejaVu Sans'", "var(--font)").replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _names(result: DemoResult) -> list[str]:
    return [textwrap.fill(stage.title, 18) for stage in result.stages]


def _ticks(low: float, high: float) -> list[float]:
    """At most seven of the round numbers between, 1 always among them."""
    ticks = [tick for tick in _TICKS if low < tick < high]
    return ticks if len(ticks) <= 7 else [tick for tick in ticks if tick in (0.01, 0.1, 1, 10, 100, 1000)]


def speed_ups(result: DemoResult) -> str:
    """Bars of the speed-up of each stage, on a logarithmic axis that starts from "as fast"."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.4, 2.3)
        values = [stage.speed_up for stage in result.stages]
        rows = range(len(values))
        # Bars grow from 1 to the right where this package wins and to the left where it loses.
        colours = [OURS if value >= 1 else TODAY for value in values]
        axes.barh(rows, [value - 1 for value in values], left=1, height=0.55, color=colours)
        axes.set_xscale("log")
        low, high = min(0.7, *values) / 1.2, max(2.0, *values) * 2
        axes.set_xlim(low, high)
        axes.axvline(1, color=INK, linewidth=0.8)
        for row, value in zip(rows, values, strict=True):
            # Always to the right of the line, where no name is in the way.
            axes.annotate(
                formatting.speed_up(value) if value >= 1 else f"{formatting.speed_up(value)} (slower)",
                (max(value, 1.0), row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                weight="bold",
            )
        axes.set_xticks(_ticks(low, high))
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
        axes.set_yticks(rows, _names(result))
        axes.invert_yaxis()
        return _svg(figure, "Bars: the speed-up of each stage")


def memories(result: DemoResult) -> str:
    """Pairs of bars of the peak memory of each stage."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.4, 2.3)
        sides: Sequence[tuple[str, str, float, list[int]]] = (
            ("today", TODAY, -0.2, [stage.timing.baseline_peak for stage in result.stages]),
            ("accelerated", OURS, 0.2, [stage.timing.accelerated_peak for stage in result.stages]),
        )
        for label, colour, shift, peaks in sides:
            rows = [row + shift for row in range(len(peaks))]
            axes.barh(rows, [peak / MEBIBYTE for peak in peaks], height=0.36, color=colour, label=label)
            for row, peak in zip(rows, peaks, strict=True):
                axes.annotate(
                    formatting.memory(peak),
                    (peak / MEBIBYTE, row),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                )
        highest = max(max(peaks) for *_, peaks in sides) / MEBIBYTE
        axes.set_xlim(0, max(1.0, highest * 1.2))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("MiB")
        axes.set_yticks(range(len(result.stages)), _names(result))
        axes.invert_yaxis()
        figure.legend(frameon=False, loc="outside upper right", ncols=2, borderaxespad=0)
        return _svg(figure, "Bars: the peak memory of each stage, both ways")


def lengths(result: DemoResult) -> str:
    """A histogram of the windows' lengths over a bar of how much of the padded batches is padding."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 2.7), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(5, 1))
        values = [len(window) for window in result.selection.windows]
        bins = min(24, max(6, len(values) // 3))
        above.hist(values, bins=bins, range=(0, max(values)), color=OURS, edgecolor=PAPER, linewidth=0.8)
        above.set_xlabel("tokens in a window")
        above.set_ylabel("windows")
        above.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        real = 1 - result.padding_share
        below.barh([0], [real], color=OURS)
        below.barh([0], [1 - real], left=[real], color=TODAY)
        for left, width, name, colour in ((0, real, "tokens", PAPER), (real, 1 - real, "padding", INK)):
            if width > 0.2:
                text = f"{name} {formatting.share(width)}"
                below.text(left + width / 2, 0, text, ha="center", va="center", color=colour)
        below.set_xlim(0, 1)
        below.axis("off")
        return _svg(figure, "Histogram of window lengths, and the share of padding")


def document_weights(result: DemoResult) -> str:
    """A heat map of which document looked at which, cluster by cluster."""
    shown = result.document_weights
    size = min(len(shown.names), MOST_DOCUMENTS_SHOWN)
    # Texts name these, and a dollar sign would start mathematics.
    names = [textwrap.shorten(name.replace("_", " "), 26, placeholder="…") or "?" for name in shown.names[:size]]
    weights = shown.weights[:size, :size]
    with matplotlib.rc_context(_STYLE):
        side = 1.9 + 0.19 * size
        figure, axes = _axes(side + 1.0, side)
        for query, key in weights.isfinite().nonzero().tolist():
            weight = float(weights[query, key])
            axes.add_patch(Rectangle((key - 0.46, query - 0.46), 0.92, 0.92, facecolor=RULE, alpha=0.5))
            axes.add_patch(Rectangle((key - 0.46, query - 0.46), 0.92, 0.92, facecolor=OURS, alpha=weight))
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_yticks(range(size), names, parse_math=False)
        axes.set_xticks(range(size), names, rotation=90, parse_math=False)
        axes.spines[:].set_visible(False)
        return _svg(figure, "Heat map: which document looked at which")
