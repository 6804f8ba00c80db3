"""Where a packed forward stands: on the module, or beneath what Hugging Face's `accelerate` has put around its forward.

`Accelerator.prepare` wraps a forward for mixed precision, and `dispatch_model` and its kind for weights that are
elsewhere. What they wrapped is a function of the module, so that copies of the module run their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

_KEY = "_packed_forward"


def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    """What wrappers call: the module's packed forward, or the one of its class where that was taken out again."""
    found = module.__dict__.get(_KEY)
    return (type(module).forward.__get__(module) if found is None else found)(*args, **kwargs)


def installed(module: nn.Module) -> Any:
    """The packed forward of a module, or None."""
    return module.__dict__.get(_KEY)


def refusal(module: nn.Module) -> str | None:
    """Why no packed forward can stand on a module, or None."""
    held = module.__dict__
    free = (
        "forward" not in held or installed(module) is not None or "_hf_hook" in held or _innermost(module) is not None
    )
    return None if free else "its forward has been replaced already"


def install(module: nn.Module, packed: Any) -> None:
    """Let a module that `refusal` accepts run `packed`."""
    module.__dict__[_KEY] = packed
    found = _innermost(module)
    if "forward" not in module.__dict__:
        module.forward = packed
    elif found is not None:
        wrapper, cell = found
        cell.cell_contents = wrapper.__wrapped__ = forward  # type: ignore[attr-defined]
    else:
        module.__dict__["_old_forward"] = MethodType(forward, module)


def remove(module: nn.Module) -> None:
    """Let a module run its class's forward again, beneath whatever stands around it."""
    packed = module.__dict__.pop(_KEY)
    if module.__dict__.get("forward") is packed:
        del module.forward
    if module.__dict__.get("_old_forward") is packed:
        module.__dict__["_old_forward"] = MethodType(forward, module)


def _innermost(module: nn.Module) -> tuple[FunctionType, CellType] | None:
    """Of a prepared module's wrappers the one around the class's forward, and where it keeps that."""
    wrapper = module.__dict__.get("forward") if "_original_forward" in module.__dict__ else None
    for function in _wrapped(wrapper):
        for cell in function.__closure__ or ():
            if cell.cell_contents in (type(module).forward, forward):
                return function, cell
    return None


def _wrapped(wrapper: Any) -> Iterator[FunctionType]:
    """A wrapper and what it wraps, outermost first, as far as they are functions."""
    while wrapper is not None:
        function = getattr(wrapper, "__func__", wrapper)
        if isinstance(function, FunctionType):
            yield function
        wrapper = getattr(function, "__wrapped__", None)
