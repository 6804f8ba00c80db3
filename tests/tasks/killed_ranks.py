"""A program: trainings on two ranks of which one is killed, started again as torchrun does; JSON lines tell of each.

When a rank is killed is counted in what it does: steps, and at the first rank changes to the folder too.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ranks
from changes_to_files import before_each
from children import kill
from trainings_on_ranks import trained
from transformers import TrainerCallback

from spanbert_kernels.tasks import launch

MOMENTS = ("on_step_begin", "on_pre_optimizer_step", "on_step_end", "on_save")
CHANGE = "change"  # to the folder
OPTIONS: dict[str, Any] = {"dropout": 0.1, "save_steps": 2}


class Listener(TrainerCallback):
    """Calls one function at each of some moments, with its name."""

    def __init__(self, hear: Callable[[str], object]) -> None:
        for name in MOMENTS:
            setattr(self, name, lambda *args, name=name, **kwargs: hear(name) and None)


def training(output: Path, hear: Callable[[str], object]) -> None:
    """A rank's part."""
    looked = contextlib.nullcontext() if launch.rank() else before_each(output, lambda: hear(CHANGE))
    with looked:
        trained(output, listener=Listener(hear), **OPTIONS)


def counted(output: Path) -> None:
    """One that is not killed; the first rank says how often each moment comes."""
    counts: dict[str, int] = {}
    training(output, lambda name: counts.update({name: counts.get(name, 0) + 1}))
    if launch.rank() == 0:
        print(json.dumps(counts), flush=True)


def killed(output: Path, rank: int, moment: str, number: int) -> None:
    """One whose rank is killed where a moment comes for that time."""
    times = itertools.count()

    def hear(name: str) -> None:
        if launch.rank() == rank and name == moment and next(times) == number:
            kill()

    training(output, hear)


def main(folder: Path, kills: int) -> None:
    if kills == 0:
        print(json.dumps({"codes": ranks.forked(functools.partial(counted, folder), 2)}))
        return
    counts = json.loads(sys.argv[3])
    rng = random.Random(0)
    for number in range(kills):
        output = folder / str(number)
        rank = number % 2
        moment = rng.choice([*MOMENTS, *([] if rank else [CHANGE] * len(MOMENTS))])
        time = rng.randrange(counts[moment])
        codes = [ranks.forked(functools.partial(killed, output, rank, moment, time), 2)]
        codes.append(ranks.forked(functools.partial(killed, output, 2, "", 0), 2, restart=1))
        print(json.dumps({"folder": str(output), "at": [rank, moment, time], "codes": codes}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
