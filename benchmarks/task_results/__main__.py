"""Trains the rows from a trained encoder, three seeds each, and times both paths; what is recorded is passed over.

SPANBERT_KERNELS_DATA=... python -m benchmarks.task_results [ROW ...] [--seeds 3]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from spanbert_kernels.cli import checkout
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.tasks import atomic

from . import recording
from .one_run import Asked, arguments
from .rows import ROWS
from .splits import Split
from .tables import BOTH

BUILD = checkout.ROOT / "build" / "task-results"
TIMED = 200  # steps of either path
COMPARED = 20  # steps of either path without dropout, whose random numbers differ
ENCODER = "models/minilm"  # beside the folder of the data


def runs(
    name: str, split: Split, asked: Asked, seeds: int, timed: int, whole: bool = False, compared: int = COMPARED
) -> Iterator[Asked]:
    """Of a row: the seeds, with `whole` the first on transformers' own path, and both paths over the same batches."""
    files = (str(split.train), str(split.dev), str(split.test))
    own = replace(asked, row=name, files=files)
    begun = replace(own, begins_with=first_model(name))
    yield from (replace(begun, seed=seed, folder=str(BUILD / name / f"seed-{seed}")) for seed in range(seeds))
    if whole:
        yield replace(begun, backend="eager", folder=str(BUILD / name / "eager-whole"))
    for backend in BOTH if timed else ():
        yield replace(own, backend=backend, steps=timed, folder=str(BUILD / name / backend))
    if asked.model and compared:
        still = str(without_dropout(Path(asked.model)))
        for backend in BOTH:
            folder = str(BUILD / name / f"{backend}-{recording.STILL}")
            yield replace(own, backend=backend, steps=compared, model=still, folder=folder)


def first_model(name: str) -> str:
    """The folder of the model that a row's trainings begin with; "" where that is the encoder."""
    before = ROWS[name].begins_with
    return str(BUILD / before / "seed-0" / "model") if before else ""


def without_dropout(model: Path) -> Path:
    """The same encoder, whose configuration has no dropout."""
    folder = BUILD / f"{model.name}-{recording.STILL}"
    folder.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.is_file() and not (folder / path.name).exists() and path.name != "config.json":
            (folder / path.name).symlink_to(path.resolve())
    fields = json.loads((model / "config.json").read_text(encoding="utf-8"))
    none = {name: 0.0 for name in fields if "dropout" in name and isinstance(fields[name], float)}
    atomic.write_text(folder / "config.json", json.dumps(fields | none))
    return folder


def carry_out(asked: Asked, log: Path) -> dict[str, Any]:
    """The figures of a run in a process of its own, whose log is kept.

    Raises:
        ClickException: it failed; the log says why.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(checkout.ROOT), str(checkout.BENCHMARKS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            arguments(asked), check=False, stdout=subprocess.PIPE, stderr=file, env=environment, text=True
        )
    if done.returncode:
        raise click.ClickException(f"exit code {done.returncode}: {log} ends with\n{log.read_text()[-600:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(ROWS)), metavar="ROW ...")
@click.option("--seeds", default=3, show_default=True)
@click.option("--timed", default=TIMED, show_default=True, help="Steps to time both paths over; 0: none.")
@click.option("--compared", default=COMPARED, show_default=True, help="Steps without dropout, for losses; 0: none.")
@click.option("--whole", is_flag=True, help="The first seed on transformers' own path, too.")
@click.option("--missing", is_flag=True, help="Pass over what is recorded at any commit, not just at this one.")
@click.option(
    "--model", help="The folder of a trained encoder; by default minilm beside the data; none: random weights."
)
@click.option("--size", default="tiny", show_default=True, help="Of random weights.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="The record; by default the newest, or a new one.")
def main(
    names: tuple[str, ...],
    seeds: int,
    timed: int,
    compared: int,
    whole: bool,
    missing: bool,
    model: str | None,
    size: str,
    threads: int,
    output: Path | None,
) -> None:
    """Train and score ROWs, by default all."""
    data = os.environ.get("SPANBERT_KERNELS_DATA")
    if not data:
        raise click.ClickException("SPANBERT_KERNELS_DATA does not name the folder of the data")
    model = model or str(Path(data).parent / ENCODER)
    if model != "none" and not Path(model).is_dir():
        raise click.ClickException(f"there is no trained encoder in {model}: --model names one")
    path = output or recording.newest() or checkout.record_of_today("tasks")
    asked = Asked("", 0, "auto", "" if model == "none" else model, size, None, threads, ("", "", ""), "")
    code, failed = recording.commit(), []
    for name in names or ROWS:
        row, folder = ROWS[name], BUILD / name / "data"
        folder.mkdir(parents=True, exist_ok=True)
        split = row.files(Path(data), folder)
        for one in runs(name, split, asked, seeds, timed, whole, compared):
            about = {
                **{"row": name, "backend": one.backend, "seed": one.seed, "steps asked": one.steps, "threads": threads},
                **{"model": Path(one.model).name or size, "options": row.about()},
                **{"commit": code, "data": split.digest()},
            }
            title = f"{name}, seed {one.seed}"
            if one.backend == "eager":
                title += ", eager"
            if one.steps is not None:
                title = f"{name}, {one.steps} steps, {one.backend}, {Path(one.model).name}"
            if recording.known(recording.load(path), about, missing):
                say(f"{title}: recorded already")
                continue
            if one.begins_with and not Path(one.begins_with, "config.json").is_file():
                first = f"train {row.begins_with} first, whose model it begins with"
                say(f"{title}: {first}; into another --output where that is recorded already", error=True)
                failed.append(title)
                continue
            try:
                found = carry_out(one, Path(f"{one.folder}.log"))
            except click.ClickException as error:
                say(f"{title}: failed, {error.message}", error=True)
                failed.append(title)
                continue
            recording.add(path, {**about, **found})
            score = f"{row.measure} {found['scores'][row.measure]:.4f}, " if found["scores"] else ""
            say(f"{title}: {score}{found['seconds']:.0f} s, {found['peak MB']:,} MB")
    say(f"{path}: {recording.hours(recording.load(path)):.2f} hours in all")
    if failed:
        say(f"Failed: {'; '.join(failed)}", error=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
