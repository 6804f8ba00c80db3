"""Checks that the operations share. Each raises with the value seen."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

INDEX_DTYPES = (torch.int32, torch.int64)


def check_floating(name: str, tensor: Tensor, dims: int, shape: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {type(tensor).__name__}")
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if tensor.dim() != dims:
        raise ValueError(f"{name} must have shape {shape}, got {list(tensor.shape)}")


def check_index(name: str, tensor: Tensor, dims: int, shape: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {type(tensor).__name__}")
    if tensor.dtype not in INDEX_DTYPES:
        raise TypeError(f"{name} must be int32 or int64, got {tensor.dtype}")
    if tensor.dim() != dims:
        raise ValueError(f"{name} must have shape {shape}, got {list(tensor.shape)}")


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
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
