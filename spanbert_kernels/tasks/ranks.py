"""The ranks of a training, processes that `launch` knows of: their group, and what all of them agree on."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import set_seed

from spanbert_kernels.tasks import launch

Value = TypeVar("Value")
_groups = itertools.count()


@contextlib.contextmanager
def joined(timeout: float) -> Iterator[None]:
    """While it lasts, the ranks are a group, if a launcher started this process; one that is there is left alone.

    Args:
        timeout: seconds that a rank waits for the others, after which it raises.
    """
    if not launch.launched() or dist.is_initialized():
        yield
        return
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # accelerate, which makes the group where there is none, gives it no timeout on a CPU; and the store still holds the
    # addresses of an earlier group, also of processes that torchrun has started others in the place of
    most = datetime.timedelta(seconds=timeout)
    store, rank, size = next(dist.rendezvous("env://", timeout=most))
    own = dist.PrefixStore(f"group/{launch.restarts()}/{next(_groups)}", store)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=most)
    try:
        yield
    finally:
        dist.destroy_process_group()


def several() -> bool:
    """Whether there is a group of more than this process."""
    return dist.is_initialized() and dist.get_world_size() > 1


def agreed(value: Value) -> Value:
    """What rank 0 has; every rank asks."""
    if not several():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gathered(value: Value) -> list[Value]:
    """What each rank has, at rank 0, and an empty list at others; every rank asks."""
    if not several():
        return [value]
    found: list[Any] | None = [None] * dist.get_world_size() if launch.rank() == 0 else None
    dist.gather_object(value, found)
    return found or []


def mean(value: Tensor) -> Tensor:
    """Of what each rank has; every rank asks."""
    if not several():
        return value
    found = value.clone()
    dist.all_reduce(found)
    return found / dist.get_world_size()


def wait() -> None:
    """Until every rank is here."""
    if several():
        dist.barrier()


def seed_own(*seed: int) -> None:
    """Seeds this rank's random numbers, of Python, numpy and torch: other ranks draw others."""
    (number,) = np.random.SeedSequence([*seed, launch.rank()]).generate_state(1)
    set_seed(int(number))
