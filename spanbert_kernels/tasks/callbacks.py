"""What happens between the steps of a training: losses are kept, lines said, checkpoints made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from spanbert_kernels.tasks import ranks
from spanbert_kernels.tasks.progress import Telling

MOST_STEPS = 20  # whose losses a first and a last loss are the mean of


class Epochs(TrainerCallback):
    """Tells the training data which epoch it is; the data loader tells its sampler alone."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """A run that resumes in the middle of an epoch begins with that epoch again."""
        self.data.set_epoch(int((state.epoch or 0.0) + 1e-6))


class Losses(TrainerCallback, ExportableState):
    """The losses of the first and of the last steps of a run, also of one that is interrupted and goes on.

    Example:
        >>> losses = Losses()
        >>> for loss in 4.0, 2.0, 1.0, 1.0, 0.5:
        ...     losses.steps([loss])
        >>> losses.ends()
        (4.0, 0.5, 1)
    """

    def __init__(self) -> None:
        self.first: list[float] = []
        self.last: list[float] = []
        self.count = 0
        self._of_step: list[Tensor] = []
        self._unread: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Of a batch, or of a part of one."""
        self._of_step.append(loss.detach())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Numbers are read later, several at once: a GPU would have to be waited for."""
        if self._of_step:
            self._unread.append(sum(self._of_step[1:], self._of_step[0]))
            self._of_step = []
        if len(self._unread) >= MOST_STEPS:
            self.read()

    def steps(self, losses: list[float]) -> None:
        """Of some more steps."""
        self.first = [*self.first, *losses][:MOST_STEPS]
        self.last = [*self.last, *losses][-MOST_STEPS:]
        self.count += len(losses)

    def read(self) -> None:
        """Those of all ranks, which each ask for them."""
        if self._unread:
            self.steps(ranks.mean(torch.stack(self._unread)).tolist())
            self._unread = []

    def ends(self) -> tuple[float, float, int] | None:
        """The means over the first and over the last steps, and how many these are; None where there was no step."""
        self.read()
        if not self.count:
            return None
        steps = min(MOST_STEPS, max(1, self.count // 4))
        return sum(self.first[:steps]) / steps, sum(self.last[-steps:]) / steps, steps

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        self.read()
        return {"args": {}, "attributes": {"first": self.first, "last": self.last, "count": self.count}}


class Patience(EarlyStoppingCallback):
    """transformers' early stopping, which a model that finds nothing does not come nearer to."""

    def check_metric_value(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metric_value: float
    ) -> None:
        """A model that finds nothing is one that begins to learn, whatever it hit by chance before."""
        if metric_value > 0:
            super().check_metric_value(args, state, control, metric_value)


class Saves(TrainerCallback):
    """A checkpoint every so many steps, beside those of evaluations."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for one."""
        if state.global_step % self.every == 0:
            control.should_save = True


class ProgressLines(TrainerCallback):
    """Says where the training is, to those who read lines."""

    telling: Telling | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Of the steps that are left."""
        self.telling = Telling(state.max_steps, "step", state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """With the loss that was logged last."""
        if self.telling is not None:
            logged = (f"loss {entry['loss']:.3f}" for entry in reversed(state.log_history) if "loss" in entry)
            self.telling.at(state.global_step, logged)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """The score is of interest whenever there is one."""
        if self.telling is not None and args.metric_for_best_model:
            score = kwargs["metrics"].get(args.metric_for_best_model)
            name = args.metric_for_best_model.removeprefix("eval_")
            self.telling.say(state.global_step, f"{name} of the development data {score:.3f}")
