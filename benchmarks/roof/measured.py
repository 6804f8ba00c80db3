"""What the rows take on a GPU that is there: each kernel by the profiler, over cold caches."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .workloads import PreparedCall

REPEATS = 7
FLUSHED = 2**28  # bytes, several times what a cache holds
FLUSH = "bitwise_not"  # in the name of the kernel that does it; nothing else here is called so


class _Drawn(TorchFunctionMode):
    """Memory that is handed out holds random numbers: zeros and what is left there take less power."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.empty, torch.empty_like) and result.is_floating_point() and result.is_cuda:
            with torch.no_grad():
                result.detach().normal_()
        return result


@contextmanager
def on_the_gpu() -> Iterator[None]:
    """New tensors lie on the GPU and hold something."""
    with torch.device("cuda"), _Drawn():
        yield


def by_call(kernels: Sequence[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """The kernels of each call, which follow that which empties the caches.

    Example:
        >>> by_call([("bitwise_not", 9.0), ("a", 1.0), ("b", 2.0), ("bitwise_not", 9.0), ("a", 3.0), ("b", 2.0)])
        [[('a', 1.0), ('b', 2.0)], [('a', 3.0), ('b', 2.0)]]
    """
    calls: list[list[tuple[str, float]]] = []
    for name, time in kernels:
        if FLUSH in name:
            calls.append([])
        elif calls:
            calls[-1].append((name, time))
    return calls


def together(calls: Sequence[Sequence[tuple[str, float]]]) -> dict[str, Any]:
    """The median of the calls, and of each of their kernels, in microseconds.

    Raises:
        ValueError: the calls did not launch the same.

    Example:
        >>> together([[("a", 1.0), ("b", 2.0)], [("a", 3.0), ("b", 2.0)], [("a", 2.0), ("b", 9.0)]])
        {'measured': 5.0, 'kernels': [['a', 2.0], ['b', 2.0]]}
    """
    names = [[name for name, _ in call] for call in calls]
    if not names or any(each != names[0] for each in names):
        raise ValueError(f"calls launched {sorted({len(each) for each in names})} kernels, not the same ones")
    kernels = [
        [name, round(statistics.median(call[i][1] for call in calls), 2)] for i, (name, _) in enumerate(calls[0])
    ]
    whole = statistics.median(sum(time for _, time in call) for call in calls)
    return {"measured": round(whole, 2), "kernels": kernels}


def profiled(run: Callable[[], object]) -> list[tuple[str, float]]:
    """All kernels of some calls in their order, each with its microseconds; before each call the caches are emptied."""
    from torch.profiler import ProfilerActivity, profile

    flushed = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(REPEATS):
            flushed.bitwise_not_()
            run()
        torch.cuda.synchronize()
    events = [each for each in found.events() if each.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda each: each.time_range.start)
    return [(each.name, each.time_range.elapsed_us()) for each in events]


def measure(prepare: Callable[[], PreparedCall]) -> dict[str, Any]:
    """A row's microseconds: of its kernels together, of each, and from the call's first to its last (`call`).

    What lies between `measured` and `call` is the host's time, where it is the slower.
    """
    import triton

    with on_the_gpu():
        prepared = prepare()
    for _ in range(3):
        prepared.run()
    found = together(by_call(profiled(prepared.run)))
    call = 1e3 * triton.testing.do_bench(prepared.run, warmup=5, rep=30, return_mode="median")
    return {**found, "call": round(call, 2)}
