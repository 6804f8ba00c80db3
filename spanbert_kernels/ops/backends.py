"""Which backend serves a call: chosen by the user, or the first that can take it.

A backend answers "can you take this call, and if not, why?". One that the user chose and that cannot raises with the
reason; in an automatic choice the next one is taken, with one warning.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from typing_extensions import deprecated

from spanbert_kernels.ops import checks, library
from spanbert_kernels.ops.choices import BACKENDS, Backend

VARIABLE = "SPANBERT_KERNELS_BACKEND"
DEVICES = {"cuda": "cuda", "triton": "cuda", "cpu": "cpu"}
DTYPES = {
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cpu": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
}

# Who has kernels of a kind of operation, in the order in which they are preferred.
Order = tuple[Backend, ...]
Reasons = tuple[tuple[Backend, str], ...]
ROWS: Order = ("cuda", "triton", "cpu", "eager")  # rows are moved and added: C++ moves 16 bytes a load
PROJECTED: Order = ("triton", "cpu", "eager")  # most of the time is a product of PyTorch's
ATTENTION: Order = ("triton", "cuda", "cpu", "eager")  # CUDA's float32 goes row by row, without tensor cores

MOSTLY_PRODUCTS: tuple[Backend, str] = (
    "triton",
    "most of the time is PyTorch's product, and the rest moves too few bytes for a second kernel to gain",
)

_forced: Backend | None = None
_registry: dict[str, tuple[Backend, ...]] = {}
_operations: dict[str, Operation] = {}
_own_loaders: dict[tuple[str, str], Callable[[], str | None]] = {}


@dataclass
class _Entry:
    """A call that chose a backend, and the one before it; the first of all stands for no call.

    A compiled function can put one more in front, whatever there is; a list that it appends to, it looks at, and is
    compiled again for each length.
    """

    before: _Entry | None = None
    name: str = ""
    backend: Backend = "eager"


@dataclass
class _Log:
    """The calls of compiled and other functions since `collect`, and the lists of `record` that they belong to."""

    recording: bool = False
    latest: _Entry = field(default_factory=_Entry)
    records: list[list[tuple[str, Backend]]] = field(default_factory=list)

    def collect(self) -> None:
        calls: list[tuple[str, Backend]] = []
        entry, self.latest = self.latest, _Entry()
        while entry.before is not None:
            calls.append((entry.name, entry.backend))
            entry = entry.before
        for record in self.records:
            record.extend(reversed(calls))


_log = _Log()


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot take the call; the text says why.

    Example:
        >>> from spanbert_kernels import ops
        >>> ops.span_pool(torch.ones(3, 2), torch.tensor([[0, 1]]), ["mean"], backend="cuda")
        Traceback (most recent call last):
        ...
        spanbert_kernels.ops.backends.BackendUnavailable: span_pool: backend 'cuda' cannot take this call: ...
    """


@dataclass(frozen=True)
class Operation:
    """An operation's name and the backends that have it, in order of preference; `eager` always comes last.

    Args:
        name: the operation's name.
        backends: those that have it; the first that can take a call gets it.
        loaders: for a backend whose code for this operation is not in that backend's library, what loads it: a function
            that returns None, or the reason why not.
        summary: what it computes, for the table in the docs.
        instead: who serves a call where a backend has no kernel, and why that is as good.

    Example:
        >>> from spanbert_kernels.ops.span_gather.operators import OPERATION
        >>> OPERATION.choose(torch.zeros(2, 3), "eager")
        'eager'
    """

    name: str
    backends: tuple[Backend, ...]
    loaders: Mapping[str, Callable[[], str | None]] = field(default_factory=dict, compare=False)
    summary: str = ""
    instead: tuple[Backend, str] | None = None

    def __post_init__(self) -> None:
        _registry[self.name] = self.backends
        _operations[self.name] = self
        _own_loaders.update({(self.name, backend): load for backend, load in self.loaders.items()})

    def choose(self, tensor: torch.Tensor, wish: Backend | None, lacking: Reasons = ()) -> Backend:
        """The backend for a call on `tensor`. `wish` (or `use`, or SPANBERT_KERNELS_BACKEND) must be obeyed.

        Args:
            tensor: one of the call's.
            wish: the backend that the call names, if any.
            lacking: backends that have the operation, but cannot take this call, each with the reason.

        Raises:
            ValueError: the operation has no backend of that name.
            BackendUnavailable: it has, but it cannot take this call.
        """
        # `_forced` and `_log.recording` are read here, where torch.compile sees it and compiles again when they change.
        wish = _forced if wish is None else wish
        chosen = _choose(self.name, self.backends, tensor.device.type, tensor.dtype, wish, lacking)
        if _log.recording:
            _log.latest = _Entry(_log.latest, self.name, chosen)
            if not torch.compiler.is_compiling():
                _log.collect()
        return chosen


