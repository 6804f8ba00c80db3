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
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from spanbert_kernels import accelerate, ops
from spanbert_kernels.data import counts
from spanbert_kernels.extras import require
from spanbert_kernels.ops import measured
from spanbert_kernels.tasks import atomic, callbacks, checkpoints, launch, rank_faults, ranks, resuming, sharding
from spanbert_kernels.tasks.means import OF_LABELS, Mean
from spanbert_kernels.tasks.task_trainer import TaskTrainer
from spanbert_kernels.tasks.token_batches import TokenBatches, in_batches

BACKENDS = ("auto", "eager")
SCHEDULES = {  # how the learning rate goes on when it is at its highest, by transformers' names
    "linear": "linear",
    "cosine": "cosine",
    "polynomial": "polynomial",
    "inverse-sqrt": "inverse_sqrt",
    "constant": "constant_with_warmup",
}
PRECISIONS = ("float32", "bf16", "fp16")
EVALUATIONS = 20  # on development data in a training, at most
CONFIGURATION = "config.json"  # without which a folder holds no model
_RATES = ("epochs", "learning_rate", "rank_timeout")
_COUNTS = ("steps", "batch_size", "save_steps", "evaluate_steps", "accumulation", "batch_tokens", "patience")
_CHOICES = {"backend": BACKENDS, "schedule": tuple(SCHEDULES), "precision": PRECISIONS}


