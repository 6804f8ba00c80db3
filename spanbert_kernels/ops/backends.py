"""Which backend serves a call: chosen by the user, or the first that can take it.

A backend answers "can you take this call, and if not, why?". One that the user chose and that cannot raises with the
reason; in an automatic choice the next one is taken, with one warning.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

NAMES = ("cuda", "triton", "cpu", "eager")
DEVICES = {"cuda": "cuda", "triton": "cuda", "cpu": "cpu"}
CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_forced: str | None = None
_records: list[list[tuple[str, str]]] = []
_registry: dict[str, tuple[str, ...]] = {}


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot take the call; the text says why."""


@dataclass(frozen=True)
class Operation:
    """An operation's name and the backends that have it, in order of preference; `eager` always comes last.

    Example:
        >>> Operation("span_gather", ("eager",)).choose(torch.zeros(2, 3), None)
        'eager'
    """

    name: str
    backends: tuple[str, ...]

    def __post_init__(self) -> None:
        _registry[self.name] = self.backends

    def choose(self, tensor: torch.Tensor, wish: str | None) -> str:
        """The backend for a call on `tensor`. `wish` (or `use`, or SPANBERT_KERNELS_BACKEND) must be obeyed.

        Raises:
            ValueError: the operation has no backend of that name.
            BackendUnavailable: it has, but it cannot take this call.
        """
        chosen = _choose(self.name, self.backends, tensor.device.type, tensor.dtype, _wish(wish))
        _note(self.name, chosen)
        return chosen


@torch.compiler.assume_constant_result
def _wish(wish: str | None) -> str | None:
    return wish or _forced or os.environ.get("SPANBERT_KERNELS_BACKEND") or None


@torch.compiler.assume_constant_result
def _note(name: str, backend: str) -> None:
    for record in _records:
        record.append((name, backend))


@torch.compiler.assume_constant_result
def _choose(name: str, backends: tuple[str, ...], device: str, dtype: torch.dtype, wish: str | None) -> str:
    if wish is not None:
        if wish not in backends:
            raise ValueError(f"{name} has no backend {wish!r}; it has {', '.join(backends)}")
        reason = refusal(wish, device, dtype)
        if reason is not None:
            raise BackendUnavailable(f"{name}: backend {wish!r} cannot take this call: {reason}")
        return wish
    for backend in backends:
        reason = refusal(backend, device, dtype)
        if reason is None:
            return backend
        if DEVICES.get(backend) == device:
            _warn_once(f"{name}: backend {backend!r} is passed over: {reason}")
    return "eager"


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=5)


def refusal(backend: str, device: str, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot take tensors of this device and dtype, or None when it can.

    Example:
        >>> refusal("cpu", "cuda", torch.float32)
        'it takes tensors on cpu, not on cuda'
    """
    if backend == "eager":
        return None
    if backend not in DEVICES:
        return f"unknown backend; there are {', '.join(NAMES)}"
    if DEVICES[backend] != device:
        return f"it takes tensors on {DEVICES[backend]}, not on {device}"
    reason = _LOADERS[backend]()
    if reason is None and dtype not in CPU_DTYPES:
        return f"it takes {', '.join(str(d).removeprefix('torch.') for d in CPU_DTYPES)}, not {dtype}"
    return reason


def _load_cpu() -> str | None:
    from spanbert_kernels.ops import library

    return library.load_cpu()


def _not_built() -> str | None:
    return "this release has no kernels for it yet"


_LOADERS: dict[str, Callable[[], str | None]] = {"cpu": _load_cpu, "cuda": _not_built, "triton": _not_built}


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Force a backend for every operation called inside.

    Raises:
        ValueError: there is no backend of that name.

    Example:
        >>> with use("eager"), record() as calls:
        ...     _ = Operation("span_gather", ("cpu", "eager")).choose(torch.zeros(1), None)
        >>> calls
        [('span_gather', 'eager')]
    """
    global _forced
    if backend not in NAMES:
        raise ValueError(f"no backend {backend!r}; there are {', '.join(NAMES)}")
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


@contextmanager
def record() -> Iterator[list[tuple[str, str]]]:
    """Collect (operation, backend) of every call inside, in order: which path really ran."""
    calls: list[tuple[str, str]] = []
    _records.append(calls)
    try:
        yield calls
    finally:
        # By identity: two records may hold equal lists.
        _records[:] = [record for record in _records if record is not calls]


def report() -> dict[str, dict[str, str | None]]:
    """For every backend and operation: None if it works here, else the reason why not.

    Example:
        >>> report()["eager"]["span_pool"] is None
        True
    """
    import spanbert_kernels.ops  # noqa: F401  (fills the registry)

    table: dict[str, dict[str, str | None]] = {}
    for backend in NAMES:
        device = DEVICES.get(backend, "cpu")
        table[backend] = {
            name: refusal(backend, device, torch.float32) if backend in backends else "no kernel of this kind yet"
            for name, backends in sorted(_registry.items())
        }
    return table
