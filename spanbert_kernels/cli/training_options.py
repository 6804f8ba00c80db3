"""The options that all training commands have."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from spanbert_kernels.cli.files import PATH, check_output_folder
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.data.counts import Tally, tallying
from spanbert_kernels.tasks import launch

if TYPE_CHECKING:
    from spanbert_kernels.tasks.start import Start
    from spanbert_kernels.tasks.training import TrainingOptions

# Of tasks/start.py and tasks/training.py, which would load PyTorch.
SIZES = ("tiny", "small", "base")
SCHEDULES = ("linear", "cosine", "polynomial", "inverse-sqrt", "constant")
PRECISIONS = ("float32", "bf16", "fp16")
LEAST_STEPS, LEAST_STEPS_OF_MODEL = 500, 200
# What an option is that is not given: from random weights, and as published encoders are fine-tuned.
RECIPES: dict[bool, dict[str, Any]] = {
    False: {"learning_rate": 5e-4, "least_steps": LEAST_STEPS},
    True: {"learning_rate": 5e-5, "head_learning_rate": 5e-4, "least_steps": LEAST_STEPS_OF_MODEL},
}
MOST = 2**31 - 1
COUNT = click.IntRange(1, MOST)
THREADS = click.IntRange(1, 1024)  # a system gives no more than some thousands, and ends the process
MOST_SECONDS = 86400
SEED = click.IntRange(0, 2**32 - 1)  # numpy takes no other


class Number(click.FloatRange):
    """A finite number in a range; click's own range lets NaN pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a line that says why it is none."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        return float(number)


class Warmup(Number):
    """A share, or a number of steps."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a line that says why it is none."""
        number = super().convert(value, param, ctx)
        if number >= 1 and not number.is_integer():
            self.fail(f"{number} is neither a share below 1 nor a number of steps", param, ctx)
        return number


RATE = Number(0, 1e3, min_open=True)
_OPTIONS = (
    click.option("--model", help="Begin with this checkpoint: a folder, hub name, spanbert-base or spanbert-large."),
    click.option("--size", default="small", show_default=True, type=click.Choice(SIZES), help="Of a new model."),
    click.option("--vocabulary", type=PATH, help="A vocab.txt; by default made of the texts."),
    click.option("--vocabulary-size", default=8000, show_default=True, type=COUNT, help="Of one that is made."),
    click.option("--output", required=True, type=PATH, help="Folder for checkpoints and model."),
    click.option(
        "--epochs",
        default=3.0,
        show_default=True,
        type=Number(0, 1e6, min_open=True),
        help=f"Passes over the data; as many more as {LEAST_STEPS} steps take, {LEAST_STEPS_OF_MODEL} with --model.",
    ),
    click.option("--steps", type=COUNT, help="Steps to train for, instead of epochs."),
    click.option("--batch-size", default=16, show_default=True, type=COUNT, help="Examples in a batch."),
    click.option(
        "--batch-tokens", type=COUNT, help="Tokens in a batch, instead of examples; those of one length are together."
    ),
    click.option(
        "--accumulation", default=1, show_default=True, type=COUNT, help="Batches whose gradients make one step."
    ),
    click.option(
        "--learning-rate",
        type=RATE,
        show_default="5e-4; 5e-5 with --model",
        help="At its highest; of the encoder, where the head has its own.",
    ),
    click.option(
        "--head-learning-rate",
        type=RATE,
        show_default="the same; 5e-4 with --model",
        help="Of what stands on the encoder.",
    ),
    click.option(
        "--layer-decay",
        default=1.0,
        show_default=True,
        type=Number(0, 1, min_open=True),
        help="A layer's learning rate, as a share of that of the layer above it.",
    ),
    click.option(
        "--schedule",
        default="linear",
        show_default=True,
        type=click.Choice(SCHEDULES),
        help="How the learning rate goes on after the warm-up.",
    ),
    click.option(
        "--warmup",
        default=0.1,
        show_default=True,
        type=Warmup(0, MOST),
        help="Steps in which it rises: a share of all, or from 1 on a number.",
    ),
    click.option(
        "--precision",
        default="float32",
        show_default=True,
        type=click.Choice(PRECISIONS),
        help="Of products, where the device has it.",
    ),
    click.option(
        "--report-to",
        multiple=True,
        metavar="NAME",
        help="Who else hears of losses and scores, such as tensorboard or wandb; may be repeated.",
    ),
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
    click.option(
        "--rank-timeout",
        default=600,
        show_default=True,
        type=click.IntRange(1, MOST_SECONDS),
        help="Seconds that a process of several under torchrun waits for the others.",
    ),
    click.option(
        "--fsdp",
        is_flag=True,
        help="Under torchrun: each process holds a share of weights, gradients and optimizer, not the whole.",
    ),
    click.option("--threads", type=THREADS, help="Threads for PyTorch; by default its own choice."),
)


def watched() -> bool:
    """Does somebody see progress bars?"""
    return sys.stderr.isatty() and launch.rank() == 0


def data_in_words() -> AbstractContextManager[Tally]:
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
    start = replace(start, **{name: values.pop(name, None) for name in ("max_length", "lower_layers")})
    return start, TrainingOptions(**_with_recipe(values, start.model is not None), quiet=not watched(), **more)


def _with_recipe(values: dict[str, Any], from_model: bool) -> dict[str, Any]:
    """The values with what learns in the place of those that are not given.

    Example:
        >>> _with_recipe({"learning_rate": 1e-4, "head_learning_rate": None}, from_model=True)
        {'learning_rate': 0.0001, 'head_learning_rate': 0.0005, 'least_steps': 200}
    """
    recipe = {name: value for name, value in RECIPES[from_model].items() if values.get(name) is None}
    return {**values, **recipe}


def told(line: str) -> None:
    """What is said of long work where no terminal shows bars."""
    say(line, error=True)
