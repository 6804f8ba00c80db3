"""Span layers of other packages: a module a package, whose CASES say what is measured and what was asked of it.

To add a package: a module here, named as its integration, with `CASES`. `bench_span_layers.py` makes rows of them, and
`docs/span-packages.md` takes the table of its section from the record.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from registry import BOTH, FORWARD
from torch import Tensor

# Also the cases whose original takes more memory, or longer, than a run of all suites should.
LARGE = bool(os.environ.get("SPANBERT_KERNELS_BENCH_LARGE"))


@dataclass(frozen=True)
class Side:
    """One way of a case, ready to run: a function without arguments, and the tensors that gradients are taken of.

    Every side has tensors of its own, which begin with the same numbers and come in the same order.
    """

    way: Callable[[], Tensor]
    leaves: Sequence[Tensor]


Build = Callable[[torch.dtype], Side]


@dataclass(frozen=True)
class SpanLayerCase:
    """What is measured of a package.

    Attributes:
        name: sizes in words; unique in the package.
        replaces: the dotted path of what ours stands for.
        original, ours: the package's own way, as its users run it, and ours. They may raise `registry.Unavailable`.
        goal: how many times faster ours must be, forward and backward.
        peak: at most this share of the original's peak memory.
        peaks: whether peak memory is measured, if nothing is asked of it.
        exact: the original for float64, where it must be computed in pieces to fit.
        steady: a factor of the gradient that comes in, 0 for results next to a kink, where rounding decides what it is.
        others: further ways that a user could take.
        axes: sizes by name, for curves.
        operations: at least so many in a forward.
        large: whether it is left out unless `SPANBERT_KERNELS_BENCH_LARGE` is set.
    """

    name: str
    replaces: str
    original: Build
    ours: Build
    goal: float | None = None
    peak: float | None = None
    peaks: bool = False
    exact: Build | None = None
    steady: Callable[[], Tensor] | None = None
    others: Mapping[str, Build] = field(default_factory=dict)
    axes: Mapping[str, float] = field(default_factory=dict)
    operations: int = 0
    directions: Sequence[str] = (FORWARD, BOTH)
    dtypes: Sequence[torch.dtype] = (torch.float32,)
    seconds: float = 1.5
    quick: bool = False
    large: bool = False


def all_cases() -> dict[str, dict[str, SpanLayerCase]]:
    """The cases of every package by their names, those that are too large left out."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        cases: Sequence[SpanLayerCase] = importlib.import_module(f"span_layers.{name}").CASES
        found[name] = {case.name: case for case in cases if LARGE or not case.large}
    return found
