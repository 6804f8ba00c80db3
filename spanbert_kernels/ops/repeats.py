"""Calls that repeat: the layers of a batch call an operator again and again, on other tensors that are laid out alike.

What the first of such calls found out is kept with the batch's plan: the backend that passed all checks, and what its
implementation in Triton did, which tensors it made and which kernels it launched on what. The others do the same
again, without asking. An implementation whose Python depends on the values of tensors must not be called so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from spanbert_kernels.ops import backends
from spanbert_kernels.ops.choices import Backend

Key = tuple[Any, ...]
Step = Callable[[list[Any]], None]
MOST = 256  # calls that a plan keeps; one that has more is not used for the layers of a batch
EMPTY = {torch.ops.aten.empty, torch.ops.aten.new_empty, torch.ops.aten.empty_like}

_recording = threading.local()


class Repeats:
    """What a plan keeps of calls, by what they depend on. Copies and pickles of a plan begin anew.

    Attributes:
        work: the plan's own NamedTuple among the arguments, which is the same in all calls.
        checked: what checks of a public function came to.
        tapes: what an operator did, None for what cannot be done again.
    """

    def __init__(self) -> None:
        self.work: Any = None
        self.checked: dict[Key, Any] = {}
        self.tapes: dict[Key, Tape | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Repeats, ()

    def keep(self, key: Key, found: Any) -> None:
        """Note what checks came to."""
        if len(self.checked) >= MOST:
            self.checked.clear()
        self.checked[key] = found

    def run(self, name: str, key: Key | None, function: Callable[..., Any], values: Sequence[Any]) -> Any:
        """`function(*values)`, its Python done once for all calls of the same key.

        Args:
            name: the operator's.
            key: what the values depend on but for the tensors themselves; by default made of them.
            function: makes tensors and launches kernels by `start`, or calls PyTorch.
            values: tensors, numbers, NamedTuples of them.
        """
        key = (name, *map(self._described, values)) if key is None else (name, *key)
        if key not in self.tapes:
            if len(self.tapes) >= MOST:
                self.tapes.clear()
            result, self.tapes[key] = record(function, values, self.work)
            return result
        tape = self.tapes[key]
        return function(*values) if tape is None else tape.run(values)

    def _described(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return layout(value)
        if value is self.work:
            return None
        if isinstance(value, (tuple, list)):
            return tuple(map(self._described, value))
        return value


def layout(tensor: Tensor | None) -> Key | None:
    """All that launches depend on of a tensor beside its address."""
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() & 15


def key_of(name: str, backend: Backend | None, options: Any, *tensors: Any) -> Key | None:
    """What a call depends on of some tensors, of its own choice of a backend and of everybody's; None where it must
    not be done as one before.
    """
    if not unseen() or backends.is_recorded():
        return None
    for tensor in tensors:
        if tensor is not None and type(tensor) is not Tensor:
            return None
    wish = backends.asked() if backend is None else backend
    return name, wish, options, *map(layout, tensors)


def unseen() -> bool:
    """Whether nobody looks at the operators that a call is made of: a compiler, a transform, a mode, a profiler."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd._profiler_enabled()
        or torch._C._get_tracing_state() is not None
    )


class Tape:
    """The steps of a call.

    Attributes:
        places: of the tensors among the arguments: the argument's and, in a NamedTuple, the field's.
        steps: each takes all tensors so far and adds its own.
        results: the places of the results among all tensors, in a tuple or the only one.
        device: where kernels are launched.
        work: the plan's own, kept for the addresses in it.
    """

    def __init__(
        self,
        places: list[tuple[int, int | None]],
        steps: list[Step],
        results: tuple[int, ...] | int,
        device: torch.device,
        work: Any,
    ) -> None:
        self.places, self.steps, self.results, self.device, self.work = places, steps, results, device, work

    def run(self, values: Sequence[Any]) -> Any:
        found = [values[place] if field is None else values[place][field] for place, field in self.places]
        if self.device.type == "cuda" and torch.cuda.current_device() != self.device.index:
            with torch.cuda.device(self.device):
                self._repeat(found)
        else:
            self._repeat(found)
        results = self.results
        return found[results] if isinstance(results, int) else tuple([found[place] for place in results])

    def _repeat(self, found: list[Any]) -> None:
        for step in self.steps:
            step(found)


def record(function: Callable[..., Any], values: Sequence[Any], work: Any) -> tuple[Any, Tape | None]:
    """`function(*values)`, and how to do it again, if that is possible."""
    places: list[tuple[int, int | None]] = []
    tensors: list[Tensor] = []
    for place, value in enumerate(values):
        fields = enumerate(value) if isinstance(value, tuple) and value is not work else ()
        leaves: list[tuple[int | None, Any]] = [(None, value), *fields]
        places += [(place, field) for field, leaf in leaves if isinstance(leaf, Tensor)]
        tensors += [leaf for _, leaf in leaves if isinstance(leaf, Tensor)]
    recorder = _Recorder(tensors, work)
    _recording.recorder = recorder
    try:
        with recorder:
            result = function(*values)
    finally:
        _recording.recorder = None
    found = recorder.slot(result) if isinstance(result, Tensor) else tuple(map(recorder.slot, result))
    if not recorder.fits or None in (found if isinstance(found, tuple) else (found,)):
        return result, None
    return result, Tape(places, recorder.steps, found, tensors[0].device, work)  # type: ignore[arg-type]


def start(kernel: Any, *grid: int) -> Callable[..., None]:
    """`kernel[grid]` for arguments by name, in a way that can be repeated."""

    def launch(**arguments: Any) -> None:
        recorder = getattr(_recording, "recorder", None)
        if recorder is None:
            kernel[grid](**arguments)
        else:
            with _disable_current_modes():  # the interpreter calls PyTorch
                compiled = kernel[grid](**arguments)
            recorder.launched(kernel, grid, arguments, compiled)

    return launch