class OtherPrecision(UserWarning):
    """The device lacks a precision, and float32 stands in for it."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        output: the folder for checkpoints and for the finished model.
        epochs: passes over the training data; `steps`, where given, is the number of batches instead.
        least_steps: batches at least, whatever the epochs.
        batch_size: examples in a batch.
        batch_tokens: tokens in a batch, instead of examples; those of about one length are together.
        accumulation: batches whose gradients are added up to one step.
        learning_rate: at its highest, after `warmup`.
        head_learning_rate: of what stands on the encoder; None for the same.
        layer_decay: what the learning rate of an encoder's layer is to that of the layer above it.
        schedule: how the learning rate goes on, one of `SCHEDULES`.
        warmup: a share of the steps, or from 1 on their number.
        precision: "float32", or "bf16" or "fp16", which products take where the device has it; weights stay float32.
        seed: of weights, order, dropout and sampling.
        backend: "auto", the accelerated path, or "eager", the model's own path on plain PyTorch, to check against.
        save_steps, evaluate_steps: batches between checkpoints, and between evaluations; None for neither, or with
            development data for `EVALUATIONS` in all, at most one an epoch.
        patience: evaluations without a better score after which a training with development data ends; None for never.
        resume: go on from the last checkpoint in `output`, with the same result as if nothing had stopped.
        quiet: no progress bars and no log lines.
        report_to: who else hears of losses and scores, such as "tensorboard": what transformers' Trainer knows.
        rank_timeout: seconds that a rank waits for another, under torchrun.
        fsdp: ranks hold a share of weights, gradients and the optimizer's state each, not the whole.
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
    least_steps: int = 0
    batch_tokens: int | None = None
    accumulation: int = 1
    head_learning_rate: float | None = None
    layer_decay: float = 1.0
    schedule: str = "linear"
    precision: str = "float32"
    patience: int | None = None
    report_to: tuple[str, ...] = ()
    rank_timeout: float = 600.0
    fsdp: bool = False

    def __post_init__(self) -> None:
        require("accelerate", "tasks")  # which transformers' Trainer asks for when all data has been read
        for name, known in _CHOICES.items():
            if (chosen := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {chosen!r}")
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise ValueError(f"report_to must be one of {', '.join(INTEGRATION_TO_CALLBACK)}, got {name!r}")
            if name not in get_available_reporting_integrations():
                raise ValueError(f"report_to {name!r} needs what is not installed: pip install {name}")
        for name in (*_RATES, *(() if self.head_learning_rate is None else ("head_learning_rate",))):
            _check(name, getattr(self, name), "a finite number above 0", lambda value: 0 < value < math.inf)
        _check("weight_decay", self.weight_decay, "a finite number, 0 or more", lambda value: 0 <= value < math.inf)
        _check("layer_decay", self.layer_decay, "above 0, and 1 at most", lambda value: 0 < value <= 1)
        warmup = "a share, from 0 to less than 1, or a number of steps"
        _check("warmup", self.warmup, warmup, lambda value: 0 <= value < 1 or float(value).is_integer())
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None:
                _check(name, value, "1 or more", lambda value: value >= 1)
        if self.fsdp:
            sharding.check(self.precision)


def _check(name: str, value: float, wanted: str, holds: Callable[[float], bool]) -> None:
    if not holds(value):
        raise ValueError(f"{name} must be {wanted}, got {value}")


@dataclass(frozen=True)
class Development:
    """Data that say when a training is at its best.

    Attributes:
        scores: of the model as it is now.
        measure: the name of the score that counts, of which more is better.
    """

    scores: Callable[[], dict[str, float]]
    measure: str


@dataclass(frozen=True)
class Training:
    """What came of it.

    Attributes:
        log: of the Trainer.
        paths: the calls that each path of the accelerated model took.
        losses: the mean loss over the first steps and over the last ones, and how many steps these are.
        best: the best score on development data and the step that had it, whose model was kept.
    """

    log: list[dict[str, float]]
    paths: dict[str, int]
    losses: tuple[float, float, int] | None = None
    best: tuple[float, int] | None = None

    def values(self, name: str) -> list[float]:
        """A logged number over the steps, such as "loss" or "eval_loss"."""
        return [float(entry[name]) for entry in self.log if name in entry]


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
        "gradient_accumulation_steps": options.accumulation,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": SCHEDULES[options.schedule],
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
        "report_to": list(options.report_to),
        "restore_callback_states_from_checkpoint": True,
        "disable_tqdm": options.quiet,
        "log_level": "error",
        "log_level_replica": "error",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "use_cpu": not torch.cuda.is_available(),
        **_mixed(options.precision),
    }
    return TrainingArguments(**{**values, **more})


def _mixed(precision: str) -> dict[str, bool]:
    """What switches a precision on; a warning where the device does not have it."""
    if precision == "float32":
        return {}
    cuda = torch.cuda.is_available()
    bf16 = torch.cuda.is_bf16_supported() if cuda else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if {"bf16": bf16, "fp16": cuda}[precision]:
        return {precision: True}
    device = torch.cuda.get_device_name() if cuda else "this processor"
    warnings.warn(f"{device} has no {precision}: float32 takes its place", OtherPrecision, stacklevel=1)
    return {}


def fit(
    model: nn.Module,
    options: TrainingOptions,
    train: Sequence[Any] | Dataset[Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    held_out: Sequence[Any] | Dataset[Any] | None = None,
    metrics: Callable[[Any], dict[str, float]] | None = None,
    *,
    means: Sequence[Mean] = OF_LABELS,
    development: Development | None = None,
    write_vocabulary: Callable[[Path], object] | None = None,
    **arguments: Any,
) -> Training:
    """Trains a model whose forward returns a loss, and writes it to `options.output`, whole or not at all.

    With `development` data the model is in the end the one that had the best score on them. `write_vocabulary` writes
    what belongs to the model to the folder that it is given; `means` are what the loss is the sum of; `arguments` are
    more of the Trainer's. Under torchrun every rank calls it, and the first one writes. With `options.fsdp` the model
    itself is left in shards, of no use without the other ranks: load what was written.

    Raises:
        ValueError: `options.evaluate_steps`, but there are no data to evaluate on.
        RankLost: another rank has ended, or does not answer.
        CannotResume: `options.resume`, but `options.output` holds no whole checkpoint, or one of another model.
        CannotWrite: a checkpoint or the model cannot be written, such as on a full disk.
    """
    counts.say()
    if options.evaluate_steps is not None and development is None and held_out is None:
        raise ValueError(
            f"evaluate_steps is {options.evaluate_steps}, but there are no data to evaluate on: leave it out"
        )
    with ranks.joined(options.rank_timeout), rank_faults.in_a_sentence(options.output, options.rank_timeout):
        return _fit(model, options, train, collate, held_out, metrics, means, development, write_vocabulary, arguments)


def _fit(
    model: nn.Module,
    options: TrainingOptions,
    train: Any,
    collate: Callable[[list[Any]], dict[str, Any]],
    held_out: Any,
    metrics: Callable[[Any], dict[str, float]] | None,
    means: Sequence[Mean],
    development: Development | None,
    write_vocabulary: Callable[[Path], object] | None,
    arguments: dict[str, Any],
) -> Training:
    checkpoint = resuming.to_resume(options)
    data, batch_size = train, arguments.get("per_device_train_batch_size", options.batch_size)
    if options.batch_tokens is not None:
        data, collate, batch_size = TokenBatches(train, options.batch_tokens, options.seed), in_batches(collate), 1
        arguments["per_device_train_batch_size"] = 1
    a_step = batch_size * options.accumulation * launch.ranks()
    dealt = resuming.dealt(options, data, batch_size, a_step, checkpoint)
    if dealt is not None:
        a_step = dealt.a_step
        arguments["gradient_accumulation_steps"] = dealt.accumulation
    set_seed(options.seed)
    steps, an_epoch = _steps(options, len(data), a_step)
    if development is not None:
        arguments |= _with_development(options, development, steps, an_epoch)
        held_out = []
    with measured.keeping(checkpoints.choices(checkpoint)), on_path(model, options.backend) as paths:
        trainer = TaskTrainer(
            model=model,
            args=arguments_of(options, max_steps=steps, **arguments),
            train_dataset=data,
            eval_dataset=held_out,
            data_collator=collate,
            compute_metrics=metrics,
            callbacks=list(_callbacks(options, [data, dealt], development)),
        )
        trainer.development, trainer.options, trainer.means = development, options, means
        trainer.dealt, trainer.a_step = dealt, a_step
        if options.fsdp:
            trainer.shard()
        trainer.model_accepts_loss_kwargs = False  # the models' losses are means over a batch, not over several
        if options.quiet:  # whose place the progress bar takes otherwise
            trainer.remove_callback(PrinterCallback)
        if ranks.several():
            ranks.seed_own(options.seed)
        if checkpoint is not None and checkpoints.ended(checkpoint, trainer.args.max_steps):
            trainer.take(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        losses, weights = trainer.losses.ends(), trainer.weights()
        if launch.rank() == 0:
            _write(trainer, weights, options, development, write_vocabulary)
        ranks.wait()
        state = trainer.state
        log = [{n: v for n, v in entry.items() if isinstance(v, (int, float))} for entry in state.log_history]
        best = (
            None if development is None or not state.best_global_step else (state.best_metric, state.best_global_step)
        )
        return Training(log, paths(), losses, best)


def _write(
    trainer: TaskTrainer,
    weights: dict[str, Tensor] | None,
    options: TrainingOptions,
    development: Development | None,
    write_vocabulary: Callable[[Path], object] | None,
) -> None:
    with atomic.files_into(options.output, last=CONFIGURATION) as aside:
        trainer.write_model(str(aside), weights)
        if write_vocabulary is not None:
            write_vocabulary(aside)
    if options.save_steps is None and development is not None:
        checkpoints.remove_all(options.output)


def _steps(options: TrainingOptions, items: int, a_step: int) -> tuple[int, int]:
    """Of the training, and of an epoch."""
    an_epoch = max(1, math.ceil(items / a_step))
    return options.steps or max(math.ceil(options.epochs * an_epoch), options.least_steps), an_epoch


def _with_development(options: TrainingOptions, development: Development, steps: int, an_epoch: int) -> dict[str, Any]:
    """The Trainer's arguments: each evaluation has its checkpoint, so that the best is at hand."""
    every = min(steps, options.evaluate_steps or max(an_epoch, math.ceil(steps / EVALUATIONS)))
    return {
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{development.measure}",
        "greater_is_better": True,
    }


def _callbacks(
    options: TrainingOptions, by_epoch: Sequence[Any], development: Development | None
) -> Iterator[TrainerCallback]:
    yield callbacks.Losses()
    yield callbacks.ProgressLines()
    yield from (callbacks.Epochs(each) for each in by_epoch if hasattr(each, "set_epoch"))
    if development is not None and options.patience is not None:
        yield callbacks.Patience(options.patience)
    if development is not None and options.save_steps is not None:
        yield callbacks.Saves(options.save_steps)
