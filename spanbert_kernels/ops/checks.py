"""Checks that the operations share. Each raises with the value seen."""

from __future__ import annotations

import itertools
import numbers
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.philox import Dropout

Function = TypeVar("Function", bound=Callable[..., Any])
INDEX_DTYPES = (torch.int32, torch.int64)
MOST = 2**31 - 1  # tokens, or anything else that is counted


def check_tensor(name: str, value: object, shape: str) -> None:
    """Every tensor argument passes here first: what is none is named, with its value."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {type(value).__name__}: {shown(value)}")


def check_floating(name: str, tensor: Tensor, dims: int, shape: str) -> None:
    check_tensor(name, tensor, shape)
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if tensor.dim() != dims:
        raise ValueError(f"{name} must have shape {shape}, got {list(tensor.shape)}")


def check_index(name: str, tensor: Tensor, dims: int, shape: str) -> None:
    check_tensor(name, tensor, shape)
    if tensor.dtype not in INDEX_DTYPES:
        raise TypeError(f"{name} must be int32 or int64, got {tensor.dtype}")
    if tensor.dim() != dims:
        raise ValueError(f"{name} must have shape {shape}, got {list(tensor.shape)}")


def check_readable(name: str, tensor: Tensor) -> None:
    """For what reads a tensor's values on the host."""
    if tensor.device.type == "meta":
        raise TypeError(f"{name} is on meta, where it has no values to read")
    if torch._C._functorch.is_batchedtensor(tensor):
        raise TypeError(f"{name} is a batch of torch.func.vmap, of which no values can be read: {_OUTSIDE}")
    if isinstance(tensor, FakeTensor):
        raise TypeError(f"{name} is a fake tensor, which has no values to read: {_OUTSIDE}")


_OUTSIDE = "call this before and outside of it, and hand the result in"


def uncompiled(function: Function) -> Function:
    """Let torch.compile break its graph at a function that reads values on the host, and say why where it may not.

    It sets what torch.compiler.disable does; that one would import the compiler, and Triton with it, at once.
    """
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
        f"{function.__name__} reads values on the host, which a whole graph (fullgraph=True) cannot: {_OUTSIDE}"
    )
    return function


def constant_in_graphs(function: Function) -> Function:
    """What torch.compiler.assume_constant_result sets; that one imports the compiler, and Triton with it, at once."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def check_integer(name: str, value: object, least: int, most: int = MOST) -> int:
    """A whole number of `least` to `most`, numpy's kinds among them."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, torch.SymInt)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}: {shown(value)}")
    number: int = value if isinstance(value, (int, torch.SymInt)) else int(value)  # type: ignore[assignment]
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(number)}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, got {shown(number)}")
    return number


def check_number(name: str, value: object) -> None:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {shown(value)}")
    if isinstance(value, numbers.Real) and not abs(value) <= sys.float_info.max:  # type: ignore[operator]
        raise ValueError(f"{name} must be finite, got {shown(value)}")


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}: {shown(value)}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """One of some names."""
    expected = " or ".join(filter(None, (", ".join(f'"{each}"' for each in choices[:-1]), f'"{choices[-1]}"')))
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}: {shown(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def shown(value: object) -> str:
    """A value for a message, on one line and cut."""
    if isinstance(value, Tensor):
        return f"a tensor, {value.dtype} of shape {list(value.shape)}"
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise TypeError(f"{name} is on {tensor.device}, but {other_name} is on {other.device}")


def check_same(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """The same dtype and device."""
    check_device(name, tensor, other_name, other)
    if tensor.dtype != other.dtype:
        raise TypeError(f"{name} is {tensor.dtype}, but {other_name} is {other.dtype}")


def check_offsets(name: str, offsets: Tensor, total: int | None, total_name: str) -> None:
    """Offsets start at 0, never descend, and end at `total`. Values are looked at on a CPU only: no synchronisation."""
    check_index(name, offsets, 1, "[documents + 1]")
    if offsets.numel() == 0:
        raise ValueError(f"{name} must hold at least one offset (0), got an empty tensor")
    if offsets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    values = offsets.tolist()
    if values[0] != 0:
        raise ValueError(f"{name} must start with 0, got {values[0]}")
    for position, (before, after) in enumerate(itertools.pairwise(values)):
        if after < before:
            raise ValueError(f"{name} must ascend, but {name}[{position + 1}] = {after} comes after {before}")
    if total is not None and values[-1] != total:
        raise ValueError(f"{name} must end with the number of {total_name}, {total}, but ends with {values[-1]}")


def check_probability(name: str, value: float) -> None:
    check_number(name, value)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def check_dropout(dropout_p: float, seed: Tensor | None, like_name: str, like: Tensor) -> Dropout:
    """The dropout of a call on `like`: with the seed given, a fresh one, or None where nothing is dropped."""
    check_probability("dropout_p", dropout_p)
    if seed is None:
        return Dropout(dropout_p, None if dropout_p == 0.0 else philox.new_seed(like.device))
    check_tensor("seed", seed, "[1]")
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise TypeError(f"seed must be one int64 number in a tensor, got {seed.dtype} of shape {list(seed.shape)}")
    check_device("seed", seed, like_name, like)
    return Dropout(dropout_p, None if dropout_p == 0.0 else seed.reshape(1))
