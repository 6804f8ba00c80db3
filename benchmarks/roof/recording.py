"""What a real call launches on a GPU, seen without one: Triton's kernels, PyTorch's, and those of its libraries.

The call's tensors lie in the CPU's memory and say that they are a GPU's, so it goes the ways that it goes there. What
launches are is noted, and no number is computed: floating-point results are memory that nobody has touched, which makes
calls of real sizes cheap. Work lists of whole numbers are made, as sizes depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as unnoted
from torch.utils._pytree import tree_leaves, tree_map

from spanbert_kernels.ops import library
from spanbert_kernels.ops.aot import AotConfiguration, launches

from .lists import LISTS

DEVICE, CAPABILITY = torch.device("cuda", 0), (9, 0)
CPU = torch.device("cpu")
# Products of two tensors: which argument is the first of them.
FIRST_FACTOR = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
TAKES_ROWS = ("index", "index_select", "gather", "embedding")
CHANGES_ROWS = ("index_add", "index_copy", "index_put", "scatter", "scatter_add")
# By a kernel's name, its matrices of which it takes one row for each entry of another argument.
ROWS_TAKEN = {"anchors_norm": {"hidden": "places"}, "add_at_places": {"hidden": "places"}}
MAKERS = ("arange", "empty", "full", "ones", "zeros")  # of tensors on a device that is named
FEW = 4096  # elements that are computed whatever they are: seeds, scales


@dataclass(frozen=True)
class KernelLaunch:
    """A launch of one of Triton's kernels.

    Attributes:
        configuration: what is compiled for it.
        grid: the numbers of programs.
        arguments: their values by name.
    """

    configuration: AotConfiguration
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.configuration.kernel.__name__)

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    @property
    def bytes(self) -> int:
        """Of all its tensors, each once; of one of which a kernel takes rows, as many as it takes."""
        taken = {
            matrix: self.arguments[matrix].data[: len(self.arguments[places])]
            for matrix, places in ROWS_TAKEN.get(self.name, {}).items()
        }
        return bytes_of({**self.arguments, **taken})


@dataclass(frozen=True)
class LibraryLaunch:
    """A launch of one of PyTorch's own kernels, or of a library's.

    Attributes:
        name: PyTorch's operator.
        bytes: of its inputs and outputs.
        operations: of a matrix product, else 0.
        wide: it multiplies numbers of 32 bits.
    """

    name: str
    bytes: int
    operations: int
    wide: bool


AnyLaunch = KernelLaunch | LibraryLaunch


@dataclass
class Recording:
    """What a call launched, in order, and how often it had the host wait for the GPU."""

    launches: list[AnyLaunch] = field(default_factory=list)
    waits: int = 0


def bytes_of(values: Any) -> int:
    """Of the tensors among some values, each once; of one that is repeated along a dimension what there is of it."""
    found = {}
    for tensor in tree_leaves(values):
        if isinstance(tensor, Tensor):
            count = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
            found[tensor.data_ptr(), tuple(tensor.shape)] = count * tensor.element_size()
    return sum(found.values())


def _placed(value: Any) -> Any:
    """A device that is asked for, or where tensors lie instead."""
    return CPU if (isinstance(value, str | torch.device)) and str(value).startswith("cuda") else value


def _made_here(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For what our operators make inside, where no mode of functions sees it."""
    return lambda *args, **kwargs: make(*args, **{name: _placed(value) for name, value in kwargs.items()})


class _OnTheGPU(TorchFunctionMode):
    """New tensors lie in the CPU's memory, whatever device they are asked for on, and all say that it is a GPU's."""

    pretends = True

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: _placed(value) for name, value in (kwargs or {}).items()}
        return function(*map(_placed, args), **kwargs)

    @contextmanager
    def truthful(self) -> Iterator[None]:
        """Tensors say where they lie."""
        before, self.pretends = self.pretends, False
        try:
            yield
        finally:
            self.pretends = before

    def attribute(self, name: str, pretended: Any) -> Any:
        """The attribute of a tensor that names its device."""
        own = getattr(torch._C.TensorBase, name)
        return property(lambda tensor: pretended if self.pretends else own.__get__(tensor))


