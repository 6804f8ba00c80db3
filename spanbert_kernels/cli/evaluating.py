"""What `evaluate` shows beside the scores: a table by groups, and a page with the errors beside what is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.files import write
from spanbert_kernels.cli.terminal import Console, say

if TYPE_CHECKING:
    from spanbert_kernels.tasks.base import Judged, Task

BY = ("type", "length", "distance")
SHOWN = 1000  # errors on a page


def show_groups(name: str, task: Task[Any, Any], judged: Judged, by: str) -> None:
    """A table of the groups."""
    from spanbert_kernels.tasks import comparison

    if name not in comparison.COMPARISONS and by == "length":
        scores = comparison.scores_by_length(task, judged.items, judged.found)
        table = Table("words of the source", *next(iter(scores.values())), box=box.SIMPLE_HEAD, show_edge=False)
        for group, values in scores.items():
            table.add_row(group, *(f"{value:.3f}" for value in values.values()))
    else:
        table = Table(by, *("wanted", "found", "right", "precision", "recall", "F1"), box=box.SIMPLE_HEAD)
        table.show_edge = False
        for column in table.columns[1:]:
            column.justify = "right"
        for each in comparison.grouped(name, by, judged.items, judged.found):
            numbers = (f"{number:,}" for number in (each.wanted, each.found, each.right))
            table.add_row(each.name, *numbers, *(f"{value:.3f}" for value in (each.precision, each.recall, each.f1)))
    Console(highlight=False).print(table)


def write_errors(name: str, judged: Judged, by: str | None, path: Path) -> None:
    """The page with the errors."""
    from spanbert_kernels.cli.pages import render
    from spanbert_kernels.tasks import comparison

    items = comparison.compared(name, judged.items, judged.found)
    wrong = [error for each in items for error in comparison.errors(each)]
    wanted, found = (sum(len(getattr(each, side)) for each in items) for side in ("wanted", "found"))
    page = render(
        "errors.html",
        task=name.replace("_", " "),
        scores=", ".join(f"{score} {value:.3f}" for score, value in judged.scores.items()),
        counts=f"{wanted:,} wanted, {found:,} found, {len(wrong):,} errors in {len(items):,} items.",
        by=by or "type",
        groups=comparison.grouped(name, by or "type", judged.items, judged.found),
        errors=wrong[:SHOWN],
        several=len({each.path for each in items}) > 1,
        total=len(wrong),
    )
    write("errors", path, page)
    say(f"{len(wrong):,} error{'' if len(wrong) == 1 else 's'}: {formatting.path(path)}")
