"""What `train` says when it is done: losses, scores beside the baseline's, and what to try if nothing was learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.terminal import Console, say
from spanbert_kernels.data.counts import Tally
from spanbert_kernels.tasks.registry import TASKS

if TYPE_CHECKING:
    from spanbert_kernels.tasks.base import Outcome
    from spanbert_kernels.tasks.start import Start
    from spanbert_kernels.tasks.training import Training, TrainingOptions

FEW_STEPS = 300


def show(outcome: Outcome, measure: str, start: Start, options: TrainingOptions) -> None:
    """Says it; `measure` is the score that counts."""
    training = outcome.training
    say_losses(training)
    if training.best is not None:
        best, step = training.best
        say(f"Kept the model of step {step:,}, whose {measure} on the development data was the best: {best:.3f}.")
    if outcome.scores:
        table = Table("", "model", "trivial baseline", box=box.SIMPLE_HEAD, show_edge=False)
        for name, value in outcome.scores.items():
            table.add_row(name, f"{value:.3f}", f"{outcome.baseline[name]:.3f}")
        Console(highlight=False).print(table)
    taken = ", ".join(f"{name} ({calls:,} calls)" for name, calls in training.paths.items())
    say(f"Ran: {taken or 'the original path'}. Model: {formatting.path(options.output)}")
    if not outcome.scores:
        return
    score, trivial = outcome.scores[measure], outcome.baseline[measure]
    if score < trivial or score == trivial != 1.0:
        compared = f"{measure} {score:.3f}, the trivial baseline has {trivial:.3f}"
        say(f"It has not learnt: {compared}. Try {', or '.join(_to_try(training, start, options))}.", error=True)


def say_losses(training: Training) -> None:
    """The first and the last, where they were measured."""
    if training.losses is not None:
        first, last, steps = training.losses
        over = "step" if steps == 1 else f"{steps} steps"
        say(f"Loss: {first:.3f} over the first {over}, {last:.3f} over the last.")


def write_card(
    task: str,
    start: Start,
    options: TrainingOptions,
    training: Training,
    counts: Tally,
    files: Mapping[str, Sequence[Path]],
    outcome: Outcome | None = None,
) -> None:
    """Puts README.md into the model's folder: what was trained on what, from which weights, and the scores."""
    from spanbert_kernels.tasks import model_card

    text = TASKS[task].text if task in TASKS else "words that are masked"
    card = model_card.card(
        *(task, text, model_card.Origin.of(start.model, start.lower_layers), options, training),
        data=[str(each) for each in counts.counts.values() if each],
        files={use: paths for use, paths in files.items() if paths},
        scores=outcome.scores if outcome else {},
        baseline=outcome.baseline if outcome else {},
    )
    model_card.write(options.output, card)


def push(folder: Path, name: str) -> None:
    """Uploads the folder, and says where it is now."""
    from spanbert_kernels.tasks import model_card

    say(f"On the hub: {model_card.push(folder, name)}")


def _to_try(training: Training, start: Start, options: TrainingOptions) -> list[str]:
    """What would help most comes first."""
    found = [] if start.model else ["a trained encoder to begin with (--model)"]
    steps = max((int(entry["step"]) for entry in training.log if "step" in entry), default=0)
    if training.losses is not None and training.losses[1] > 0.5 * training.losses[0]:
        slow = options.learning_rate < (2e-4 if start.model else 1e-3)
        found.append(f"a {'higher' if slow else 'lower'} --learning-rate than {options.learning_rate:g}")
    if steps < FEW_STEPS:
        found.append(f"more than {formatting.count(steps, 'step')} (--steps, --epochs)")
    return [*found, "more labelled data"]
