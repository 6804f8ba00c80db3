"""A program: small trainings, each on some ranks: forks of this process, which has loaded PyTorch and run nothing.

`python trainings_on_ranks.py FOLDER TRAINING ...` writes what each rank of each training saw to `FOLDER/TRAINING.RANK`,
as JSON, and its model to `FOLDER/TRAINING`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import children
import ranks
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from spanbert_kernels import SpanBERTConfig, SpanBERTForTokenClassification
from spanbert_kernels.tasks import callbacks, tagging
from spanbert_kernels.tasks.rank_faults import RankLost
from spanbert_kernels.tasks.training import Development, TrainingOptions, fit

LENGTHS = (3, 12, 4, 5, 9, 3, 6, 10, 4)  # of which the last is alone in an epoch's last step
# What an example's labels are over is no function of its length.
EXAMPLES = [
    {"input_ids": torch.arange(length) + i, "labels": torch.tensor([0, *[-100] * (i % 3), *[i % 2] * 12][:length])}
    for i, length in enumerate(LENGTHS)
]
STEPS = 10


class Gradients(TrainerCallback):
    """Keeps the gradients of each step, one after the other, and how much of model and optimizer this rank holds."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []
        self.held: dict[str, int] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        self.found.append(torch.cat([whole(grad).detach().flatten() for grad in grads]).clone())
        self.held = {"weights": held(model.parameters()), "gradients": held(grads)}

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        moments = (value for each in optimizer.state.values() for value in each.values() if value.dim())
        self.held["optimizer"] = held(moments)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def held(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes on this rank."""
    own = (each.to_local() if isinstance(each, DTensor) else each for each in tensors)
    return sum(each.nbytes for each in own)


@contextlib.contextmanager
def heard_by(listener: TrainerCallback) -> Iterator[None]:
    """While it lasts, trainings call the listener, in the place of lines about their progress."""
    usual = callbacks.ProgressLines
    callbacks.ProgressLines = lambda: listener  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        callbacks.ProgressLines = usual  # type: ignore[misc]


def trained(
    output: Path,
    dropout: float = 0.0,
    development: Development | None = None,
    listener: TrainerCallback | None = None,
    **options: Any,
) -> None:
    """A training whose steps are of four examples, however they are made up."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = SpanBERTConfig(vocab_size=30, max_position_embeddings=16, num_labels=2, **size, **dropouts)
    model = SpanBERTForTokenClassification(config)
    values = {"steps": STEPS, "batch_size": 2, "quiet": True, "learning_rate": 0.01, "rank_timeout": 60.0, **options}
    gradients = Gradients()
    with heard_by(listener or gradients), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        done = fit(
            *(model, TrainingOptions(output, **values), EXAMPLES, tagging.collate),
            development=development,
            write_vocabulary=lambda folder: (folder / "vocab.txt").write_text("[PAD]\n"),
        )
    rank = os.environ.get("RANK", "0")
    torch.save(gradients.found, f"{output}.gradients.{rank}")
    found = {
        "held": gradients.held,
        "losses": done.losses,
        "logged": done.values("loss"),
        "scores": done.values("eval_F1"),
        "best": done.best,
        "paths": done.paths,
        "said": [str(each.message) for each in said if each.category.__module__.startswith("spanbert_kernels")],
        "seed": torch.initial_seed(),
        "drawn": float(torch.rand(1)),
    }
    Path(f"{output}.{rank}").write_text(json.dumps(found))


def scored_by_rank() -> Development:
    """Scores that differ between ranks: each alone would stop at another step."""
    own = iter(
        [0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1] if os.environ.get("RANK", "0") == "0" else [0.1 * i for i in range(9)]
    )
    return Development(lambda: {"F1": next(own)}, "F1")


def resumed(folder: Path, begun: str, name: str, **options: Any) -> None:
    """From the checkpoint of step 5, in the second epoch, in a copy of the folder."""
    if os.environ.get("RANK", "0") == "0":
        shutil.copytree(folder / begun / "checkpoint-5", folder / f".{name}" / "checkpoint-5")
        (folder / f".{name}").rename(folder / name)
    while not (folder / name).exists():
        pass
    trained(folder / name, resume=True, **options)


class Hangs(TrainerCallback):
    """The second rank does nothing more until the other has given up."""

    def __init__(self, given_up: Path) -> None:
        self.given_up = given_up

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        while os.environ["RANK"] == "1" and state.global_step == 3:
            time.sleep(0.01)
            if self.given_up.exists():
                os._exit(0)


def hanging(output: Path) -> None:
    given_up = Path(f"{output}.0")
    try:
        trained(output, listener=Hangs(given_up), rank_timeout=2.0, save_steps=2)
    except RankLost as error:
        given_up.write_text(json.dumps({"error": str(error)}))


TRAININGS: dict[str, tuple[int, Callable[[Path], None]]] = {  # name: ranks, and what each of them does
    "one": (1, lambda folder: trained(folder / "one", accumulation=2, save_steps=5)),
    "two": (2, lambda folder: trained(folder / "two", save_steps=5)),
    "tokens_of_one": (1, lambda folder: trained(folder / "tokens_of_one", accumulation=2, batch_tokens=16)),
    "tokens_of_two": (2, lambda folder: trained(folder / "tokens_of_two", batch_tokens=16)),
    "four": (4, lambda folder: trained(folder / "four", batch_size=1)),
    "dropping": (2, lambda folder: trained(folder / "dropping", dropout=0.1, save_steps=5)),
    "dropping_on": (2, lambda folder: resumed(folder, "dropping", "dropping_on", dropout=0.1)),
    "two_on_one": (1, lambda folder: resumed(folder, "two", "two_on_one")),
    "two_on_three": (3, lambda folder: resumed(folder, "two", "two_on_three")),
    "one_on_two": (2, lambda folder: resumed(folder, "one", "one_on_two")),
    "sharded": (2, lambda folder: trained(folder / "sharded", fsdp=True, save_steps=5)),
    "sharded_on": (2, lambda folder: resumed(folder, "sharded", "sharded_on", fsdp=True)),
    "sharded_on_one": (1, lambda folder: resumed(folder, "sharded", "sharded_on_one")),
    "sharded_on_three": (3, lambda folder: resumed(folder, "sharded", "sharded_on_three", fsdp=True)),
    "one_on_sharded": (2, lambda folder: resumed(folder, "one", "one_on_sharded", fsdp=True)),
    "sharded_scored": (
        2,
        lambda folder: trained(
            folder / "sharded_scored", fsdp=True, development=scored_by_rank(), evaluate_steps=1, patience=2
        ),
    ),
    "hanging": (2, lambda folder: hanging(folder / "hanging")),
    "scored": (
        2,
        lambda folder: trained(folder / "scored", development=scored_by_rank(), evaluate_steps=1, patience=2),
    ),
}


def main(folder: Path, names: list[str]) -> None:
    for name in names:
        size, run = TRAININGS[name]
        own = functools.partial(run, folder)
        codes = ranks.forked(own, size) if size > 1 else [children.forked(own)]
        print(json.dumps({"name": name, "codes": codes}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
