"""Checkpoints that are whole: written aside and renamed, checked before a training goes on from one."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerState

from spanbert_kernels.models.damage import damage
from spanbert_kernels.ops import measured
from spanbert_kernels.tasks import atomic, launch, ranks, sharding

NAME = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Besides the weights. The Trainer itself goes on without an optimizer or random numbers, to another result.
NEEDED = ("config.json", "optimizer.pt", "scheduler.pt", STATE)
# How many ranks there were, and examples in a step of all of them; checkpoints of older versions have none.
RANKS = "ranks.json"
# Which of several ways that differ in bits the training took; checkpoints of older versions have none.
CHOICES = "measured_choices.json"


class CannotResume(ValueError):
    """No checkpoint to go on from; the message says what there is and what to do."""


class PassedOver(UserWarning):
    """A damaged checkpoint that an older one stands in for."""


def newest_whole(output: Path) -> tuple[Path, list[tuple[Path, str]]]:
    """The whole checkpoint of the most steps in a training's folder, and those of more steps, with what they lack.

    Raises:
        CannotResume: there is none.
    """
    passed_over: list[tuple[Path, str]] = []
    for path in reversed(in_order(output)):
        reason = fault(path)
        if reason is None:
            return path, passed_over
        passed_over.append((path, reason))
    if not passed_over:
        raise CannotResume(f"there is no checkpoint in {output}: begin without resuming, and with checkpoints to save")
    found = "; ".join(f"{path.name}: {reason}" for path, reason in passed_over)
    raise CannotResume(f"there is no whole checkpoint in {output}: {found}; begin without resuming")


def fault(checkpoint: Path) -> str | None:
    """What of a checkpoint is missing or damaged, None if it is whole."""
    for path in _files(checkpoint):
        reason = damage(path)
        if reason is not None:
            return f"its {path.name} {reason}"
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    step = state.get("global_step") if isinstance(state, dict) else None
    return None if step == _steps(checkpoint) else f"its {STATE} is of step {step}"


def _files(checkpoint: Path) -> Iterator[Path]:
    """What a checkpoint has to hold; which files these are stands in those before them."""
    yield from (checkpoint / name for name in NEEDED)
    yield from _weights(checkpoint)
    yield from (path for path in (checkpoint / CHOICES, checkpoint / RANKS) if path.exists())
    ranks_then, _ = of_ranks(checkpoint)
    if ranks_then == 1:
        yield checkpoint / "rng_state.pth"
    else:
        yield from (checkpoint / f"rng_state_{rank}.pth" for rank in range(ranks_then))


def of_ranks(checkpoint: Path) -> tuple[int, int | None]:
    """How many ranks a checkpoint, whose files are whole, is of, and examples in a step; None where it does not say."""
    if not (checkpoint / RANKS).exists():
        return 1, None
    found = json.loads((checkpoint / RANKS).read_text(encoding="utf-8"))
    return found["ranks"], found["examples"]


def choices(checkpoint: Path | None) -> dict[str, str]:
    """What `ops.measured` chose in the training of a whole checkpoint, to be kept to."""
    if checkpoint is None or not (checkpoint / CHOICES).exists():
        return {}
    found = json.loads((checkpoint / CHOICES).read_text(encoding="utf-8"))
    if isinstance(found, dict) and len(of_each := found.get("ranks", [])) == launch.ranks():
        found = of_each[launch.rank()]
    return {name: way for name, way in found.items() if isinstance(way, str)} if isinstance(found, dict) else {}


def ended(checkpoint: Path, steps: int) -> bool:
    """Did the training of a whole checkpoint end there, at the last of so many steps, or as nothing got better?

    The Trainer, which looks after a step whether it was the last, would take one more.
    """
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    stopped = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    early = bool(stopped.get("should_training_stop")) and state["global_step"] < state["max_steps"]
    return early or 0 < steps <= state["global_step"]


def remove_all(output: Path) -> None:
    """The checkpoints in a training's folder."""
    for path in in_order(output):
        shutil.rmtree(path, ignore_errors=True)


def _weights(checkpoint: Path) -> Iterator[Path]:
    if not (checkpoint / INDEX).exists():
        yield checkpoint / WEIGHTS
        return
    yield checkpoint / INDEX
    with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):  # which the index itself has then
        found = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        yield from (checkpoint / name for name in sorted(set(found)))


def _steps(checkpoint: Path) -> int:
    found = NAME.fullmatch(checkpoint.name)
    return int(found[1]) if found else -1


def in_order(output: Path) -> list[Path]:
    """Folders with a checkpoint's name, the fewest steps first."""
    if not output.is_dir():
        return []
    return sorted((path for path in output.iterdir() if _steps(path) >= 0 and path.is_dir()), key=_steps)


