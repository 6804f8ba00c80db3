"""A program: a training of each task by one process and by two ranks, which are forks of this process.

`python tasks_on_ranks.py FOLDER TASK ...` writes the gradients of each step to `FOLDER/TASK.RANKS`.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import children
import ranks
import torch
from task_trainings import trainer, write_without_dropout
from trainings_on_ranks import Gradients, heard_by

from spanbert_kernels.models import relations
from spanbert_kernels.tasks import launch
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

ROWS = {"question_answering": 1}  # its loss looks at padding, which depends on what else is in a batch
STEPS = 3


def trained(folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    relations.DROPPED = 0.0
    gradients, size = Gradients(), launch.ranks()
    rows = ROWS.get(name, 2)
    options = TrainingOptions(
        folder / f"{name}-{size}", steps=STEPS, batch_size=rows, accumulation=4 // rows // size, quiet=True
    )
    with heard_by(gradients):
        trainer(name, folder / name)(Start(model=str(folder / "checkpoint")), options, None)
    if launch.rank() == 0:
        torch.save(gradients.found, folder / f"{name}.{size}")


def main(folder: Path, names: list[str]) -> None:
    children.forked(functools.partial(write_without_dropout, folder / "checkpoint"))
    for name in names:
        (folder / name).mkdir()
        own = functools.partial(trained, folder, name)
        codes = [children.forked(own), *ranks.forked(own, 2)]
        print(json.dumps({"name": name, "codes": codes}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
