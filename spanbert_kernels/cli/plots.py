"""The plots of the demo's report."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.bars import Bar, Bars
from spanbert_kernels.cli.measuring import MEBIBYTE
from spanbert_kernels.cli.results import DemoResult
from spanbert_kernels.cli.svg import INK, OURS, PAPER, STYLE, TODAY, axes_of, svg


def speed_ups(result: DemoResult) -> Bars:
    """The speed-up of each stage."""
    return Bars(Bar(stage.title, stage.speed_up, "slower" if stage.speed_up < 1 else "") for stage in result.stages)


def memories(result: DemoResult) -> str:
    """Pairs of bars of the peak memory of each stage."""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(5.4, 2.3)
        sides = (("today", TODAY, -0.2, "baseline_peak"), ("accelerated", OURS, 0.2, "accelerated_peak"))
        highest = 0
        for label, colour, shift, name in sides:
            peaks = [getattr(stage.timing, name) for stage in result.stages]
            highest = max(highest, *peaks)
            rows = [row + shift for row in range(len(peaks))]
            axes.barh(rows, [peak / MEBIBYTE for peak in peaks], height=0.36, color=colour, label=label)
            for row, peak in zip(rows, peaks, strict=True):
                _beside(axes, formatting.memory(peak), peak / MEBIBYTE, row)
        axes.set_xlim(0, max(1.0, highest / MEBIBYTE * 1.2))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("MiB")
        figure.legend(frameon=False, loc="outside upper right", ncols=2, borderaxespad=0)
        return _rows(figure, axes, result, "Bars: the peak memory of each stage, both ways")


def _beside(axes: Any, text: str, value: float, row: float, **font: Any) -> None:
    axes.annotate(text, (value, row), xytext=(5, 0), textcoords="offset points", va="center", **font)


def _rows(figure: Figure, axes: Any, result: DemoResult, title: str) -> str:
    axes.set_yticks(range(len(result.stages)), [textwrap.fill(stage.title, 18) for stage in result.stages])
    axes.invert_yaxis()
    return svg(figure, title)


def lengths(result: DemoResult) -> str:
    """A histogram of the windows' lengths over a bar of how much of the padded batches is padding."""
    with matplotlib.rc_context(STYLE):
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
        return svg(figure, "Histogram of window lengths, and the share of padding")
