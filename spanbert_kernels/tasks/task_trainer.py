"""The Trainer of all tasks: a task's own scores, rates by part of the model, and steps that ranks share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from spanbert_kernels.tasks import callbacks, means, ranks, sharding
from spanbert_kernels.tasks.checkpoints import CheckpointTrainer
from spanbert_kernels.tasks.dealing import SPARE, DealtBatches, WithSpares, in_parts
from spanbert_kernels.tasks.rates import rate_of, set_rates


class TaskTrainer(CheckpointTrainer):
    """transformers' Trainer with what it lacks for tasks and for ranks.

    Attributes:
        development: what says when the training is at its best; None for a loss on held-out data.
        options: of the training.
        means: what the loss is the sum of.
        dealt: the batches of this rank; None where the Trainer makes them.
    """

    development: Any = None
    options: Any
    means: Sequence[means.Mean] = means.OF_LABELS
    dealt: DealtBatches | None = None
    _factors: Iterator[list[float]] | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The Trainer's, or one of batches that are dealt already."""
        if self.dealt is None:
            return super().get_train_dataloader()
        data: Any = WithSpares(self.train_dataset)
        return DataLoader(data, batch_sampler=self.dealt, collate_fn=in_parts(self.data_collator))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As the Trainer's, in more groups where the options ask for it."""
        optimizer = super().create_optimizer(model)
        own = self.options
        if own.head_learning_rate is not None or own.layer_decay != 1.0:
            rates = rate_of(self.model, own.learning_rate, own.head_learning_rate, own.layer_decay)
            set_rates(optimizer, self.model, rates)
        if sharding.is_sharded(self.model):
            sharding.with_whole_state(optimizer)
        return optimizer

    def shard(self) -> None:
        """Leaves this rank its share of the model; before the training."""
        sharding.shard(self.model)
        # Its autocast, and no DistributedDataParallel, which would hold the whole.
        self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)
        self.model._is_accelerate_prepared = True

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of a step; where they are not all of it, or several, with the share that each has in it."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        if len(batches) == 1 and not ranks.several():
            self._factors = None
        else:
            own = [means.counts(batch, self.means, self.model.config) for batch in batches]
            total = torch.tensor(own, dtype=torch.float64).sum(0)
            if ranks.several():
                dist.all_reduce(total)
            self._factors = iter([means.shares(each, total.tolist(), self.means) for each in own])
        return batches, items

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """In training the batch's part of the loss of a step, of which the step's gradients are made."""
        inputs.pop(SPARE, None)
        if self._factors is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        loss, output = super().compute_loss(model, inputs, True, **kwargs)
        part = means.weighed(loss, output, self.means, next(self._factors))
        # the Trainer divides by the one, and DistributedDataParallel by the other
        part = part * (self.current_gradient_accumulation_steps * self.args.world_size)
        return (part, output) if return_outputs else part

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Keeps the loss; callbacks are made anew where a training goes on."""
        loss: Tensor = super().training_step(*args, **kwargs)
        self.losses.add(loss)
        return loss

    @property
    def losses(self) -> callbacks.Losses:
        """Of the steps so far."""
        return next(each for each in self.callback_handler.callbacks if isinstance(each, callbacks.Losses))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The task's scores on the development data, or the Trainer's evaluation where there are none.

        Every rank computes them, and all go by those of the first: they stop at the same step, whatever their rounding.
        """
        if self.development is None:
            found: dict[str, float] = super().evaluate(*args, **kwargs)
            return found
        scores = ranks.agreed(self.development.scores())
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.losses.read()  # together: the first rank alone writes them
        super()._save_checkpoint(model, trial)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._tr_loss: Tensor = ranks.mean(self._tr_loss)
        return super()._finalize_training(*args, **kwargs)
