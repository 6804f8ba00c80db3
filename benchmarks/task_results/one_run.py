"""A program: one training, alone in its process, whose peak of memory is its own; prints a JSON line at the end.

python -m task_results.one_run '{"row": "tagging", "seed": 0, ...}'
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from spanbert_kernels.data.counts import tallying
from spanbert_kernels.tasks.base import load
from spanbert_kernels.tasks.progress import bars, quiet_transformers
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

from .own_path import on_pytorchs_own
from .rows import ROWS
from .splits import Split

FIRST = 20  # losses that are kept of a run


@dataclass(frozen=True)
class Asked:
    """What one run is to do.

    Attributes:
        row: of `ROWS`.
        seed: of the training.
        backend: "auto" or "eager".
        model: the trained encoder's folder, or "" for random weights of a `size`.
        steps: where they are given, it trains so long and scores nothing.
        files: to train, to choose and to test on.
        folder: for the model.
        begins_with: the folder of another row's model to begin with, instead of the encoder alone.
    """

    row: str
    seed: int
    backend: str
    model: str
    size: str
    steps: int | None
    threads: int
    files: tuple[str, str, str]
    folder: str
    begins_with: str = ""


def say(line: str) -> None:
    """To the run's log."""
    print(line, file=sys.stderr, flush=True)


def run(asked: Asked) -> dict[str, Any]:
    """Trains and scores."""
    torch.set_num_threads(asked.threads)
    row, split = ROWS[asked.row], Split(*map(Path, asked.files))
    options = dict(row.options)
    kept = options.pop("lower_layers", None)
    if asked.steps is not None:
        options |= {"steps": asked.steps, "epochs": 1.0, "evaluate_steps": None, "patience": None}
    training = TrainingOptions(
        Path(asked.folder) / "model", seed=asked.seed, backend=asked.backend, quiet=True, **options
    )
    begin = asked.begins_with or asked.model
    start = Start(model=begin, lower_layers=kept) if begin else Start(size=asked.size)
    begin = time.perf_counter()
    theirs = on_pytorchs_own() if asked.backend == "eager" else nullcontext(Counter[str]())
    with bars(False, say), tallying(say), theirs as instead:
        scored = (None, None) if asked.steps is not None else (split.test, split.dev)
        outcome = load(row.task).train(split.train, scored[0], start, training, None, scored[1])
    found = outcome.training
    (seconds,) = found.values("train_runtime")
    return {
        "seed": asked.seed,
        "seconds": round(time.perf_counter() - begin, 1),
        "training seconds": seconds,
        "steps": max(int(entry["step"]) for entry in found.log if "step" in entry),
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "losses": found.losses,
        "logged": found.values("loss")[:FIRST],
        "best": found.best,
        "scores": outcome.scores,
        "baseline": outcome.baseline,
        "paths": {**found.paths, **instead},
    }


def arguments(asked: Asked) -> list[str]:
    """Of a process that does this."""
    return [sys.executable, "-m", "task_results.one_run", json.dumps(asdict(asked))]


if __name__ == "__main__":
    quiet_transformers()
    print(json.dumps(run(Asked(**json.loads(sys.argv[1])))))
