"""`spanbert-kernels demo`: real documents through both ways, a table, and a report."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.errors import UserError
from spanbert_kernels.cli.files import PATH, check_apart, check_output, write
from spanbert_kernels.cli.terminal import Console
from spanbert_kernels.cli.training_options import COUNT, MOST, SEED, THREADS

if TYPE_CHECKING:
    from spanbert_kernels.cli.collecting import Collection
    from spanbert_kernels.cli.pipeline import Advance, Begin

WARNINGS_SHOWN = 8
OUT_OF_TOLERANCE = 1  # exit code; 2 is for what the user can put right


@click.command()
@click.argument("paths", nargs=-1, type=PATH, metavar="[PATH ...]")
@click.option(
    "--model", help="Folder, hub name, spanbert-base or spanbert-large; by default random weights of base size."
)
@click.option(
    "--tokens", default=8192, show_default=True, type=click.IntRange(16, MOST), help="Encode as many documents as fit."
)
@click.option("--max-width", default=30, show_default=True, type=COUNT, help="Tokens in the widest span.")
@click.option("--batch-size", default=16, show_default=True, type=COUNT, help="Windows in a padded batch.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option(
    "--weights", type=click.Choice(["int8"]), help="Multiply with weights and inputs of 8 bits, on a CPU that can."
)
@click.option("--repeats", type=COUNT, help="Rounds of every measurement; by default what time allows.")
@click.option("--threads", type=THREADS, help="Threads for PyTorch; by default its own choice.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of random weights.")
@click.option("--quick", is_flag=True, help="A tiny random model, to try things out.")
@click.option("--output", default="spanbert-report.html", show_default=True, type=PATH, help="Where the report goes.")
@click.option("--json", "results", type=PATH, help="Where the numbers go, as JSON; else nowhere.")
@click.pass_context
def demo(
    context: click.Context,
    paths: tuple[Path, ...],
    threads: int | None,
    output: Path,
    results: Path | None,
    **settings: Any,
) -> None:
    """Compare transformers' own path with the accelerated one on real documents.

    PATH is a text file, a folder, JSON lines, CoNLL-U or CoNLL columns; without any, documents that come with the
    package are used. Prints one table and writes a self-contained HTML report.

    Exit code: 0; 1 if a result was outside the tolerance; 2 if there is nothing to work on or a value is wrong.
    """
    started = time.perf_counter()
    if settings["quick"] and settings["model"] is not None:
        given = settings["model"]
        raise UserError(f"--quick is a tiny random model, so it cannot be combined with --model {given}")
    check_output("report", output)
    if results is not None:
        check_output("results", results)
        check_apart({"report": output, "results": results})
    notices = Console(stderr=True, highlight=False)
    collection = _collect(paths, notices)
    with _progress(notices) as begin:
        loading = begin("Loading PyTorch")
        import torch

        from spanbert_kernels.cli import pipeline, report, table

        loading(1.0)
        if threads is not None:
            torch.set_num_threads(threads)
        result = pipeline.run(collection, begin, **settings)
        result.command = _command(context)
        result.seconds = time.perf_counter() - started
        drawing = begin("Report")
        write("report", output, report.render(result))
        drawing(1.0)
    if results is not None:
        write("results", results, json.dumps(result.as_dict(), indent=2, ensure_ascii=False) + "\n")
    console = Console(highlight=False)
    table.show(result, console)
    console.print(f"Report: {formatting.path(output)}", soft_wrap=True, markup=False)
    if result.failed:
        context.exit(OUT_OF_TOLERANCE)


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Begin]:
    """A bar for each stage that vanishes at the end; where the console is no terminal, a line for each."""
    if not console.is_terminal:

        def begin_plainly(stage: str) -> Advance:
            console.print(f"{stage} ...", markup=False)
            return lambda share: None

        yield begin_plainly
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:

        def begin(stage: str) -> Advance:
            task = progress.add_task(stage, total=1.0)
            return lambda share: progress.update(task, completed=share)

        yield begin


def _collect(paths: tuple[Path, ...], notices: Console) -> Collection:
    from spanbert_kernels.cli.collecting import collect, default_documents

    collection = collect(paths) if paths else default_documents()
    if not collection.documents:
        reasons = [f"{formatting.path(path)} {reason}" for path, reason in collection.skipped] or [
            f"{formatting.path(path)} holds no documents" for path in paths
        ]
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        raise UserError(f"no document to work on: {'; '.join(reasons[:3])}{more}")
    warnings = [f"{formatting.path(path)} {reason}; skipped" for path, reason in collection.skipped]
    warnings += [f"{formatting.path(path)}: {reason}; the rest is used" for path, reason in collection.faults]
    for warning in warnings[:WARNINGS_SHOWN]:
        notices.print(f"Warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    if len(warnings) > WARNINGS_SHOWN:
        notices.print(f"{len(warnings) - WARNINGS_SHOWN} more warnings; the report has all of them", style="yellow")
    return collection


def _command(context: click.Context) -> str:
    """The command line that repeats this run: what was given, not the defaults."""
    words = ["spanbert-kernels", "demo"]
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) != click.core.ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            words += [formatting.path(path) for path in value]
        elif value is True:
            words.append(parameter.opts[0])
        else:
            words += [parameter.opts[0], formatting.path(value) if isinstance(value, Path) else str(value)]
    return shlex.join(words)
