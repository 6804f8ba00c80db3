"""Workloads and providers, and how a pair of them becomes something to run.

A suite is one file `bench_<suite>.py` with `SUITE = register(Suite(...))`: its table of workloads, its table of
providers (ours, eager PyTorch, the peers, floors), and how the inputs are made. To add a case, add a row to a table.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from goals import Goal, PeakGoal
from torch import Tensor

import spanbert_kernels

# Another commit's package is measured by the rules of this checkout, whose modules it may lack.
spanbert_kernels.__path__.append(str(Path(__file__).parent.parent / "spanbert_kernels"))

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"
Way = Callable[..., Tensor]


class Unavailable(Exception):
    """A provider cannot take a workload; the message says why and stands in the table."""


@dataclass(frozen=True)
class Work:
    """What a workload is made of, for floors and curves: sizes by name, bytes moved at least, operations at least."""

    axes: Mapping[str, float]
    bytes: int
    operations: int = 0


@dataclass(frozen=True)
class Workload:
    """A row of a suite's table.

    Attributes:
        options: what the suite's functions want to know, by name.
        seconds: to be spent on timing it; curves have many points and less of it.
        curve, scaling: the curve that it is a point of, and the axis of `Work` that changes along it.
        peaks: providers whose peak memory is measured, each in a fresh process, within `memory_limit` megabytes.
        error_goal: what ours may be off by at most, as a share of the largest value.
        quick: whether `--quick` runs it.
    """

    name: str
    direction: str = FORWARD
    dtype: torch.dtype = torch.float32
    options: Mapping[str, Any] = field(default_factory=dict)
    goals: Sequence[Goal] = ()
    peak_goal: PeakGoal | None = None
    error_goal: float | None = None
    peaks: Sequence[str] = ()
    memory_limit: float | None = None
    seconds: float = 3.0
    curve: str | None = None
    scaling: str | None = None
    quick: bool = False

    @property
    def id(self) -> str:
        """Unique within the suite."""
        return f"{self.name}, {self.direction}, {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Inputs:
    """What the ways of a workload take: tensors that gradients are taken of, and the rest, by name.

    `steady`, a factor of the gradient that comes in, is 0 for results next to a kink, where rounding decides what the
    gradient is.
    """

    leaves: tuple[Tensor, ...]
    given: Mapping[str, Any] = field(default_factory=dict)
    steady: Tensor | None = None


@dataclass(frozen=True)
class Prepared:
    """A way with leaves of its own, such as a padded batch, or a model's parameters, which the way finds by itself.

    `unpack` makes its results comparable. One that `accumulates` adds to its own copy of the leaves, call after call.
    `timed` is the way with what makes its results random, such as dropout, if it has that; `way` is without it.
    """

    way: Way
    leaves: tuple[Tensor, ...]
    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor
    parameters: bool = False
    accumulates: bool = False
    timed: Way | None = None


@dataclass(frozen=True)
class Provider:
    """Something a user could call. `build` makes a way of the leaves ready, or raises `Unavailable`.

    One that `compiles` takes its time in the first call; one that `converts` takes its time beforehand, and is left out
    of quick runs. `library`: the distribution whose code it is, if that is not torch.
    """

    build: Callable[[Workload, Inputs], Way | Prepared]
    kind: str = "peer"  # or ours, eager, floor
    backward: bool = True
    compiles: bool = False
    converts: bool = False
    library: str = "torch"


@dataclass(frozen=True)
class Suite:
    """One operation, or the encoder.

    Attributes:
        inputs: the inputs of a workload in a dtype; the same numbers whatever the dtype.
        reference: the provider that computes the result in float64; one that is not ours.
        yardsticks: other providers that are plain PyTorch: ours may be off as their error says, too.
    """

    name: str
    workloads: Sequence[Workload]
    providers: Mapping[str, Provider]
    inputs: Callable[[Workload, torch.dtype], Inputs]
    work: Callable[[Workload, Inputs], Work]
    reference: str
    yardsticks: tuple[str, ...] = ()

    def workload(self, id: str) -> Workload:
        return next(each for each in self.workloads if each.id == id)

    def providers_of(self, workload: Workload) -> dict[str, Provider]:
        """Those that the workload names in its options, or all; floors have no backward."""
        wanted = workload.options.get("providers", self.providers)
        found = {name: provider for name, provider in self.providers.items() if name in wanted}
        return found if workload.direction == FORWARD else {n: p for n, p in found.items() if p.kind != "floor"}


SUITES: dict[str, Suite] = {}


def register(suite: Suite) -> Suite:
    ids = [workload.id for workload in suite.workloads]
    assert len(set(ids)) == len(ids), f"two workloads of one name in {suite.name}"
    return SUITES.setdefault(suite.name, suite)


def load(name: str) -> Suite | None:
    """The suite of `bench_<name>.py`; None for one that measures by itself."""
    importlib.import_module(f"bench_{name}")
    return SUITES.get(name)


def names() -> list[str]:
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


@dataclass(frozen=True)
class Ready:
    """A provider's way on a workload: `timed()` is what is timed, `results(run())` what is compared.

    Unless it is `repeatable`, only the first call's result can be compared. `output()` is a model's forward alone.
    """

    run: Callable[[], tuple[Tensor, ...]]
    results: Callable[[tuple[Tensor, ...]], Tensor]
    timed: Callable[[], tuple[Tensor, ...]]
    output: Callable[[], Tensor] | None
    repeatable: bool = True


def ready(suite: Suite, workload: Workload, name: str, dtype: torch.dtype | None = None) -> Ready:
    """A provider on a workload, in the workload's dtype or another."""
    provider = suite.providers[name]
    if workload.direction != FORWARD and not provider.backward:
        raise Unavailable("has no backward")
    inputs = suite.inputs(workload, dtype or workload.dtype)
    built = provider.build(workload, inputs)
    prepared = built if isinstance(built, Prepared) else Prepared(built, inputs.leaves)

    def results(found: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([prepared.unpack(tensor).flatten() for tensor in found])

    calls = _calls(prepared, workload.direction, inputs.steady)
    run = calls(prepared.way)
    output = (prepared.timed or prepared.way) if prepared.parameters else None
    return Ready(run, results, calls(prepared.timed) if prepared.timed else run, output, not prepared.accumulates)


def _calls(
    prepared: Prepared, direction: str, steady: Tensor | None
) -> Callable[[Way], Callable[[], tuple[Tensor, ...]]]:
    """How a way is called in a direction."""
    leaves = prepared.leaves
    if direction == FORWARD:
        given = () if prepared.parameters else leaves

        def forward(way: Way) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return (way(*given),)

        return lambda way: partial(forward, way)
    if not prepared.parameters:
        leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    given = () if prepared.parameters else leaves
    output = prepared.way(*given)
    generator = torch.Generator().manual_seed(1)
    # Of the packed rows, then laid out as the output is: every provider gets the same gradient.
    shape = prepared.unpack(output.detach()).shape
    incoming = torch.randn(shape, generator=generator).to(output.dtype)
    if steady is not None:
        incoming *= steady
    if incoming.shape != output.shape:
        index = prepared.unpack(torch.arange(output.numel()).view(output.shape))
        incoming = output.new_zeros(output.numel()).index_put_((index.flatten(),), incoming.flatten())
        incoming = incoming.view(output.shape)
    if direction == BACKWARD:
        backward = partial(_gradients, output, leaves, incoming, retain_graph=True)
        return lambda way: backward
    return lambda way: lambda: _gradients(way(*given), leaves, incoming)


def _gradients(output: Tensor, leaves: Sequence[Tensor], incoming: Tensor, **options: bool) -> tuple[Tensor, ...]:
    """Of the leaves that the way uses; one that leaves out another leaf gives fewer numbers, and the gate stops it."""
    found = torch.autograd.grad(output, leaves, incoming, allow_unused=True, **options)
    return tuple(gradient for gradient in found if gradient is not None)


def deviation(found: Tensor, exact: Tensor) -> float:
    """Relative to the norm: a single number may differ where rounding decides on the side of a kink."""
    size = float(exact.double().norm())
    return float((found.double() - exact.double()).norm()) / size if size else math.inf
