"""The options that all training commands have."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from spanbert_kernels.cli.files import PATH, check_output_folder
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.data.counts import tallying

if TYPE_CHECKING:
    from spanbert_kernels.tasks.start import Start
    from spanbert_kernels.tasks.training import TrainingOptions

SIZES = ("tiny", "small", "base")  # of tasks/start.py, which would load PyTorch
MOST = 2**31 - 1
COUNT = click.IntRange(1, MOST)
THREADS = click.IntRange(1, 1024)  # a system gives no more than some thousands, and ends the process
SEED = click.IntRange(0, 2**32 - 1)  # numpy takes no other


class Number(click.FloatRange):
    """A finite number in a range; click's own range lets NaN pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a line that says why it is none."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        return float(number)


_OPTIONS = (
    click.option("--model", help="Begin with this checkpoint: a folder, hub name, spanbert-base or spanbert-large."),
    click.option("--size", default="small", show_default=True, type=click.Choice(SIZES), help="Of a new model."),
    click.option("--vocabulary", type=PATH, help="A vocab.txt; by default made of the texts."),
    click.option("--vocabulary-size", default=8000, show_default=True, type=COUNT, help="Of one that is made."),
    click.option("--output", required=True, type=PATH, help="Folder for checkpoints and model."),
    click.option("--epochs", default=3.0, show_default=True, type=Number(0, 1e6, min_open=True)),
    click.option("--steps", type=COUNT, help="Batches to train on, instead of epochs."),
    click.option("--batch-size", default=16, show_default=True, type=COUNT),
    click.option("--learning-rate", default=5e-4, show_default=True, type=Number(0, 1e3, min_open=True)),
    click.option("--seed", default=0, show_default=True, type=SEED),
    click.option("--save-steps", type=COUNT, help="Batches between checkpoints; by default none are kept."),
    click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the output folder."),
    click.option(
        "--backend",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "eager"]),
        help="eager: the original path on plain PyTorch, to check against.",
    ),
    click.option("--threads", type=THREADS, help="Threads for PyTorch; by default its own choice."),
)


def watched() -> bool:
    """Does somebody see progress bars?"""
    return sys.stderr.isatty()


def data_in_words() -> AbstractContextManager[object]:
    """While it lasts, stderr hears in sentences what of the user's data was taken and left out."""
    return tallying(lambda line: say(line, error=True))


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command; `options_of` makes `TrainingOptions` of their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def options_of(values: dict[str, Any], **more: Any) -> tuple[Start, TrainingOptions]:
    """What a run begins with, and how it goes on; sets the threads.

    Raises:
        UserError: the output folder cannot be written to.
    """
    check_output_folder("model", values["output"])
    import torch

    from spanbert_kernels.tasks.progress import quiet_transformers
    from spanbert_kernels.tasks.start import Start
    from spanbert_kernels.tasks.training import TrainingOptions

    quiet_transformers()
    threads = values.pop("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    start = Start(*(values.pop(name) for name in ("model", "size", "vocabulary", "vocabulary_size")))
    return start, TrainingOptions(**values, quiet=not watched(), **more)