@checks.constant_in_graphs
def _choose(
    name: str, backends: Order, device: str, dtype: torch.dtype, wish: Backend | None, lacking: Reasons
) -> Backend:
    said = ""
    if wish is None and (value := os.environ.get(VARIABLE)):
        wish, said = cast(Backend, value), f"{VARIABLE}={value}: "
    if wish is not None:
        if wish not in backends:
            raise ValueError(f"{said}{name} has no backend {wish!r}; it has {', '.join(backends)}")
        reason = refusal(wish, device, dtype, name) or dict(lacking).get(wish)
        if reason is not None:
            raise BackendUnavailable(f"{said}{name}: backend {wish!r} cannot take this call: {reason}")
        return _imported(name, wish)
    for backend in backends:
        if DEVICES.get(backend, device) != device:
            continue
        reason = refusal(backend, device, dtype, name) or dict(lacking).get(backend)
        if reason is None:
            return _imported(name, backend)
        if backend in DEVICES:
            _warn_once(f"{name}: backend {backend!r} is passed over: {reason}")
    return "eager"


def _imported(name: str, backend: Backend) -> Backend:
    """The backend, its kernels imported: Triton's stand in a module of their own."""
    if backend == "triton":
        importlib.import_module(f"spanbert_kernels.ops.{name}.triton")
    return backend


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=5)


def refusal(backend: str, device: str, dtype: torch.dtype, operation: str = "") -> str | None:
    """Why `backend` cannot take tensors of this device and dtype (for this operation), or None when it can.

    Args:
        backend: one of `BACKENDS`; of any other name the answer is that there is none.
        device: a device's type, `"cpu"` or `"cuda"`.
        dtype: of the tensors.
        operation: the operation's name, for one whose code does not lie with that of the others (`prune_spans`).

    Returns:
        The reason in a line, or None. Asking loads the backend's library.

    Example:
        >>> refusal("cpu", "cuda", torch.float32)
        'it takes tensors on cpu, not on cuda'
    """
    if backend == "eager":
        return None
    if backend not in DEVICES:
        return f"unknown backend; there are {', '.join(BACKENDS)}"
    # In its interpreter, which is asked for by hand and never chosen, Triton takes CPU tensors as well.
    interpreted = backend == "triton" and device == "cpu" and library.interpreted()
    if DEVICES[backend] != device and not interpreted:
        return f"it takes tensors on {DEVICES[backend]}, not on {device}"
    reason = _own_loaders.get((operation, backend), _LOADERS[backend])()
    if reason is None and dtype not in DTYPES[backend]:
        return f"it takes {', '.join(str(d).removeprefix('torch.') for d in DTYPES[backend])}, not {dtype}"
    return reason


_LOADERS: dict[str, Callable[[], str | None]] = {
    "cpu": library.load_cpu,
    "cuda": library.load_cuda,
    "triton": library.load_triton,
}


def without_kernels(operation: str, device: str, dtype: torch.dtype) -> str | None:
    """Why no kernel of an operation would take tensors of this device and dtype, so that `eager` runs.

    Args:
        operation: its name.
        device: a device's type, `"cpu"` or `"cuda"`.
        dtype: of the tensors.

    Returns:
        The reason in a line; None where a kernel takes them, and where somebody asked for a backend.

    Example:
        >>> without_kernels("document_attention", "meta", torch.float32)
        'there are none for meta'
    """
    if asked() is not None:
        return None
    able = [backend for backend in _registry[operation] if DEVICES.get(backend) == device]
    reasons = {backend: refusal(backend, device, dtype, operation) for backend in able}
    if None in reasons.values():
        return None
    return "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items()) or f"there are none for {device}"


