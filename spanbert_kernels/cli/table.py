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
    timing = stage.timing
    unit = SHORT_UNITS.get(stage.unit, stage.unit)
    return (
        (
            formatting.seconds(timing.baseline_seconds),
            f"{formatting.rate(stage.count, timing.baseline_seconds)} {unit}/s",
            formatting.memory(timing.baseline_peak),
            "",
            "",
        ),
        (
            formatting.seconds(timing.accelerated_seconds),
            f"{formatting.rate(stage.count, timing.accelerated_seconds)} {unit}/s",
            formatting.memory(timing.accelerated_peak),
            formatting.speed_up(stage.speed_up),
            formatting.error(stage.agreement.largest_difference),
        ),
    )


def show(result: DemoResult, console: Console) -> None:
    """Print what was used, the table, and what the numbers rest on."""
    for sentence in result.coverage():
        console.print(sentence, markup=False)
    console.print(_table(result))
    rounds = ", ".join(stage.timing.rounds for stage in result.stages)
    console.print(
        f"Medians ({rounds}); both ways took turns. Peak memory is what a call adds to the process. Acceleration keeps "
        f"{formatting.memory(result.repacked_bytes)} of repacked weights beside the parameters.",
        markup=False,
    )
    if result.disturbed:
        console.print(
            "With one round, whatever else the machine did shows in the times; --repeats 3 gives steadier ones.",
            markup=False,
        )
    for stage in result.stages:
        console.print(f"{stage.title}: {ran(stage)}. {stage.sampled}".rstrip(), markup=False, style="dim")
    for stage in result.failed:
        agreement = stage.agreement
        console.print(
            f"FAILED: {stage.title}: off by {formatting.error(agreement.accelerated_error)} from float64 "
            f"({agreement.where}), allowed {formatting.error(agreement.allowed)}.",
            style="bold red",
            markup=False,
        )
    if not result.failed:
        console.print("All stages are within the tolerance, checked against float64.", markup=False)
    for warning in result.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)


def _table(result: DemoResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for number, stage in enumerate(result.stages):
        today, ours = cells(stage)
        last = number == len(result.stages) - 1
        table.add_row(Text(stage.title, style="bold"), "", Text(f"{stage.count:,} {stage.unit}", style="dim"))
        table.add_row("  today", *today)
        if stage.agreement.holds:
            table.add_row("  accelerated", *ours[:-2], Text(ours[-2], style="bold"), ours[-1])
        else:
            table.add_row("  accelerated", *ours[:-1], Text(f"{ours[-1]} FAILED", style="bold red"))
        if not last:
            table.add_row()
    return table


def ran(stage: StageResult) -> str:
    """Which code the accelerated way ran.

    Example: "packed-inference (4 calls), document_attention on cpu".
    """
    return ", ".join([*stage.paths, *(f"{operation} on {backend}" for operation, backend in stage.backends)])
