"""The plots of a benchmark report: speed-ups, roofline, curves over sizes and over memory."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import matplotlib
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from records.record import Entry, Record, Row
from records.summary import OfSuite, fastest
from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.bars import Bar, Bars
from spanbert_kernels.cli.svg import INK, OURS, PAPER, PEERS, RULE, STYLE, TODAY, axes_of, svg

MARKERS = "sD^v<>"
NARROW = 40
RAN_OUT = re.compile(r"memory: takes more than ([\d.]+) MB")


def _plain(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def speed_ups(rows: Iterable[Row]) -> Bars:
    """How much faster ours is than the fastest other way, which is named; marks stand at eager PyTorch.

    The points of curves have no bars, unless there is nothing else.
    """
    found_of = [(row, found) for row in rows if (found := fastest(row))]
    judged = [each for each in found_of if not each[0].curve] or found_of
    return Bars(Bar(row.title, factor, rival, tuple(row.against_eager())) for row, (rival, factor) in judged)


def overview(suites: Iterable[OfSuite]) -> Bars:
    """The mean of each suite's speed-ups over the fastest other way; marks stand at the mean over eager PyTorch."""
    return Bars(
        Bar(
            each.name,
            each.mean,
            f"from {formatting.speed_up(each.lowest)} to {formatting.speed_up(each.highest)}",
            () if each.eager is None else (each.eager,),
        )
        for each in suites
    )


def roofline(record: Record, dtype: str) -> str:
    """Operations a second over operations a byte, under what the machine does at best."""
    peak, copy = record.ceilings.get(f"{dtype}, GFLOP/s"), record.ceilings.get("copy, GB/s")
    rows = [row for row in record.rows if row.dtype == dtype and row.operations]
    if not (peak and copy and rows):
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(5.4, 3.6)
        intensities = [row.operations / row.bytes for row in rows]
        low, high = min(intensities) / 2, max([peak / copy * 4, *intensities]) * 2
        axes.plot([low, peak / copy, high], [low * copy, peak, peak], color=INK, linewidth=1.2)
        axes.annotate(f"{peak:,.0f} GFLOP/s", (high, peak), (0, 4), textcoords="offset points", ha="right", fontsize=9)
        ridge = peak / copy / low
        x = low * ridge**0.55
        y = x * copy * ridge**0.04  # a little above the line, and along it
        along = {"rotation": math.degrees(math.atan(y / x)), "rotation_mode": "anchor", "transform_rotates_text": True}
        axes.text(x, y, f"{copy:,.0f} GB/s", fontsize=9, **along)
        for row, intensity in zip(rows, intensities, strict=True):
            mine, found = row.operations / row.ours.milliseconds / 1e6, fastest(row)  # type: ignore[operator]
            if found:
                axes.plot([intensity] * 2, [mine, mine / found[1]], color=RULE, linewidth=1, zorder=1)
                axes.plot([intensity], [mine / found[1]], "o", color=TODAY, markersize=5, zorder=2)
            axes.plot([intensity], [mine], "o", color=OURS, markersize=5, zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_plain))
            axis.set_minor_formatter(NullFormatter())
        axes.grid(color=RULE, linewidth=0.5)
        axes.set_xlabel("operations a byte")
        axes.set_ylabel("GFLOP/s")
        axes.plot([], [], "o", color=OURS, label="ours")
        axes.plot([], [], "o", color=TODAY, label="fastest other")
        axes.legend(frameon=False, loc="lower right", fontsize=9)
        return svg(figure, f"Roofline, {dtype}")


def _looks(names: Iterable[str], kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each provider; told apart without colours too."""
    peers = iter(zip(PEERS, MARKERS, strict=True))
    looks: dict[str, dict[str, Any]] = {}
    for name in names:
        if kinds[name] == "ours":
            looks[name] = {"color": OURS, "marker": "o", "linewidth": 2.2, "zorder": 5}
        elif kinds[name] == "eager":
            looks[name] = {"color": INK, "marker": "x", "linewidth": 1.2}
        else:
            colour, marker = next(peers, (TODAY, "."))
            looks[name] = {"color": colour, "marker": marker, "linewidth": 1.2, "markerfacecolor": PAPER}
    return looks


def groups(record: Record) -> dict[str, list[Row]]:
    """The rows of each curve that has two points or more, along their axis."""
    found: dict[str, list[Row]] = {}
    for row in record.rows:
        if row.curve and row.scaling:
            found.setdefault(f"{row.curve}, {row.direction}, {row.dtype}", []).append(row)
    return {
        title: sorted(rows, key=lambda row: row.axes[str(row.scaling)])
        for title, rows in found.items()
        if len(rows) > 1
    }


def _run_out(rows: Iterable[Row], axis: str) -> dict[str, tuple[float, float]]:
    """Where each way ran out of memory first, and how much it had."""
    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        for name, entry in row.providers.items():
            if (limit := RAN_OUT.search(entry.unavailable)) and name not in found:
                found[name] = row.axes[axis], float(limit[1])
    return found


def _curves(rows: list[Row], value: Callable[[Entry], float | None], unit: str, label: str) -> str:
    axis = str(rows[0].scaling)
    kinds = {name: entry.kind for row in rows for name, entry in row.providers.items() if entry.kind != "floor"}
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, entry in row.providers.items():
            measured = value(entry)
            if measured is not None and entry.kind != "floor":
                points.setdefault(name, []).append((row.axes[axis], measured))
    out = _run_out(rows, axis) if unit == "MB" else {}
    if not points:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(5.4, 3.4)
        looks = _looks([name for name in kinds if name in points or name in out], kinds)
        for name, found in points.items():
            axes.plot([x for x, _ in found], [y for _, y in found], label=name, markersize=5, **looks[name])
        for number, (name, (place, limit)) in enumerate(out.items()):
            axes.plot([place], [limit], marker="X", markersize=10, color=looks[name]["color"], zorder=6)
            axes.annotate(
                f"{name}: out of {limit:,.0f} MB",
                (place, limit),
                (-10, -12 * number),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=9,
            )
        values = [row.axes[axis] for row in rows]
        if axis == "padding":
            axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
        else:
            axes.set_xscale("log")
            axes.set_xticks(values, [_plain(each) for each in values])
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yscale("log")
        heights = [y for found in points.values() for _, y in found]
        few = max(heights) < NARROW * min(heights)  # a decade alone may hold no power of ten
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if few else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(color=RULE, linewidth=0.5)
        axes.set_xlabel({"padding": "padding in the padded batch"}.get(axis, axis))
        axes.set_ylabel(unit)
        figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
        return svg(figure, label)


def times(title: str, rows: list[Row]) -> str:
    """Milliseconds along an axis, every way a line."""
    return _curves(rows, lambda entry: entry.milliseconds, "ms", f"Time: {title}")


def peaks(title: str, rows: list[Row]) -> str:
    """Peak memory along an axis; a cross where a way ran out of what it was allowed."""
    return _curves(rows, lambda entry: None if entry.peak is None else max(entry.peak, 0.1), "MB", f"Memory: {title}")
