"""What all tasks share when they train: options, transformers' Trainer, the accelerated or the original path."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerState, TrainingArguments, set_seed

from spanbert_kernels import accelerate, ops
from spanbert_kernels.data import counts
from spanbert_kernels.extras import require
from spanbert_kernels.ops import measured
from spanbert_kernels.tasks import atomic, checkpoints
from spanbert_kernels.tasks.checkpoints import CheckpointTrainer, PassedOver

BACKENDS = ("auto", "eager")
CONFIGURATION = "config.json"  # without which a folder holds no model
_RATES = ("epochs", "learning_rate")
_COUNTS = ("steps", "batch_size", "save_steps", "evaluate_steps")


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        output: the folder for checkpoints and for the finished model.
        epochs: passes over the training data; `steps`, where given, is the number of batches instead.
        batch_size: examples in a batch.
        learning_rate: at its highest, after `warmup` (a share of the steps); it falls linearly to 0.
        seed: of weights, order, dropout and sampling.
        backend: "auto", the accelerated path, or "eager", the model's own path on plain PyTorch, to check against.
        save_steps, evaluate_steps: batches between checkpoints, and between evaluations; None for neither.
        resume: go on from the last checkpoint in `output`, with the same result as if nothing had stopped.
        quiet: no progress bars and no log lines.
    """

    output: Path
    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 16
    learning_rate: float = 5e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0
    backend: str = "auto"
    save_steps: int | None = None
    evaluate_steps: int | None = None
    resume: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        require("accelerate", "tasks")  # which transformers' Trainer asks for when all data has been read
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        for name in _RATES:
            _check(name, getattr(self, name), "a finite number above 0", lambda value: 0 < value < math.inf)
        _check("weight_decay", self.weight_decay, "a finite number, 0 or more", lambda value: 0 <= value < math.inf)
        _check("warmup", self.warmup, "a share, from 0 to less than 1", lambda value: 0 <= value < 1)
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None:
                _check(name, value, "1 or more", lambda value: value >= 1)


def _check(name: str, value: float, wanted: str, holds: Callable[[float], bool]) -> None:
    if not holds(value):
        raise ValueError(f"{name} must be {wanted}, got {value}")


@dataclass(frozen=True)
class Training:
    """What came of it: the log of the Trainer, and the calls that each path of the accelerated model took."""

    log: list[dict[str, float]]
    paths: dict[str, int]

    def values(self, name: str) -> list[float]:
        """A logged number over the steps, such as "loss" or "eval_loss"."""
        return [float(entry[name]) for entry in self.log if name in entry]


class Epochs(TrainerCallback):
    """Tells the training data which epoch it is; the data loader tells its sampler alone."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """A run that resumes in the middle of an epoch begins with that epoch again."""
        self.data.set_epoch(int((state.epoch or 0.0) + 1e-6))


@contextlib.contextmanager
def on_path(model: nn.Module, backend: str) -> Iterator[Callable[[], dict[str, int]]]:
    """The model on its accelerated path, or for "eager" on its own; gives the paths that its calls took so far."""
    if backend == "eager":
        with ops.backends.use("eager"):
            yield lambda: {}
        return
    report = accelerate(model)
    yield lambda: dict(report.calls)


def arguments_of(options: TrainingOptions, **more: Any) -> TrainingArguments:
    """The Trainer's arguments; `more` overrides them."""
    values: dict[str, Any] = {
        "output_dir": str(options.output),
        "num_train_epochs": options.epochs,
        "max_steps": -1 if options.steps is None else options.steps,
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "warmup_steps": options.warmup,
        "weight_decay": options.weight_decay,
        "seed": options.seed,
        "data_seed": options.seed,
        "save_strategy": "no" if options.save_steps is None else "steps",
        "save_steps": options.save_steps or 500,
        "save_total_limit": 2,
        "eval_strategy": "no" if options.evaluate_steps is None else "steps",
        "eval_steps": options.evaluate_steps,
        "logging_steps": 10,
        "report_to": [],
        "disable_tqdm": options.quiet,
        "log_level": "error",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "use_cpu": not torch.cuda.is_available(),
    }
    return TrainingArguments(**{**values, **more})


def fit(
    model: nn.Module,
    options: TrainingOptions,
    train: Sequence[Any] | Dataset[Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    held_out: Sequence[Any] | Dataset[Any] | None = None,
    metrics: Callable[[Any], dict[str, float]] | None = None,
    *,
    write_vocabulary: Callable[[Path], object] | None = None,
    **arguments: Any,
) -> Training:
    """Trains a model whose forward returns a loss, and writes it to `options.output`, whole or not at all.

    `write_vocabulary` writes what belongs to the model to the folder that it is given; `arguments` are more of the
    Trainer's.

    Raises:
        CannotResume: `options.resume`, but `options.output` holds no whole checkpoint, or one of another model.
        CannotWrite: a checkpoint or the model cannot be written, such as on a full disk.
    """
    counts.say()
    checkpoint = None
    if options.resume:
        checkpoint, passed_over = checkpoints.newest_whole(options.output)
        for path, reason in passed_over:
            warnings.warn(f"{path} is passed over: {reason}; going on from {checkpoint}", PassedOver, stacklevel=1)
    set_seed(options.seed)
    with measured.keeping(checkpoints.choices(checkpoint)), on_path(model, options.backend) as paths:
        trainer = CheckpointTrainer(
            model=model,
            args=arguments_of(options, **arguments),
            train_dataset=train,
            eval_dataset=held_out,
            data_collator=collate,
            compute_metrics=metrics,
            callbacks=[Epochs(train)] if hasattr(train, "set_epoch") else [],
        )
        if options.quiet:  # whose place the progress bar takes otherwise
            trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        with atomic.files_into(options.output, last=CONFIGURATION) as aside:
            trainer.save_model(str(aside))
            if write_vocabulary is not None:
                write_vocabulary(aside)
        log = [{n: v for n, v in entry.items() if isinstance(v, (int, float))} for entry in trainer.state.log_history]
        return Training(log, paths())
