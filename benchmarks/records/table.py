"""The tables of `bench` in the terminal, 80 columns wide: results, and changes since an earlier record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from records.comparing import Change
from records.record import Record, Row
from records.summary import Summary, fastest
from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.terminal import Console

STYLES = {"met": "green", "missed": "red"}


def milliseconds(value: float | None) -> str:
    """Three significant digits in the unit that suits; nothing where there is nothing.

    Example:
        >>> milliseconds(0.0123), milliseconds(12.3), milliseconds(None)
        ('12.3 µs', '12.3 ms', '')
    """
    return "" if value is None else formatting.seconds(value / 1e3)


def _new() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def show(record: Record, console: Console) -> None:
    """All rows, suite by suite, then what failed, what was skipped, and the summary."""
    table = _new()
    table.add_column("workload", ratio=3, min_width=24)  # as long as a suite's name
    table.add_column("ours", justify="right", no_wrap=True)
    table.add_column("fastest other", ratio=2, max_width=20)
    table.add_column("speed-up", justify="right", no_wrap=True)
    table.add_column("of\nfloor", justify="right", no_wrap=True)
    table.add_column("goals\nmet", justify="right", no_wrap=True)
    suite = ""
    for row in record.rows:
        if row.suite != suite:
            table.add_row(Text(row.suite, style="bold"), "", "", "", "", "")
            suite = row.suite
        table.add_row(*_cells(row))
    if record.rows:
        console.print(table)
    asked = [row for row in record.rows if row.goals]
    if asked:
        console.print("Figures asked for:")
    for row in asked:
        console.print(f" {row.suite}: {row.title}", markup=False, style="bold", soft_wrap=True)
        for goal in row.goals:
            console.print(f"   {goal}", markup=False, soft_wrap=True, style=STYLES.get(goal.partition(":")[0], ""))
    for line in _without_figures(record):
        console.print(line, markup=False, style="dim")
    for entry in record.skipped:
        console.print(f"Skipped: {entry['suite']}, {entry['workload']}: {entry['reason']}", markup=False, style="dim")
    for entry in record.failures:
        text = f"FAILED: {entry['suite']}, {entry['workload']}: {entry['reason']}"
        console.print(text, markup=False, style="bold red", soft_wrap=True)
    for sentence in Summary(record).sentences():
        console.print(sentence, markup=False)


def _without_figures(record: Record) -> Iterator[str]:
    """Who has none and why; a reason that holds for many workloads of a suite is said once."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in record.rows:
        for name, entry in row.providers.items():
            if entry.milliseconds is None:
                found.setdefault((row.suite, name, entry.unavailable), []).append(row)
    for (suite, name, reason), rows in found.items():
        where = rows[0].title if len(rows) == 1 else formatting.count(len(rows), "workload")
        yield f"No figure: {suite}, {where}: {name} {reason}"


def _cells(row: Row) -> tuple[str | Text, ...]:
    found = fastest(row)
    verdicts = [goal.partition(":")[0] for goal in row.goals]
    met, judged = verdicts.count("met"), verdicts.count("met") + verdicts.count("missed")
    return (
        Text(f" {row.title}"),
        milliseconds(row.ours.milliseconds),
        Text(f"{found[0]} {milliseconds(row.providers[found[0]].milliseconds)}" if found else ""),
        Text(formatting.speed_up(found[1]), style="bold" if found[1] > 1 else "red") if found else "",
        "" if row.ours.share is None else f"{row.ours.share:.0%}",
        f"{met}/{judged}" if judged else "",
    )


def show_changes(
    changes: Sequence[Change], gone: Sequence[Row], new: Sequence[Row], earlier: str, console: Console
) -> None:
    """Rows beyond the noise, the worst first; how many stayed within it; those that only one of the records has."""
    told = [change for change in changes if change.slower or change.faster]
    console.print(f"Against {earlier}:", markup=False)
    if told:
        table = _new()
        table.add_column("workload", ratio=1)
        for name in ("before", "now", "factor", "noise"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("")
        for change in told:
            word = Text("SLOWER", style="bold red") if change.slower else Text("faster", style="green")
            table.add_row(
                Text(f"{change.row.suite}: {change.row.title}"),
                milliseconds(change.before),
                milliseconds(change.after),
                f"{change.factor:.2f}",
                f"{change.noise:.0%}",
                word,
            )
        console.print(table)
    for title, rows in (("Gone", gone), ("New", new)):
        for row in rows:
            console.print(f"{title}: {row.suite}: {row.title}", markup=False, style="dim")
    if not changes:
        console.print("The two records have no row in common: nothing is compared.", style="yellow")
        return
    same = len(changes) - len(told)
    console.print(
        f"{formatting.count(same, 'row')} within the noise. A factor is the time now over before, divided by how the "
        "other libraries' times changed.",
        markup=False,
    )