class CheckpointTrainer(Trainer):
    """transformers' Trainer, whose checkpoints are there whole or not at all."""

    a_step: int | None = None
    _aside: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        """Where the checkpoint that is being written goes."""
        return str(self._aside or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Every rank takes part, and the first one writes."""
        output = Path(self.args.output_dir)
        path = output / f"checkpoint-{self.state.global_step}"
        made = ranks.gathered(measured.made())
        if launch.rank():
            super()._save_checkpoint(model, trial)
        else:
            for left in output.glob(f".checkpoint-*{atomic.PARTIAL}"):
                shutil.rmtree(left, ignore_errors=True)
            with atomic.new_folder(path) as aside:
                self._aside = aside
                try:
                    super()._save_checkpoint(model, trial)
                finally:
                    self._aside = None
                self._note_best()  # the Trainer has noted where it is written aside
                self.state.save_to_json(str(aside / path.name / STATE))
                of_each = {"ranks": made} if ranks.several() else {}
                atomic.write_text(aside / CHOICES, json.dumps({**made[0], **of_each}, indent=1))
                atomic.write_text(aside / RANKS, json.dumps({"ranks": launch.ranks(), "examples": self.a_step}))
                # the Trainer has made the folder that it would make in its output folder
                for file in (aside / path.name).iterdir():
                    file.replace(aside / file.name)
                (aside / path.name).rmdir()
            self._remove_older(output)
        self._note_best()
        ranks.wait()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Every rank takes part, and the first one writes."""
        self.write_model(output_dir, self.weights())

    def weights(self) -> dict[str, Tensor] | None:
        """Of a model in shards, whole at the first rank; None for what the model itself holds. Every rank asks."""
        return sharding.whole(self.model) if sharding.is_sharded(self.model) else None

    def write_model(self, folder: str | None, weights: dict[str, Tensor] | None) -> None:
        """With these weights; at the first rank."""
        if launch.rank() == 0:
            self._save(folder, weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Every rank takes part, as in the model's."""
        if launch.rank():
            self.optimizer.state_dict()
        super()._save_optimizer_and_scheduler(output_dir)

    def _note_best(self) -> None:
        if (best := self._best()) is not None:
            self.state.best_model_checkpoint = str(best)

    def _save_rng_state(self, output_dir: str) -> None:
        """All ranks' by the first one, whose folder another machine may not have yet."""
        if not ranks.several():
            super()._save_rng_state(output_dir)
            return
        with tempfile.TemporaryDirectory() as own:
            super()._save_rng_state(own)
            (path,) = Path(own).iterdir()
            states = ranks.gathered((path.name, torch.load(path, weights_only=False)))
        aside = Path(output_dir)
        for name, state in states:
            torch.save(state, aside / name)

    def _remove_older(self, output: Path) -> None:
        """What has more steps than the one just written is of another training, which this one takes the place of."""
        found = in_order(output)
        own = [path for path in found if _steps(path) <= self.state.global_step]
        kept = own[-self.args.save_total_limit :] if self.args.save_total_limit else own
        for path in found:
            if path not in kept and path != self._best():
                shutil.rmtree(path, ignore_errors=True)

    def _best(self) -> Path | None:
        """The checkpoint with the best score so far."""
        step = self.state.best_global_step
        return Path(self.args.output_dir) / f"checkpoint-{step}" if step else None

    def take(self, checkpoint: Path) -> None:
        """What a training has kept that ended there, and was stopped before its model was written."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._load_callback_state()
        if self.state.best_model_checkpoint is None:
            self._load_from_checkpoint(str(checkpoint))
        else:
            self._load_best_model()

    def _load_callback_state(self) -> None:
        """The state has been loaded; its folder may have another name since."""
        super()._load_callback_state()
        if (best := self._best()) is not None:
            if (reason := fault(best)) is not None:
                raise CannotResume(f"the best checkpoint, {best}, cannot be used: {reason}; begin without resuming")
            self.state.best_model_checkpoint = str(best)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _fitting(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _fitting(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Of another number of ranks there is none for each: they draw anew."""
        if checkpoint is not None and of_ranks(Path(checkpoint))[0] != launch.ranks():
            ranks.seed_own(self.args.seed, self.state.global_step)
            return
        with _fitting(checkpoint):
            super()._load_rng_state(checkpoint)


@contextlib.contextmanager
def _fitting(checkpoint: str | None) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        line = " ".join(str(error).split()[:30]) or type(error).__name__
        raise CannotResume(
            f"cannot go on from {checkpoint}: it is damaged, or of a training with other options ({line})"
        ) from error