class Launched(NamedTuple):
    """A launch.

    Attributes:
        again: does it again, on `values`, or others that are laid out like them.
        values: the kernel's arguments, in order.
        compiled: whether `again` takes addresses in the place of tensors, in plain tuples, and the stream.
    """

    again: Callable[..., None]
    values: tuple[Any, ...]
    compiled: bool


def launches_of(function: Callable[..., Any], *values: Any) -> tuple[Any, list[Launched]]:
    """What a function returns, and what it launches by `start`."""
    collector = _Collector()
    _recording.recorder = collector
    try:
        return function(*values), collector.found
    finally:
        _recording.recorder = None


class _Collector:
    def __init__(self) -> None:
        self.found: list[Launched] = []

    def launched(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], compiled: Any) -> None:
        again = kernel[grid] if compiled is None else _runner(compiled, grid)
        self.found.append(Launched(again, tuple(arguments[name] for name in kernel.arg_names), compiled is not None))


class _Recorder(TorchDispatchMode):
    """Notes what a function does to tensors, by their places among all."""

    def __init__(self, tensors: list[Tensor], work: Any) -> None:
        super().__init__()
        self.device = tensors[0].device
        self.slots = {id(tensor): slot for slot, tensor in enumerate(tensors)}
        self.known = list(tensors)  # kept, so that no other gets the identity of one
        self.constants = {id(leaf) for leaf in work or () if isinstance(leaf, Tensor)}
        self.steps: list[Step] = []
        self.fits = True

    def slot(self, tensor: Any) -> int | None:
        return self.slots.get(id(tensor))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function.is_view and all(id(leaf) in self.constants for leaf in args if isinstance(leaf, Tensor)):
            self.constants.add(id(result))
            self.known.append(result)
            return result
        is_new = isinstance(result, Tensor) and self.slot(result) is None
        if not isinstance(result, Tensor):  # a number that was read, several tensors, or what no tensor decides
            self.fits = self.fits and not any(isinstance(leaf, Tensor) for leaf in (*args, *kwargs.values()))
        elif is_new and function.overloadpacket in EMPTY:
            self.steps.append(_new(result))
        else:
            fill, fill_named = self._filled(tuple(args)), self._filled(tuple(kwargs.values()))
            self.steps.append(_again(function, fill, tuple(kwargs), fill_named, is_new))
        if is_new:
            self.slots[id(result)] = len(self.slots)
            self.known.append(result)
        return result

    def launched(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], compiled: Any) -> None:
        values = tuple(arguments[name] for name in kernel.arg_names)
        if compiled is None:  # the interpreter
            self.steps.append(_interpreted(kernel[grid], self._filled(values)))
        else:
            self.steps.append(
                _launched(_runner(compiled, grid), self._filled(values, addresses=True), self.device.index or 0)
            )

    def _filled(self, values: tuple[Any, ...], addresses: bool = False) -> Callable[[list[Any]], list[Any]]:
        """What makes the values from all tensors: for a compiled kernel their addresses, in plain tuples."""
        template: list[Any] = list(values)
        single: list[tuple[int, int]] = []
        inner: list[tuple[int, Any, Any]] = []
        for place, value in enumerate(values):
            if isinstance(value, Tensor):
                slot = self.slot(value)
                if slot is not None:
                    single.append((place, slot))
                    template[place] = None  # a tape keeps no tensor of the call that it was made of
                elif id(value) not in self.constants:
                    self.fits = False
                elif addresses:
                    template[place] = value.data_ptr()
            elif isinstance(value, (tuple, list)) and any(isinstance(leaf, Tensor) for leaf in value):
                build = tuple if addresses or not hasattr(value, "_make") else value._make
                inner.append((place, build, self._filled(tuple(value), addresses)))
                template[place] = None

        def fill(found: list[Any]) -> list[Any]:
            filled = template.copy()
            for place, slot in single:
                filled[place] = found[slot].data_ptr() if addresses else found[slot]
            for place, build, parts in inner:
                filled[place] = build(parts(found))
            return filled

        return fill


def _new(like: Tensor) -> Step:
    size, stride, dtype, device = like.shape, like.stride(), like.dtype, like.device

    def step(found: list[Any]) -> None:
        found.append(torch.empty_strided(size, stride, dtype=dtype, device=device))

    return step


def _again(function: Any, fill: Any, names: tuple[str, ...], fill_named: Any, is_new: bool) -> Step:
    def step(found: list[Any]) -> None:
        result = function(*fill(found), **dict(zip(names, fill_named(found), strict=True)))
        if is_new:
            found.append(result)

    return step


def _interpreted(kernel: Any, fill: Any) -> Step:
    return lambda found: kernel(*fill(found))


def _runner(compiled: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """Launches a compiled kernel as `compiled[grid]` does, but makes nothing for hooks where none are set."""
    from triton import knobs

    grid, hooks = (*grid, 1, 1)[:3], knobs.runtime
    watched, run, function, metadata = compiled[grid], compiled.run, compiled.function, compiled.packed_metadata

    def launch(*values: Any, stream: int) -> None:
        if not (getattr(hooks.launch_enter_hook, "calls", True) or getattr(hooks.launch_exit_hook, "calls", True)):
            run(*grid, stream, function, metadata, None, None, None, *values)
        else:
            watched(*values, stream=stream)

    return launch


def _launched(runner: Any, fill: Any, device: int) -> Step:
    from triton.runtime import driver

    def step(found: list[Any]) -> None:
        runner(*fill(found), stream=driver.active.get_current_stream(device))

    return step
