"""`spanbert-kernels report`: one HTML page from records, which loads nothing from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.files import PATH, check_output, write
from spanbert_kernels.cli.terminal import say

TEMPLATE = Path(__file__).with_name("benchmarks.html")
if TYPE_CHECKING:
    from records.record import Record, Row


@click.command()
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE ...")
@click.option(
    "--output",
    default="spanbert-benchmarks.html",
    show_default=True,
    type=PATH,
    help="Where the page goes.",
)
@click.option("--goals", is_flag=True, help="With the list of the figures that the suites ask for.")
def report(files: tuple[Path, ...], output: Path, goals: bool) -> None:
    """Make one self-contained HTML page of the records in FILE ..., those of `spanbert-kernels bench`.

    Exit code: 0; 2 if a file is no record or the page cannot be written.
    """
    from records.record import load

    check_output("report", output)
    write("report", output, render([load(path) for path in files], goals))
    say(f"Report: {formatting.path(output)}")


def render(records: list[Record], goals: bool = False) -> str:
    """The page as HTML text, a part for each record; `goals`: with the figures asked for, met and missed."""
    from records import table
    from spanbert_kernels.cli import pages

    filters = {
        "ms": table.milliseconds,
        "error": pages.error,
        "factor": lambda value: "" if value is None else formatting.speed_up(value),
        "megabytes": lambda value: "" if value is None else f"{value:,.0f}" if value >= 1 else "< 1",
        "share": lambda value: "" if value is None else formatting.share(value) if value >= 0.005 else "< 1 %",
        "rate": lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
        "duration": formatting.seconds,
    }
    return pages.render(str(TEMPLATE), filters, goals=goals, parts=[_part(record) for record in records])


def _part(record: Record) -> dict[str, Any]:
    from markupsafe import Markup

    from records import figures
    from records.summary import Summary

    summary = Summary(record)
    suites: dict[str, list[Row]] = {}
    for row in record.rows:
        suites.setdefault(row.suite, []).append(row)
    groups = figures.groups(record)
    bars = ((name, figures.speed_ups(rows)) for name, rows in suites.items())
    curves = ((title, rows, figures.times(title, rows), figures.peaks(title, rows)) for title, rows in groups.items())
    rooflines = ((dtype, figures.roofline(record, dtype)) for dtype in dict.fromkeys(r.dtype for r in record.rows))
    drawn = [(title, rows[0].suite, Markup(time), Markup(peak)) for title, rows, time, peak in curves]
    return {
        "record": record,
        "summary": summary,
        "suites": suites,
        "overview": figures.overview(summary.suites()),
        "bars": [(name, found) for name, found in bars if found],
        "rooflines": [(dtype, Markup(plot)) for dtype, plot in rooflines if plot],
        "curves": [(title, suite, time) for title, suite, time, _ in drawn if time],
        "memory": [(title, suite, peak) for title, suite, _, peak in drawn if peak],
    }
