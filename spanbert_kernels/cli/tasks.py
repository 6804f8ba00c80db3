"""`spanbert-kernels train` and `evaluate`: the tasks, over files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanbert_kernels.cli.evaluating import BY, show_groups, write_errors
from spanbert_kernels.cli.files import PATH, check_output
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.cli.training_options import (
    COUNT,
    MOST,
    data_in_words,
    options_of,
    told,
    training_options,
    watched,
)
from spanbert_kernels.cli.training_outcome import push, show, write_card
from spanbert_kernels.tasks import launch
from spanbert_kernels.tasks.registry import TASKS, TaskEntry

if TYPE_CHECKING:
    from spanbert_kernels.tasks.base import Task

task_argument = click.argument("task", type=click.Choice(list(TASKS)))
backend_option = click.option("--backend", default="auto", show_default=True, type=click.Choice(["auto", "eager"]))


def data_to_read(words: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command its `data`: files and folders as arguments or behind `--data`, as `words` of its help have it."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.argument("files", nargs=-1, type=PATH, metavar="[DATA]...")
        @click.option("--data", "named", multiple=True, type=PATH, help=words)
        @functools.wraps(command)
        def run(*args: Any, files: tuple[Path, ...], named: tuple[Path, ...], **values: Any) -> Any:
            data = (*files, *named)
            if not data:
                raise click.UsageError("Missing DATA: files or folders, as arguments or behind --data.")
            return command(*args, data=data, **values)

        return run

    return decorate


def listed(column: Callable[[TaskEntry], str]) -> str:
    """A line for each task, for a command's help."""
    width = max(map(len, TASKS)) + 2
    return "\b\n" + "\n".join(f"{name:{width}}{column(entry)}" for name, entry in TASKS.items())


def _refuse_without_dev(*names: str) -> None:
    """Options that the user has given, and that mean nothing without files to score on."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} is about scores of --dev: name files by --dev, or leave {option} out.")


def load_task(name: str) -> Task:
    """The task of that name, and PyTorch with it."""
    from spanbert_kernels.tasks.base import load
    from spanbert_kernels.tasks.progress import quiet_transformers

    quiet_transformers()
    return load(name)


@click.command(
    help=f"""Train TASK on files and write the model to the output folder.

{listed(lambda entry: entry.trained_on)}

\b
spanbert-kernels train tagging --data train.conll --dev dev.conll --test test.conll --model encoder --output tagger
spanbert-kernels train nested --data gum/ --output mentions --epochs 10 --batch-tokens 4096 --save-steps 500

Exit code: 0; 2 if a file cannot be used (file and line are named) or a value is wrong.
"""
)
@task_argument
@data_to_read("A file or folder to train on; may be repeated.")
@click.option("--dev", multiple=True, type=PATH, help="One whose score says which model is kept; may be repeated.")
@click.option(
    "--patience",
    default=5,
    show_default=True,
    type=COUNT,
    help="Scores of --dev in a row that are no better, after which the training ends.",
)
@click.option("--evaluate-steps", type=COUNT, help="Steps between two scores of --dev; by default 20 times in all.")
@click.option("--test", multiple=True, type=PATH, help="One to score the result on; may be repeated.")
@click.option(
    "--max-length",
    type=click.IntRange(8, MOST),
    help="Tokens of a text, or of the windows that a document is cut into; by default what the model holds, and 128.",
)
@click.option(
    "--lower-layers",
    type=COUNT,
    help="Layers of the encoder that are kept, from the lowest on; by default all.",
)
@click.option("--span-length", type=COUNT, help="Train on one random span of so many tokens a document and step.")
@click.option(
    "--crop",
    default="loss",
    show_default=True,
    type=click.Choice(["input", "loss"]),
    help="input: only the span is encoded; loss: the whole document, and the span carries loss.",
)
@click.option("--push-to-hub", metavar="NAME", help="Upload the model to the Hugging Face hub by this name.")
@training_options
def train(
    task: str,
    data: tuple[Path, ...],
    dev: tuple[Path, ...],
    test: tuple[Path, ...],
    span_length: int | None,
    crop: str,
    push_to_hub: str | None,
    **values: Any,
) -> None:
    if not dev:
        _refuse_without_dev("evaluate_steps", "patience")
    found = load_task(task)
    from spanbert_kernels.tasks.progress import bars
    from spanbert_kernels.tasks.span_training import SpanTraining

    start, options = options_of(values)
    with bars(watched(), told), data_in_words() as counts:
        spans = None if span_length is None else SpanTraining(span_length, crop)
        outcome = found.train(data, test or None, start, options, spans, dev or None)
    if launch.rank():
        return
    write_card(task, start, options, outcome.training, counts, {"train": data, "dev": dev, "test": test}, outcome)
    show(outcome, found.measure, start, options)
    if push_to_hub is not None:
        push(options.output, push_to_hub)


@click.command(
    help="""Score a trained model on files such as train takes.

\b
spanbert-kernels evaluate tagging --model tagger --data test.conll --by type --errors errors.html

Exit code: 0; 2 if a file cannot be used (file and line are named).
"""
)
@task_argument
@data_to_read("A file or folder to score on; may be repeated.")
@click.option("--model", required=True, type=PATH, help="The folder that train wrote.")
@click.option("--by", type=click.Choice(BY), help="Numbers by type, by length or by distance, in words.")
@click.option("--errors", type=PATH, metavar="FILE.html", help="A page with the errors beside what is wanted.")
@backend_option
def evaluate(task: str, model: Path, data: tuple[Path, ...], by: str | None, errors: Path | None, backend: str) -> None:
    if errors is not None:
        check_output("errors", errors)
    found = load_task(task)
    from spanbert_kernels.tasks.comparison import check
    from spanbert_kernels.tasks.progress import bars

    check(task, by, errors is not None)
    with bars(watched(), told), data_in_words():
        judged = found.judge(model, data, backend)
    for name, value in judged.scores.items():
        say(f"{name} {value:.4f}")
    if by is not None:
        show_groups(task, found, judged, by)
    if errors is not None:
        write_errors(task, judged, by, errors)
