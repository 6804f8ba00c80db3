"""A program: trainings that are killed, each gone on with until its end; says in a JSON line what became of each.

Each is a fork of this process, which has loaded PyTorch and run nothing.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from changes_to_files import before_each
from children import forked, kill
from small_training import train

from spanbert_kernels.tasks.checkpoints import CannotResume


def killed_after(seconds: float) -> contextlib.AbstractContextManager[None]:
    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    return contextlib.nullcontext()


def killed_before_change(number: int, output: Path) -> contextlib.AbstractContextManager[None]:
    changes = itertools.count()
    return before_each(output, lambda: next(changes) < number or kill())


def training(output: Path, resume: bool, killed: Callable[[], contextlib.AbstractContextManager[None]]) -> int:
    """How a training in a process of its own ended; from the beginning where there is nothing to go on from."""

    def run() -> None:
        with killed():
            try:
                train(output, resume=resume)
            except CannotResume as error:
                if "there is no checkpoint" not in str(error):
                    raise
                train(output)

    return forked(run)


def measured(folder: Path) -> tuple[int, float]:
    """How many changes a training makes to its folder, and how long it takes."""
    reader, writer = os.pipe()

    def run() -> None:
        changes = itertools.count()
        with before_each(folder / "counted", lambda: next(changes)):
            train(folder / "counted")
        os.write(writer, str(next(changes)).encode())

    started = time.monotonic()
    assert forked(run) == 0
    return int(os.read(reader, 99)), time.monotonic() - started


def main(folder: Path, kills: int) -> None:
    changes, seconds = measured(folder)
    rng = random.Random(0)
    for number in range(kills):
        output = folder / str(number)
        codes = [0]
        while codes[0] == 0:  # a kill that came too late: again, and earlier
            if number % 2:
                seconds *= 0.9
                after = rng.random() * seconds
                killed, at = functools.partial(killed_after, after), f"{after:.3f} s"
            else:
                change = rng.randrange(changes)
                killed, at = functools.partial(killed_before_change, change, output), f"change {change}"
            codes = [training(output, False, killed)]
        again = functools.partial(killed_before_change, rng.randrange(changes), output)
        codes.append(training(output, True, again))  # killed where it goes on, unless it is done before
        codes.append(training(output, True, contextlib.nullcontext))
        print(json.dumps({"folder": str(output), "at": at, "codes": codes}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
