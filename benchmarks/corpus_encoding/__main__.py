"""Measures `spanbert-kernels encode` over documents made from the texts at hand, and writes record and docs.

SPANBERT_KERNELS_DATA=... python -m benchmarks.corpus_encoding [--documents 100000] [--only encode]

What the record has of the same code is passed over: a run that was cut off goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from spanbert_kernels.cli import checkout
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.cli.training_options import COUNT, MOST
from spanbert_kernels.models.tokenization import load_tokenizer

from . import recording
from .documents import Texts, read_texts, write_corpus
from .one_measurement import MEASURES, AskedMeasurement, arguments
from .plan import PlannedMeasurement, missing, planned

ENCODER = "models/minilm"  # beside the folder of the data


def carry_out(asked: AskedMeasurement, seconds: float) -> dict[str, Any]:
    """The figures of a measurement in a process of its own, which is ended after so many seconds.

    Raises:
        ClickException: it failed, or took longer; the message says which.
    """
    paths = [str(checkout.ROOT), str(checkout.BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen(
        arguments(asked),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    )
    try:
        out, log = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise click.ClickException(f"took longer than the {seconds:.0f} seconds that were left") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise click.ClickException(f"exit code {process.returncode}:\n{log[-600:]}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def measure(
    each: PlannedMeasurement, texts: Texts, model: str, threads: int, seconds: float, folder: Path
) -> dict[str, Any]:
    """One measurement, on a corpus that is made for it and goes with it."""
    corpus = folder / "documents.jsonl"
    write_corpus(corpus, texts, each.mix, each.documents)
    try:
        asked = AskedMeasurement(
            each.what, str(corpus), each.documents, model, each.engine, each.workers, threads=threads
        )
        return carry_out(asked, seconds)
    finally:
        corpus.unlink()


@click.command()
@click.option("--documents", default=100_000, show_default=True, type=click.IntRange(20, MOST))
@click.option("--only", type=click.Choice(list(MEASURES)), help="Of the measurements, those of one kind.")
@click.option("--model", help="A folder; by default minilm beside the data.")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, help="Of PyTorch in all; 0: its own choice.")
@click.option("--seconds", default=3600, show_default=True, type=COUNT, help="No measurement begins or goes on later.")
@click.option("--output", type=click.Path(path_type=Path), help="The record; by default the newest, or a new one.")
@click.option("--docs/--no-docs", default=True, show_default=True, help="Whether the docs' tables are made anew.")
def main(
    documents: int, only: str | None, model: str | None, threads: int, seconds: int, output: Path | None, docs: bool
) -> None:
    """Measure `encode`: documents and tokens a second, padding, memory over time, costs by stage."""
    data = os.environ.get("SPANBERT_KERNELS_DATA")
    if not data:
        raise click.ClickException("SPANBERT_KERNELS_DATA does not name the folder of the data")
    model = model or str(Path(data).parent / ENCODER)
    if not Path(model).is_dir():
        raise click.ClickException(f"there is no encoder in {model}: --model names one")
    end = time.monotonic() + seconds
    path = output or recording.newest() or checkout.record_of_today("corpus")
    if recording.largest(recording.load(path)) > documents:
        raise click.ClickException(f"{path} has larger measurements than of {documents:,} documents: give --output")
    texts = read_texts(Path(data), load_tokenizer(model).backend_tokenizer.to_str())
    code, failed = recording.commit(), []
    for each in planned(documents):
        if only not in (None, each.what):
            continue
        about = {**asdict(each), "model": Path(model).name, "commit": code, "plan": documents}
        if recording.known(recording.load(path), about):
            say(f"{each.title}: recorded already")
            continue
        if reason := missing(each):
            say(f"{each.title}: passed over. {reason}")
            continue
        left = end - time.monotonic()
        try:
            if left <= 0:
                raise click.ClickException(f"the {seconds} seconds of --seconds are over; the same command goes on")
            with tempfile.TemporaryDirectory() as folder:
                found = measure(each, texts, model, threads, left, Path(folder))
        except click.ClickException as error:
            say(f"{each.title}: not measured, {error.message}", error=True)
            failed.append(each.title)
            continue
        recording.add(path, {**about, **found})
        say(f"{each.title}: {found.get('stages') or str(found['documents/s']) + ' documents/s'}")
    if docs:
        subprocess.run([sys.executable, str(checkout.BENCHMARKS / "readme_tables.py")], check=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