def asked() -> Backend | None:
    """The backend that `use` or SPANBERT_KERNELS_BACKEND asks for.

    Returns:
        Its name, or None where nobody asks for one.

    Example:
        >>> with use("eager"):
        ...     asked()
        'eager'
    """
    return _forced or cast(Backend | None, os.environ.get(VARIABLE) or None)


def is_recorded() -> bool:
    """Whether a `record` wants to know of every call.

    Returns:
        True inside of one.

    Example:
        >>> with record():
        ...     is_recorded()
        True
    """
    return _log.recording


@contextmanager
def use(backend: Backend) -> Iterator[None]:
    """Force a backend for every operation called inside, where the call itself names none.

    A function that torch.compile has compiled is compiled once more for it. The environment variable
    SPANBERT_KERNELS_BACKEND does the same for a whole process, and counts less; a compiled function keeps the value
    that it was compiled under.

    Args:
        backend: `"cuda"`, `"triton"`, `"cpu"` or `"eager"`. An operation that lacks it raises a `ValueError`, one that
            has it and cannot run it here a `BackendUnavailable`.

    Raises:
        ValueError: there is no backend of that name.

    Example:
        >>> from spanbert_kernels import ops
        >>> with use("eager"), record() as calls:
        ...     _ = ops.span_pool(torch.ones(3, 2), torch.tensor([[0, 1]]), ["mean"])
        >>> calls
        [('span_pool', 'eager')]
    """
    global _forced
    if backend not in BACKENDS:
        raise ValueError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


@contextmanager
def record() -> Iterator[list[tuple[str, Backend]]]:
    """Collect (operation, backend) of every call inside, in order: which path really ran.

    A function that torch.compile has compiled is compiled once more to tell; what it calls is in the list when the
    block ends, or when an operation outside compiled functions is called.

    Returns:
        A list that fills, of pairs (operation, backend).

    Example:
        >>> from spanbert_kernels import ops
        >>> with record() as calls:
        ...     _ = ops.anchor_indices(torch.tensor([0, 3]))  # it has no kernel, and no choice
        ...     _ = ops.span_pool(torch.ones(3, 2), torch.tensor([[0, 1]]), ["mean"], backend="eager")
        >>> calls
        [('span_pool', 'eager')]
    """
    calls: list[tuple[str, Backend]] = []
    _log.collect()
    _log.records.append(calls)
    _log.recording = True
    try:
        yield calls
    finally:
        _log.collect()
        # By identity: two records may hold equal lists.
        _log.records = [record for record in _log.records if record is not calls]
        _log.recording = bool(_log.records)


def operations() -> list[Operation]:
    """All operations.

    Returns:
        A list of `Operation`, ordered by name.

    Example:
        >>> "span_pool" in [each.name for each in operations()]
        True
    """
    import spanbert_kernels.ops  # noqa: F401  (fills the registry)

    return [each for _, each in sorted(_operations.items()) if each.summary]


def refusals() -> dict[Backend, dict[str, str | None]]:
    """For every backend and operation: None if it works here, else the reason why not.

    Returns:
        `{backend: {operation: reason or None}}`, for float32 tensors on the backend's own device. Asking loads every
        library.

    Example:
        >>> refusals()["eager"]["span_pool"] is None
        True
    """
    import spanbert_kernels.ops  # noqa: F401  (fills the registry)

    table: dict[Backend, dict[str, str | None]] = {}
    for backend in BACKENDS:
        device = DEVICES.get(backend, "cpu")
        table[backend] = {
            name: refusal(backend, device, torch.float32, name) if backend in backends else "no kernel of this kind yet"
            for name, backends in sorted(_registry.items())
        }
    return table


@deprecated("backends.report is called backends.refusals")
def report() -> dict[Backend, dict[str, str | None]]:
    """`refusals` by its former name.

    Returns:
        What `refusals` returns.

    Example:
        >>> report()["eager"]["span_pool"] is None
        True
    """
    return refusals()
