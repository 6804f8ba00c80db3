"""The options that all training commands have."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanbert_kernels.cli.files import UserError
from spanbert_kernels.data.counts import recording
from spanbert_kernels.tasks.columns import DataWarning

if TYPE_CHECKING:
    from spanbert_kernels.tasks.start import Start
    from spanbert_kernels.tasks.training import TrainingOptions

SIZES = ("tiny", "small", "base")  # of tasks/start.py, which would load PyTorch
POSITIVE = click.IntRange(min=1)
_OPTIONS = (
    click.option("--model", help="Begin with this checkpoint: a folder, hub name, spanbert-base or spanbert-large."),
    click.option("--size", default="small", show_default=True, type=click.Choice(SIZES), help="Of a new model."),
    click.option("--vocabulary", type=click.Path(path_type=Path), help="A vocab.txt; by default made of the texts."),
    click.option("--vocabulary-size", default=8000, show_default=True, type=POSITIVE, help="Of one that is made."),
    click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints and model."),
    click.option("--epochs", default=3.0, show_default=True, type=click.FloatRange(min=0, min_open=True)),
    click.option("--steps", type=POSITIVE, help="Batches to train on, instead of epochs."),
    click.option("--batch-size", default=16, show_default=True, type=POSITIVE),
    click.option("--learning-rate", default=5e-4, show_default=True, type=click.FloatRange(min=0, min_open=True)),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0)),
    click.option("--save-steps", type=POSITIVE, help="Batches between checkpoints; by default none are kept."),
    click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the output folder."),
    click.option(
        "--backend",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "eager"]),
        help="eager: the original path on plain PyTorch, to check against.",
    ),
    click.option("--threads", type=POSITIVE, help="Threads for PyTorch; by default its own choice."),
)


def require(*packages: str) -> None:
    """Says in a line what to install, where something is missing."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"this needs {' and '.join(missing)}: pip install 'spanbert-kernels[tasks]'")


def watched() -> bool:
    """Does somebody see progress bars?"""
    return sys.stderr.isatty()


@contextlib.contextmanager
def warnings_in_words() -> Iterator[None]:
    """While it lasts, a warning about the user's data is its sentence; others keep file and line."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if category is DataWarning:
                click.echo(f"Warning: {message}", err=True)
            else:
                usual(message, category, *rest, **more)

        warnings.showwarning = show
        yield


@contextlib.contextmanager
def data_in_words() -> Iterator[None]:
    """While it lasts, stderr hears in sentences of faults in the user's data, and what of it was taken and left out."""
    with warnings_in_words(), recording(lambda line: click.echo(line, err=True)):
        yield


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command; `options_of` makes `TrainingOptions` of their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def options_of(values: dict[str, Any], **more: Any) -> tuple[Start, TrainingOptions]:
    """What a run begins with, and how it goes on; sets the threads."""
    import torch

    from spanbert_kernels.cli.models import quiet_transformers
    from spanbert_kernels.tasks.start import Start
    from spanbert_kernels.tasks.training import TrainingOptions

    quiet_transformers()
    threads = values.pop("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    start = Start(*(values.pop(name) for name in ("model", "size", "vocabulary", "vocabulary_size")))
    return start, TrainingOptions(**values, quiet=not watched(), **more)
