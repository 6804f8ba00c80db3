"""Tests on several ranks: this process is rank 0, and children are the others, which end with the test.

A child runs `python tests/ranks.py MODULE FUNCTION RANK SIZE STORE`, whose function gets the group. The group gives up
after TIMEOUT, and as soon as a rank dies: whoever waits for it gets an error, and no test hangs.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

TIMEOUT = datetime.timedelta(minutes=10)
TESTS = Path(__file__).parent


def joined(rank: int, size: int, store: str) -> dist.ProcessGroup:
    """The group of all, in which this process is that rank."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=TIMEOUT)
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def on_ranks(function: Callable[[dist.ProcessGroup], None], size: int, folder: Path) -> None:
    """Run a function of a module in tests on so many ranks; what fails on one fails here."""
    import children

    module = sys.modules[function.__module__]
    with contextlib.ExitStack() as stack:
        others = []
        for rank in range(1, size):
            here = Path(str(module.__file__)).relative_to(TESTS)
            command = [sys.executable, __file__, str(here), function.__name__, str(rank), str(size), folder / "store"]
            log = stack.enter_context((folder / f"rank{rank}.log").open("w+"))  # atomic: nobody reads it meanwhile
            others.append((stack.enter_context(children.started(command, stdout=log, stderr=log)), log))
        failed: list[int] = []
        try:
            function(joined(0, size, str(folder / "store")))
            failed = [process.wait(TIMEOUT.total_seconds()) for process, _ in others]
        finally:
            dist.destroy_process_group()
            for rank, (process, log) in enumerate(others, start=1):
                log.seek(0)
                if process.poll():
                    sys.stderr.write(f"rank {rank}:\n{log.read()}")
        assert not any(failed)


def forked(run: Callable[[], object], size: int, restart: int = 0) -> list[int]:
    """Runs it in so many forks of this process, which has run nothing yet, each told its rank as torchrun tells it.

    Gives how each ended: 0, or minus a signal. Another fork keeps the store, as torchrun does, at a port that is free.
    """
    import children

    reader, writer = os.pipe()
    keeper = children.fork(lambda: _keep(writer))
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": os.read(reader, 9).decode(),
        "WORLD_SIZE": str(size),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(restart),
    }
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(size)]
    try:
        forks = [children.fork(functools.partial(_told, told, run)) for told in own]
        return [children.ended(child) for child in forks]
    finally:
        os.kill(keeper, signal.SIGKILL)
        children.ended(keeper)
        os.close(reader)
        os.close(writer)


def _told(variables: dict[str, str], run: Callable[[], object]) -> None:
    os.environ.update(variables)
    run()


def _keep(writer: int) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(writer, str(store.port).encode())
    signal.pause()


def main(module: str, function: str, rank: str, size: str, store: str) -> None:
    """A child's part."""
    torch.set_num_threads(1)
    path = TESTS / module
    sys.path[:0] = [str(TESTS), str(path.parent)]
    importlib.import_module(path.stem)
    getattr(sys.modules[path.stem], function)(joined(int(rank), int(size), store))
    dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # Gloo's threads may still let go of tensors, and one that asks a Python at its end for that aborts


if __name__ == "__main__":
    main(*sys.argv[1:])
