"""Plots as SVG elements that take their colours and their font from the page around them."""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import Any

from matplotlib.figure import Figure

from spanbert_kernels.cli import formatting

# Placeholders: in the SVG each becomes a CSS variable, so that the plots follow the page into the dark.
TODAY, OURS, INK, RULE, PAPER = "#b8bfc9", "#2f6690", "#22262b", "#d9dde3", "#fefefe"
PEERS = ("#b5651d", "#5a8f3c", "#8a5aa8", "#b03a5b", "#3f8f8f", "#8a7a2a")
_VARIABLES = {TODAY: "today", OURS: "accent", INK: "ink", RULE: "rule", PAPER: "paper"}
_VARIABLES |= {colour: f"peer-{number}" for number, colour in enumerate(PEERS)}
TEXT = {"text.parse_math": False}  # a dollar sign or a backslash in somebody's text is no mathematics
STYLE = {
    **TEXT,
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


def svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for an HTML page: no prolog, metadata, fixed size or colours."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # The text stays text, so what the font here lacks a browser finds elsewhere.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # In points, as matplotlib means them: a wide page does not blow the text up.
    text = re.sub(r'(<svg\b[^>]*?) width="([^"]*)"', r'\1 style="max-width: \2"', text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(
        r' id="(?:figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend|\w*Collection)_\d+"', "", text
    )
    text = text.replace("'DejaVu Sans'", "var(--font)")
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    text = "\n".join(map(formatting.one_line, text.split("\n")))
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def axes_of(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()
