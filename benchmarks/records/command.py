"""`spanbert-kernels bench`: the suites with a progress bar, a table, a record, and a comparison with an earlier one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.errors import INTERRUPTED, UserError
from spanbert_kernels.cli.files import PATH, check_output, write
from spanbert_kernels.cli.terminal import Console
from spanbert_kernels.extras import require

if TYPE_CHECKING:
    from records.record import Record, Row
    from records.running import Progress

FAILED_OR_SLOWER = 1  # exit code; 2 is for what the user can put right
_OF_SPEED = ("processor", "cores", "vector instructions")  # of a machine


@click.command()
@click.option("--suite", "suites", multiple=True, metavar="NAME", help="Only this suite; may be given several times.")
@click.option("--quick", is_flag=True, help="A few small workloads, in under two minutes; no memory, no curves.")
@click.option(
    "--output",
    default="spanbert-benchmarks.json",
    show_default=True,
    type=PATH,
    help="Where the record goes.",
)
@click.option(
    "--compare",
    metavar="REF|FILE",
    help="Flag what became slower since a record, or since a commit, which is built and measured first.",
)
@click.pass_context
def bench(context: click.Context, suites: tuple[str, ...], quick: bool, output: Path, compare: str | None) -> None:
    """Measure every operation against eager PyTorch and against what else a user could take.

    Runs the suites of the source checkout that the package is installed from. Every result is compared with float64
    before it is timed; a wrong one gets no row. Other runtimes that are not installed, of the extra [peers], are named.

    Exit code: 0; 1 if a result was wrong, or slower than before by more than the noise; 2 if a value is wrong.
    """
    from records import comparing, record, running, table

    for module in ("pytest", "pytest_benchmark"):
        require(module, "bench")
    known = running.suite_names()
    for name in suites:
        if name not in known:
            raise UserError(f"there is no suite {name}; there are {', '.join(known)}")
    check_output("record", output)
    notices = Console(stderr=True, highlight=False)
    earlier, label = None, compare or ""
    commit = None
    if compare and Path(compare).is_file():
        try:
            earlier = record.load(Path(compare))
        except (ValueError, OSError) as error:
            raise UserError(f"cannot compare: {error}") from error
    elif compare:
        commit = running.commit_named(compare)
        if commit is None:
            raise UserError(f"cannot compare: {compare} is neither a file nor a commit that git knows")
        label = f"{compare} ({commit[:7]})"

    chosen = [name for name in known if name in suites or not suites]
    try:
        if commit:
            notices.print(f"Building {label} ...", markup=False)
            with running.package_at(commit) as package:
                earlier, interrupted = _measure(notices, chosen, quick, f"{compare}: ", commit, package)
            if interrupted:
                context.exit(INTERRUPTED)
        found, interrupted = _measure(notices, chosen, quick)
    except running.CannotRun as error:
        line, *more = str(error).splitlines()
        for each in more:
            notices.print(each, markup=False, soft_wrap=True)
        raise UserError(line) from error
    write("record", output, record.dumps(found))
    console = Console(highlight=False)
    table.show(found, console)
    slower = False
    if earlier is not None and not interrupted:
        differences = [name for name in _OF_SPEED if earlier.machine.get(name) != found.machine.get(name)]
        if differences:
            text = f"Warning: the two records are of different machines ({', '.join(differences)})."
            notices.print(text, style="yellow", markup=False)
        changes = list(comparing.changes(earlier, found))
        gone, new = comparing.without_counterpart(earlier, found)
        if earlier.quick != found.quick:  # then most rows of the full run have no counterpart, as they should
            gone, new = [], []
        table.show_changes(changes, gone, new, label, console)
        slower = any(change.slower for change in changes)
    console.print(f"Record: {formatting.path(output)}", soft_wrap=True, markup=False)
    if interrupted:
        context.exit(INTERRUPTED)
    if found.failures or slower:
        context.exit(FAILED_OR_SLOWER)


def _measure(
    notices: Console, suites: list[str], quick: bool, label: str = "", commit: str = "", package: Path | None = None
) -> tuple[Record, bool]:
    """A record, and whether someone stopped the run before its end."""
    from records import running

    started = time.perf_counter()
    state = (commit, False) if commit else running.git_state()
    found, interrupted = running.Progress(), False
    with _progress(notices, label, [] if quick else suites) as watch:
        try:
            running.run(suites, quick, found, watch, package or running.PACKAGE)
        except KeyboardInterrupt:
            notices.print("Stopped; what has been measured is kept.", style="yellow")
            interrupted = True
    return running.record_of(found, quick, time.perf_counter() - started, state), interrupted


@contextlib.contextmanager
def _progress(console: Console, label: str, in_turn: list[str]) -> Iterator[Callable[[Progress], None]]:
    """A bar that vanishes at the end; where the console is no terminal, a line for each row.

    Suites that run one after the other are counted: how many workloads each has is known when its turn comes.
    """
    if not console.is_terminal:
        told: list[Row] = []

        def say(progress: Progress) -> None:
            for row in progress.rows[len(told) :]:
                console.print(f"{label}{row.suite}: {row.title}", markup=False, soft_wrap=True)
                told.append(row)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(f"{label}Starting", total=None)

        def watch(progress: Progress) -> None:
            name = progress.rows[-1].suite if progress.rows else "Starting"
            if name in in_turn:
                name += f" ({in_turn.index(name) + 1} of {len(in_turn)} suites)"
            bars.update(task, description=label + name, completed=progress.done, total=progress.collected or None)

        yield watch
