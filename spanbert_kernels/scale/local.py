"""Workers on this machine: this process, or several beside it, each with its own model and its share of the threads."""

from __future__ import annotations

import os
import pickle
import queue
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from spanbert_kernels.scale.encoder import Throughput
from spanbert_kernels.scale.processes import Channel, Process
from spanbert_kernels.scale.shards import ShardRecord
from spanbert_kernels.scale.units import Shard
from spanbert_kernels.scale.work import EncodingJob, Worker

Hear = Callable[[int, Throughput], None]  # the number of a worker, and what went through it so far
WANT, DONE, COUNTED, FAILED, ENDED = range(5)  # what a worker sends
BEAT = 64  # documents between two counts


def encode_here(job: EncodingJob, shards: Iterator[Shard], workers: int, hear: Hear) -> Iterator[ShardRecord]:
    """The records of the shards, in the order that they are finished.

    Args:
        job: what to do.
        shards: what to do it with; they are read as they are needed.
        workers: how many models work side by side; one is in this process.
        hear: of what went through each.

    Raises:
        WorkerDied: a worker is gone, and with it the others.
        CannotWrite: a file cannot be written.
    """
    first = next(shards, None)
    if first is None:
        return  # and no model is loaded
    shards = chain([first], shards)
    if workers > 1:
        yield from _beside(job, shards, workers, hear)
        return
    worker = Worker(job)
    try:
        hear(0, worker.counts)
        for record in worker.run(shards, lambda: hear(0, worker.counts)):
            hear(0, worker.counts)
            yield record
    finally:
        worker.end()


def _beside(job: EncodingJob, shards: Iterator[Shard], workers: int, hear: Hear) -> Iterator[ShardRecord]:
    told: queue.SimpleQueue[tuple[Process, Any]] = queue.SimpleQueue()
    threads = job.threads or max(1, (os.cpu_count() or 1) // workers)
    processes: list[Process] = []
    try:
        for number in range(workers):
            own = replace(job, threads=threads, device=_device(job.device, number))
            processes.append(Process(f"{__name__}:work", own, f"worker {number + 1}", lambda *each: told.put(each)))
        working = set(processes)
        while working:
            process, message = told.get()
            if message is None:
                if process in working:
                    raise process.how_it_ended()
                continue
            kind, value = message
            if kind == WANT:
                process.send(next(shards, None))
            elif kind == DONE:
                yield value
            elif kind == COUNTED:
                hear(processes.index(process), value)
            elif kind == ENDED:
                working.remove(process)
            else:
                raise value
    finally:
        for process in processes:
            process.end()


def _device(asked: str | None, number: int) -> str | None:
    """Each worker its GPU, where there are several."""
    if asked is not None:
        return asked
    import torch

    return f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else None


def work(job: EncodingJob, channel: Channel) -> None:
    """What a process beside does: it asks for shards until there are none."""
    told = 0

    def shards() -> Iterator[Shard]:
        channel.send((WANT, None))
        while (shard := channel.receive()) is not None:
            yield shard
            channel.send((WANT, None))

    def beat() -> None:
        nonlocal told
        if worker.counts.documents >= told + BEAT:
            told = worker.counts.documents
            channel.send((COUNTED, worker.counts))

    try:
        worker = Worker(job)
        channel.send((COUNTED, worker.counts))
        for record in worker.run(shards(), beat):
            channel.send((COUNTED, worker.counts))
            channel.send((DONE, record))
    except (BrokenPipeError, EOFError):
        raise
    except Exception as error:
        channel.send((FAILED, _sendable(error)))
    else:
        channel.send((ENDED, None))


def _sendable(error: Exception) -> Exception:
    """The error itself, if it survives being sent."""
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy
