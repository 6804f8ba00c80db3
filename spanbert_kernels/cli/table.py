"""The table in the terminal, 80 columns wide at most; its cells also serve the report."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.results import DemoResult
from spanbert_kernels.cli.stages import StageResult
from spanbert_kernels.cli.terminal import Console

COLUMNS = ("time", "throughput", "peak memory", "speed-up", "largest error")
SHORT_UNITS = {"documents": "docs"}


def cells(stage: StageResult) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The two rows of a stage, today's way and this package's, in the order of `COLUMNS`."""
    timing, unit = stage.timing, SHORT_UNITS.get(stage.unit, stage.unit)

    def row(seconds: float, peak: int, *more: str) -> tuple[str, ...]:
        rate = f"{formatting.rate(stage.count, seconds)} {unit}/s"
        return formatting.seconds(seconds), rate, formatting.memory(peak), *more

    error = formatting.error(stage.agreement.largest_difference)
    return (
        row(timing.baseline_seconds, timing.baseline_peak, "", ""),
        row(timing.accelerated_seconds, timing.accelerated_peak, formatting.speed_up(stage.speed_up), error),
    )


def show(result: DemoResult, console: Console) -> None:
    """Print what was used, the table, and what the numbers rest on."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, markup=False, style=style)

    for sentence in result.coverage():
        say(sentence)
    console.print(_table(result))
    rounds = ", ".join(stage.timing.rounds for stage in result.stages)
    say(
        f"Medians ({rounds}); both ways took turns. Peak memory is what a call adds to the process, without "
        "the weights kept for all calls."
    )
    if result.disturbed:
        say("With one round, whatever else the machine did shows in the times; --repeats 3 gives steadier ones.")
    for stage in result.stages:
        say(f"{stage.title}: {ran(stage)}. {stage.sampled}".rstrip(), "dim")
    for line in result.acceleration:
        say(line, "dim")
    if result.weights is not None:
        say(result.changes())
    for stage in result.failed:
        found, allowed = (formatting.error(e) for e in (stage.agreement.accelerated_error, stage.agreement.allowed))
        where = stage.agreement.where
        say(f"FAILED: {stage.title}: off by {found} from float64 ({where}), allowed {allowed}.", "bold red")
    if not result.failed:
        say("All stages are within the tolerance, checked against float64.")
    for warning in result.warnings:
        say(f"Warning: {warning}", "yellow")


def _table(result: DemoResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for stage in result.stages:
        if table.rows:
            table.add_row()
        today, (*ours, speed_up, error) = cells(stage)
        table.add_row(Text(stage.title, style="bold"), "", Text(f"{stage.count:,} {stage.unit}", style="dim"))
        table.add_row("  today", *today)
        failed = Text(f"{error} FAILED", style="bold red")
        good = stage.agreement.holds
        table.add_row("  accelerated", *ours, Text(speed_up, style="bold" if good else ""), error if good else failed)
    return table


def ran(stage: StageResult) -> str:
    """Which code the accelerated way ran.

    Example: "packed-inference (4 calls), document_attention on cpu".
    """
    return ", ".join([*stage.paths, *(f"{operation} on {backend}" for operation, backend in stage.backends)])
