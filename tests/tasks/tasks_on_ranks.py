"""A program: a training of each task by one process, by two ranks and by two that hold a share of the model each.

`python tasks_on_ranks.py FOLDER TASK ...` writes the gradients of each step to `FOLDER/TASK.RANKS`, those of shares to
`FOLDER/TASK.fsdp`, and models to `FOLDER/TASK-RANKS` and `FOLDER/TASK-fsdp`; ranks are forks of this process.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import children
import ranks
import torch
from task_trainings import Train, trainer, write_without_dropout
from trainings_on_ranks import Gradients, heard_by

from spanbert_kernels.models import relations
from spanbert_kernels.tasks import launch
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

STEPS = 3


def trained(folder: Path, name: str, train: Train, fsdp: bool = False) -> None:
    torch.set_num_threads(1)
    relations.DROPPED = 0.0
    gradients, size = Gradients(), launch.ranks()
    suffix = "fsdp" if fsdp else str(size)
    sizes = {"batch_size": 2, "accumulation": 2 // size}
    options = TrainingOptions(folder / f"{name}-{suffix}", steps=STEPS, quiet=True, fsdp=fsdp, **sizes)
    with heard_by(gradients):
        done = train(Start(model=str(folder / "checkpoint")), options, None)
    if launch.rank() == 0:
        torch.save(gradients.found, folder / f"{name}.{suffix}")
        (folder / f"{name}-{suffix}.json").write_text(json.dumps({"paths": done.paths, "held": gradients.held}))


def main(folder: Path, names: list[str]) -> None:
    children.forked(functools.partial(write_without_dropout, folder / "checkpoint"))
    for name in names:
        (folder / name).mkdir()
        # Once, before there are ranks: one would read what another is writing.
        own = functools.partial(trained, folder, name, trainer(name, folder / name))
        codes = [children.forked(own), *ranks.forked(own, 2), *ranks.forked(functools.partial(own, fsdp=True), 2)]
        print(json.dumps({"name": name, "codes": codes}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