class _Noted(TorchDispatchMode):
    """Notes what PyTorch launches, and computes nothing but views and whole numbers."""

    def __init__(self, recording: Recording, place: _OnTheGPU) -> None:
        super().__init__()
        self.recording = recording
        self.place = place

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to skip it would import the compiler

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.namespace != "aten":
            with self:  # what an operator of ours does is noted as well
                return function._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        with self.place.truthful():
            return self._noted(function, args, kwargs)

    def _noted(self, function: Any, args: Any, kwargs: Any) -> Any:
        packet = function.overloadpacket
        if packet in _WAITS:
            self.recording.waits += 1
            return function(*args, **kwargs)
        if function.is_view or packet in _NOTHING:
            return function(*args, **kwargs)
        result = self._result(function, args, kwargs)
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        outputs = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        if not inputs and not outputs:
            return result
        name = str(packet).removeprefix("aten.")
        operations, wide = _product(name.removesuffix("_"), args)
        moved = _moved(name.removesuffix("_"), inputs, outputs)
        self.recording.launches.append(LibraryLaunch(name, moved, operations, wide))
        return result

    def _result(self, function: Any, args: Any, kwargs: Any) -> Any:
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        large = [each for each in inputs if each.numel() > FEW]
        whole = any(not each.dtype.is_floating_point for each in inputs)
        here = torch._C._dispatch_has_computed_kernel_for_dispatch_key(function.name(), "CPU")
        if here and (whole or not large):
            return function(*args, **kwargs)
        changed = [
            value
            for i, argument in enumerate(function._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            for value in tree_leaves(kwargs[argument.name] if argument.name in kwargs else args[i : i + 1])
        ]
        if not function._schema.returns:
            return None
        if changed:
            return changed[0] if len(changed) == 1 else tuple(changed)
        shaped = function(*tree_map(_without_values, args), **tree_map(_without_values, kwargs))
        if any(isinstance(each, Tensor) and not each.dtype.is_floating_point for each in tree_leaves(shaped)):
            return function(*args, **kwargs)
        return tree_map(_untouched, shaped)


def _moved(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes read and written; of a tensor of which rows are taken, or which rows are added to, these rows."""
    if name in TAKES_ROWS:
        return bytes_of(inputs[1:]) + 2 * bytes_of(outputs)
    if name in CHANGES_ROWS:
        return 3 * bytes_of(inputs[1:])
    return bytes_of((inputs, outputs))


def _product(name: str, args: Any) -> tuple[int, bool]:
    """The operations of a matrix product, and whether it multiplies numbers of 32 bits."""
    if name not in FIRST_FACTOR:
        return 0, False
    left, right = args[FIRST_FACTOR[name] :][:2]
    return 2 * left.numel() * right.shape[-1], left.dtype == torch.float32


def _without_values(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _untouched(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


def _packets(*names: str) -> set[Any]:
    return {getattr(torch.ops.aten, name) for name in names}


# What makes the host wait, and what launches nothing.
_WAITS = _packets("_local_scalar_dense", "nonzero", "equal")
_NOTHING = _packets(
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "view"),
    *("_unsafe_view", "_reshape_alias", "lift_fresh", "is_same_size", "sym_size", "resize_", "set_"),
    "scalar_tensor",  # which stays on the host
)


@contextmanager
def pretended(recording: Recording, launch: Callable[..., object]) -> Iterator[None]:
    """Tensors inside lie in the CPU's memory and are a GPU's; what PyTorch launches is noted.

    For each of Triton's launches `launch` is called with its `JITFunction.run`, which wants but `warmup`, the kernel,
    the grid, and the arguments by name. Triton's driver is to be replaced beside it.
    """
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def launched(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        arguments = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
        grid = grid(arguments) if callable(grid) else grid
        launch(partial(run, kernel, *args, grid=grid, **kwargs), kernel, grid, arguments)
        if kernel.__name__ in LISTS:
            with unnoted(), place.truthful():
                LISTS[kernel.__name__](arguments)

    with ExitStack() as stack:
        place = _OnTheGPU()
        contexts: tuple[AbstractContextManager[Any], ...] = (
            mock.patch.object(JITFunction, "run", launched),
            *(mock.patch.object(torch, name, _made_here(getattr(torch, name))) for name in MAKERS),
            mock.patch.object(torch.cuda, "is_available", return_value=True),
            mock.patch.object(torch.cuda, "get_device_capability", return_value=CAPABILITY),
            *(
                mock.patch.object(torch.Tensor, name, place.attribute(name, value), create=True)
                for name, value in {"device": DEVICE, "is_cuda": True, "is_cpu": False}.items()
            ),
            mock.patch.object(torch.cuda, "device", return_value=nullcontext()),
            place,
            _Noted(recording, place),
        )
        for context in contexts:
            stack.enter_context(context)
        stack.callback(library.load_triton.cache_clear)
        library.load_triton.cache_clear()
        yield


@contextmanager
def recorded() -> Iterator[Recording]:
    """Collect what calls inside launch, on tensors that lie in the CPU's memory.

    Not under TRITON_INTERPRET=1, which leaves nothing to compile.
    """
    recording = Recording()

    def note(run: Callable[..., object], kernel: Any, grid: Any, arguments: Mapping[str, Any]) -> None:
        before = len(configurations)
        run(warmup=False)
        (configuration,) = configurations[before:]
        recording.launches.append(KernelLaunch(configuration, tuple(grid), arguments))

    with launches() as configurations, pretended(recording, note):
        yield recording
