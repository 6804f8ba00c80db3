"""Raw operators: what a backend implements, described once, and how autograd keeps what belongs to a call.

A raw operator is declared by its fake kernel. The annotations of that function are the schema, in which a NamedTuple
stands for its fields (`csrc/common/arguments.h` puts them together again in C++); its body makes the results without
their values; its comment says what they are. So a work list that gets a field more is described in one place a
language.

CPU and CUDA kernels share the operator's name under two dispatch keys; Triton's has `_triton` behind it.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from spanbert_kernels.ops import library
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.repeats import Key, Repeats, unseen

TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    bool: "bool",
    float: "float",
    list[int]: "int[]",
}

Function = TypeVar("Function", bound=Callable[..., Any])


def flat(values: Iterable[Any]) -> list[Any]:
    """The values with the fields of NamedTuples in the place of these.

    Example:
        >>> Pair = typing.NamedTuple("Pair", [("left", int), ("right", object)])
        >>> flat([1, Pair(2, None), 3])
        [1, 2, None, 3]
    """
    return [leaf for value in values for leaf in (value if _several(value) else (value,))]


def _several(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def grouped(leaves: Sequence[Any], kinds: Sequence[Any]) -> list[Any]:
    """What `flat` was made of, `kinds` being the NamedTuple of each value, or None."""
    values, place = [], 0
    for kind in kinds:
        size = 1 if kind is None else len(kind._fields)
        values.append(leaves[place] if kind is None else kind(*leaves[place : place + size]))
        place += size
    return values


def _declared(name: str, kind: Any) -> Iterable[str]:
    if kind in TYPES:
        return (f"{TYPES[kind]} {name}",)
    fields = typing.get_type_hints(kind)
    return [text for field in kind._fields for text in _declared(field, fields[field])]


def schema(fake: Callable[..., Any]) -> str:
    """The schema that the annotations of a fake kernel say.

    Example:
        >>> def twice(x: Tensor, scale: float, bias: Tensor | None) -> Tensor: ...
        >>> schema(twice)
        '(Tensor x, float scale, Tensor? bias) -> Tensor'
    """
    hints = typing.get_type_hints(fake)
    result = hints.pop("return")
    results = [TYPES[kind] for kind in typing.get_args(result)] if typing.get_origin(result) is tuple else None
    arguments = ", ".join(text for name, kind in hints.items() for text in _declared(name, kind))
    return f"({arguments}) -> " + (TYPES[result] if results is None else f"({', '.join(results)})")


REGISTERED: dict[str, RawOperator] = {}


class RawOperator:
    """An operator that backends implement. Made by `raw`, found by its name in REGISTERED."""

    def __init__(self, fake: Callable[..., Any], backends: Sequence[str]) -> None:
        functools.update_wrapper(self, fake)
        self.name, self.backends, self.schema = fake.__name__, backends, schema(fake)
        REGISTERED[self.name] = self
        hints = typing.get_type_hints(fake)
        self.kinds = [kind if hasattr(kind, "_fields") else None for kind in map(hints.get, _parameters(fake))]
        suffixes = {"_triton" if backend == "triton" else "" for backend in backends if backend != "eager"}
        for suffix in sorted(suffixes):
            torch.library.define(f"spanbert_kernels::{self.name}{suffix}", self.schema)
            torch.library.register_fake(f"spanbert_kernels::{self.name}{suffix}", self._of_leaves(fake))

    def _of_leaves(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def of_leaves(*leaves: Any) -> Any:
            return function(*grouped(leaves, self.kinds))

        return of_leaves

    def __call__(self, backend: str, *values: Any, repeats: Repeats | None = None, key: Key | None = None) -> Any:
        """Call the kernels of a backend, with the arguments that the fake kernel has.

        Args:
            backend: its name.
            values: the arguments.
            repeats: of the plan that the call belongs to, if it does.
            key: what the arguments depend on beside the plan, where that is known already.
        """
        if repeats is not None and backend == "triton" and unseen():
            return repeats.run(self.name, key, self.in_triton, values)
        suffix = "_triton" if backend == "triton" else ""
        leaves: list[Any] = []
        for value, kind in zip(values, self.kinds, strict=True):
            leaves += (value,) if kind is None else value
        return getattr(getattr(torch.ops, library.NAMESPACES[backend]), self.name + suffix)(*leaves)

    def triton(self, function: Function) -> Function:
        """Make `function`, which takes what the fake kernel takes, Triton's implementation."""
        self.in_triton = function
        torch.library.impl(f"spanbert_kernels::{self.name}_triton", ("cuda", "cpu"), self._of_leaves(function))
        return function


def _parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def raw(owner: Operation | Sequence[str]) -> Callable[[Callable[..., Any]], RawOperator]:
    """Declare the raw operator of an operation's backends, or of these backends, by its fake kernel."""
    return lambda fake: RawOperator(fake, owner.backends if isinstance(owner, Operation) else owner)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd has to know of a call on these."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def save(ctx: Any, *values: Any, repeats: Repeats | None = None) -> None:
    """Keep values for the backward, if there will be one, NamedTuples whole: their tensors in autograd's care.

    What belongs to a plan is kept as it is: the plan has it anyway, and nobody writes to it.
    """
    ctx.repeats = repeats
    if not any(ctx.needs_input_grad):
        return
    own = None if repeats is None else repeats.work
    parts = [_several(value) and value is not own for value in values]
    leaves: list[Any] = []
    for value, several in zip(values, parts, strict=True):
        leaves += value if several else (value,)
    ctx.save_for_backward(*[leaf if isinstance(leaf, Tensor) else None for leaf in leaves])
    ctx.plain = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    ctx.kinds = [type(value) if several else None for value, several in zip(values, parts, strict=True)]


def saved(ctx: Any) -> list[Any]:
    """What `save` was given."""
    leaves = [plain if tensor is None else tensor for tensor, plain in zip(ctx.saved_tensors, ctx.plain, strict=True)]
    return grouped(leaves, ctx.kinds)


def gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """A gradient for each argument that the forward was given: these, and None for the others."""
    return (*grads, *[None] * (len(ctx.needs_input_grad) - len(grads)))


def gradient_of(text: str, compute: Callable[..., Any], *values: Any) -> Any:
    """`compute(*values)`, a gradient that has no derivative: where somebody could ask for one, by `Gradient`."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return Gradient.apply(text, compute, *values)
    return compute(*values)


class Gradient(torch.autograd.Function):
    """`compute(*values)`, a gradient that has no derivative: asking for one raises `text`.

    Unlike torch's once_differentiable it raises also where the gradient that comes in needs none.
    """

    @staticmethod
    def forward(ctx: Any, text: str, compute: Callable[..., Any], *values: Any) -> Any:
        ctx.text = text
        return compute(*values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(ctx.text)
