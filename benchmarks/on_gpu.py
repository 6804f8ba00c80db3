"""What the GPU suites share: times over cold caches, peaks of the allocator, and rows like those of the CPU suites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from measuring import LARGEST_DEVIATION, floor_of
from registry import deviation
from torch import Tensor

DTYPE, NAME = torch.bfloat16, "bfloat16"


def headlines_first(names: Iterable[str], headlines: Sequence[str]) -> list[Any]:
    """A suite's workloads for pytest: those that a short check measures before all others, then the rest.

    Example:
        >>> [each if isinstance(each, str) else each.values[0] for each in headlines_first(["a", "b", "c"], ["c"])]
        ['c', 'a', 'b']
    """
    marked = [pytest.param(name, marks=pytest.mark.headline) for name in headlines]
    return [*marked, *(name for name in names if name not in headlines)]


def quartiles(way: Callable[[], object]) -> list[float]:
    """Milliseconds: the lower quartile, the median and the upper one, as triton.testing.do_bench takes them."""
    import triton

    found: list[float] = triton.testing.do_bench(way, warmup=25, rep=100, quantiles=[0.25, 0.5, 0.75])
    return found


def ceilings() -> dict[str, float]:
    """What this GPU does at best, measured in this run: bytes of a copy, read and written; matrix products."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    found = {"copy, GB/s": 2 * source.numel() / quartiles(lambda: target.copy_(source))[1] / 1e6}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(8192, 8192, device="cuda").to(dtype)
        product = quartiles(lambda a=a: a @ a)[1]
        found[f"{str(dtype).removeprefix('torch.')}, GFLOP/s"] = 2 * 8192**3 / product / 1e6
    return found


def replayed(way: Callable[[], object]) -> float | str:
    """Milliseconds of a replay of the captured graph, or why it cannot be captured."""
    stream = torch.cuda.Stream()
    try:
        with torch.cuda.stream(stream):
            way()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            way()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return quartiles(graph.replay)[1]


def peak_of(way: Callable[[], object]) -> float:
    """Megabytes that the allocator hands out during a call, beyond what it had handed out before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


@dataclass
class Comparison:
    """The row of a workload while its ways are measured against a reference, one after the other."""

    suite: str
    workload: str
    direction: str
    axes: Mapping[str, float]
    bytes: float
    operations: float
    ceilings: Mapping[str, float]
    reference: Tensor
    providers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def measure(
        self,
        name: str,
        kind: str,
        way: Callable[[], Tensor],
        graph: bool = False,
        timed: Callable[[], object] | None = None,
        **more: Any,
    ) -> None:
        """A way whose result is compared here; `kind` is ours, eager or peer; `timed`, if not the way itself."""
        result = way()
        off = deviation(result, self.reference)
        if not off <= LARGEST_DEVIATION[DTYPE]:
            self.refuse(name, kind, f"computes something else: {off:.2g} of the norm")
            return
        error = float((result.double() - self.reference.double()).abs().max())
        del result
        timed = timed or way
        low, median, high = quartiles(timed)
        self.providers[name] = {
            "kind": kind,
            "milliseconds": median,
            "quartiles": [low, high],
            "rounds": 0,  # as many as fit into a tenth of a second
            "error": error,
            "peak": peak_of(timed),
            "share": self.floor / median,
            "ran": name,
            **more,
        }
        if graph:
            self.providers[name]["replayed"] = replayed(timed)

    def refuse(self, name: str, kind: str, reason: str) -> None:
        self.providers[name] = {"kind": kind, "unavailable": reason}

    @property
    def floor(self) -> float:
        return floor_of(self.bytes, self.operations, NAME, self.ceilings)

    def row(self) -> dict[str, Any]:
        """The fastest of ours is called so; our other backends stand beside it."""
        mine = {n: p for n, p in self.providers.items() if p["kind"] == "ours" and "milliseconds" in p}
        assert mine, f"no backend of ours took the call: {self.providers}"
        best = min(mine, key=lambda name: mine[name]["milliseconds"])
        others = {}
        for name, entry in self.providers.items():
            if entry["kind"] != "ours":
                others[name] = entry
            elif name != best:
                others[f"ours, {name}"] = entry | {"kind": "peer"}
        return {
            "suite": self.suite,
            "workload": self.workload,
            "direction": self.direction,
            "dtype": NAME,
            "device": "cuda",
            "axes": dict(self.axes),
            "scaling": None,
            "curve": None,
            "bytes": int(self.bytes),
            "operations": int(self.operations),
            "floor": self.floor,
            "providers": {"ours": self.providers[best], **others},
            "goals": [],
        }
