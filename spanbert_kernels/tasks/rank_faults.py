"""One sentence where a rank has ended or does not answer; of all ranks that notice it, one says it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil
import torch.distributed as dist

from spanbert_kernels.tasks import checkpoints, launch, ranks

LOOKS, BETWEEN_LOOKS = 20, 0.05  # for the rank that has ended; seconds
SPOKEN = "spanbert_kernels/spoken"
_OF_GLOO = ("gloo", "Connection closed by peer", "Connection reset by peer", "Socket Timeout")


class RankLost(ConnectionError):
    """Another rank has ended or does not answer; the message says what the training can go on from."""


@contextlib.contextmanager
def in_a_sentence(output: Path, timeout: float) -> Iterator[None]:
    """While it lasts, what comes of the end of another rank is a `RankLost`, at one rank; the others end in silence.

    torchrun ends those that are left by SIGTERM, which is taken for the same.

    Args:
        output: the folder with checkpoints.
        timeout: seconds that ranks wait for each other.
    """
    if not ranks.several():
        yield
        return
    processes = _processes()

    def ended(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        raise SystemExit(_sentence(output, processes, "was told to end") if _speaks() else 1)

    before = signal.getsignal(signal.SIGTERM)
    handled = threading.current_thread() is threading.main_thread() and before is signal.SIG_DFL
    if handled:
        signal.signal(signal.SIGTERM, ended)
    try:
        yield
    except RuntimeError as error:
        if not _of_another_rank(error):
            raise
        if not _speaks():
            raise SystemExit(1) from error
        waited = any(words in str(error).lower() for words in ("timed out", "timeout"))
        what = f"had no answer within {timeout:g} s" if waited else "lost its connection to it"
        raise RankLost(_sentence(output, processes, what)) from error
    finally:
        if handled:
            signal.signal(signal.SIGTERM, before)


def _of_another_rank(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(words in str(error) for words in _OF_GLOO)


def _processes() -> list[tuple[str, int]]:
    """The machine and the number of each rank's process."""
    found: list[tuple[str, int]] = [("", 0)] * dist.get_world_size()
    dist.all_gather_object(found, (socket.gethostname(), os.getpid()))
    return found


def _speaks() -> bool:
    """Whether this rank is the first to say it; where torchrun keeps the store, it outlives every rank."""
    store = dist.distributed_c10d._get_default_store()
    with contextlib.suppress(RuntimeError):
        return bool(store.add(SPOKEN, 1) == 1)
    return True


def _ended(process: tuple[str, int]) -> bool:
    """Whether a process of this machine is no more."""
    host, number = process
    if host != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(number).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _sentence(output: Path, processes: list[tuple[str, int]], otherwise: str) -> str:
    gone: list[str] = []
    for _ in range(LOOKS):  # the connections of a process close before it is no more
        gone = [str(rank) for rank, process in enumerate(processes) if _ended(process)]
        if gone:
            break
        time.sleep(BETWEEN_LOOKS)
    names = f"rank {gone[0]} of {len(processes)} has" if len(gone) == 1 else f"ranks {', '.join(gone)} have"
    cause = f"{names} ended" if gone else f"another rank has ended or does not answer: rank {launch.rank()} {otherwise}"
    found = checkpoints.in_order(output)
    left = f"--resume goes on from {found[-1]}" if found else "there is no checkpoint yet: --save-steps makes some"
    return f"the training has ended, as {cause}; {left}"
