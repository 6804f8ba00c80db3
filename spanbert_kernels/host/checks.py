"""Checks of the host functions' arguments. Each raises with the value seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Scores = NDArray[np.float64]
Flags = NDArray[np.bool_]
Reals = NDArray[np.floating[Any]]
PARTS = ("start", "end", "mean", "sum", "max")


def indices(name: str, array: NDArray[Any], length: int | None = None) -> Indices:
    """The array as dense int64."""
    _integers(name, array, length)
    return np.ascontiguousarray(array, dtype=np.int64)


def count(name: str, value: int) -> int:
    """A number of things, at least 0."""
    number = int(value)
    if number != value or number < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {value}")
    return number


def inside(starts: Indices, ends: Indices, num_tokens: int | None) -> None:
    """Raise for the first span that has tokens and reaches outside `0 .. num_tokens` (None: no limit)."""
    bad = starts < 0
    if num_tokens is not None:
        bad |= ends > num_tokens
    bad &= ends > starts
    if bad.any():
        row = int(bad.argmax())
        there = "tokens start at 0" if num_tokens is None else f"there are {num_tokens} tokens (0 to {num_tokens - 1})"
        raise ValueError(f"span {row} covers tokens {starts[row]} to {ends[row] - 1}, but {there}")


def prunable(
    starts: NDArray[Any], ends: NDArray[Any], score: NDArray[Any], k: int | NDArray[Any], documents: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], Indices, Indices | None]:
    """The arguments of prune_spans without a copy where it takes none: positions int32 or int64, scores float32 or
    float64. Whether scores have a rank and spans lie where tokens can be, `rankable` says.
    """
    _integers("starts", starts)
    _integers("ends", ends, len(starts))
    if ends.dtype != starts.dtype:
        starts, ends = starts.astype(np.int64), ends.astype(np.int64)
    _floats("scores", score, len(starts))
    if score.dtype == np.float16:
        score = score.astype(np.float32)
    if documents is None:
        if isinstance(k, np.ndarray):
            raise ValueError("k as an array needs documents: one budget for each")
        return starts, ends, score, np.array([min(count("k", k), len(starts))], dtype=np.int64), None
    if not isinstance(k, np.ndarray):
        raise ValueError("documents need k as an array: one budget for each")
    documents, budgets = grouped(documents, k, len(starts), "documents", "k")
    return starts, ends, score, budgets, documents


def grouped(
    groups: NDArray[Any], budgets: NDArray[Any], count: int, name: str = "groups", of_each: str = "its limit"
) -> tuple[Indices, Indices]:
    """The group of each of `count` spans, and the groups' budgets."""
    groups, budgets = indices(name, groups, count), indices(of_each, budgets)
    if (budgets < 0).any():
        raise ValueError(f"{of_each} must be at least 0, got {budgets.min()}")
    bad = (groups < 0) | (groups >= len(budgets))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{name}[{row}] is {groups[row]}, but {of_each} has {len(budgets)} budgets")
    return groups, budgets


def rankable(starts: NDArray[Any], ends: NDArray[Any], score: NDArray[Any]) -> None:
    """Raise for the first score that is NaN, which has no rank, and for the first span before token 0."""
    nan = np.isnan(score)
    if nan.any():
        raise ValueError(f"scores[{int(nan.argmax())}] is NaN: it has no rank")
    inside(starts, ends, None)


def most_tokens(spans: int) -> int:
    """Between the tokens of spans that are taken as they are: an array over those tokens costs no more than they do."""
    return 8 * spans + 2**16


def ranked(starts: NDArray[Any], ends: NDArray[Any]) -> tuple[Indices, Indices]:
    """The ranks of positions that lie far apart: crossing and order depend on no more."""
    ranks = np.unique(np.concatenate([starts, ends]), return_inverse=True)[1].astype(np.int64)
    return ranks[: len(starts)], ranks[len(starts) :]


def part_codes(parts: Sequence[str]) -> list[int]:
    """The places of the parts' names in PARTS."""
    if isinstance(parts, str | bytes) or not isinstance(parts, Sequence):
        raise TypeError(f"parts must be a sequence of names, got {parts!r}")
    if not parts:
        raise ValueError(f"parts is empty; it takes any of {', '.join(PARTS)}")
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"parts: unknown part {part!r}; there are {', '.join(PARTS)}")
        if list(parts).count(part) > 1:
            raise ValueError(f"parts: part {part!r} is named twice in {list(parts)}")
    return [PARTS.index(part) for part in parts]


def tokens(array: NDArray[Any]) -> Reals:
    """`hidden [T, H]` as a dense matrix that kernels add in: float32 or float64."""
    _real("hidden", array)
    if array.ndim != 2:
        raise ValueError(f"hidden must have shape [T, H], got {list(array.shape)}")
    return np.ascontiguousarray(array, dtype=np.float64 if array.dtype == np.float64 else np.float32)


def layer(
    weight: NDArray[Any], bias: NDArray[Any] | None, columns: int, dtype: np.dtype[Any]
) -> tuple[Reals, Reals | None]:
    """A linear layer's weight `[O, columns]` and bias `[O]` in the dtype that products are made in."""
    _real("weight", weight)
    if weight.ndim != 2 or weight.shape[1] != columns:
        raise ValueError(f"weight must have shape [O, {columns}], got {list(weight.shape)}")
    if bias is not None:
        _floats("bias", bias, len(weight))
        bias = np.ascontiguousarray(bias, dtype=dtype)
    return np.ascontiguousarray(weight, dtype=dtype), bias


def gradient(array: NDArray[Any], rows: int, columns: int, dtype: np.dtype[Any]) -> Reals:
    """The gradient of a result `[rows, columns]` as a dense matrix of the dtype that it is taken on in."""
    _real("grad_output", array)
    if array.shape != (rows, columns):
        raise ValueError(f"grad_output must have shape [{rows}, {columns}], got {list(array.shape)}")
    return np.ascontiguousarray(array, dtype=dtype)


def ordered(starts: NDArray[Any], ends: NDArray[Any], num_tokens: int) -> tuple[Indices, Indices]:
    """The arguments of first_and_reach: spans as sort_spans leaves them."""
    starts = indices("starts", starts)
    ends = indices("ends", ends, len(starts))
    inside(starts, ends, num_tokens)
    falls = np.flatnonzero(np.diff(starts) < 0)
    if len(falls):
        row = int(falls[0]) + 1
        raise ValueError(f"starts must ascend, but starts[{row}] = {starts[row]} comes after {starts[row - 1]}")
    return starts, ends


def flags(name: str, array: NDArray[Any], length: int) -> Flags:
    """The array as dense bool."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, got {type(array).__name__}")
    if array.dtype != np.bool_:
        raise TypeError(f"{name} must be bool, got {array.dtype}")
    _one_dimension(name, array, length)
    return np.ascontiguousarray(array)


def offsets(name: str, array: NDArray[Any], total: int) -> Indices:
    """Offsets of runs that cover 0 .. total."""
    values = indices(name, array)
    if len(values) == 0 or values[0] != 0 or values[-1] != total:
        raise ValueError(f"{name} must begin with 0 and end with {total}, got {values[:1]} .. {values[-1:]}")
    falls = np.flatnonzero(np.diff(values) < 0)
    if len(falls):
        raise ValueError(
            f"{name} must ascend, but {name}[{falls[0] + 1}] = {values[falls[0] + 1]} < {values[falls[0]]}"
        )
    return values


def share(name: str, value: float) -> float:
    """A number from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be from 0 to 1, got {value}")
    return float(value)


def _integers(name: str, array: NDArray[Any], length: int | None = None) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, got {type(array).__name__}")
    if array.dtype not in (np.int32, np.int64):
        raise TypeError(f"{name} must be int32 or int64, got {array.dtype}")
    _one_dimension(name, array, length)


def _floats(name: str, array: NDArray[Any], length: int) -> None:
    _real(name, array)
    _one_dimension(name, array, length)


def _real(name: str, array: NDArray[Any]) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, got {type(array).__name__}")
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"{name} must be float16, float32 or float64, got {array.dtype}")


def _one_dimension(name: str, array: NDArray[Any], length: int | None) -> None:
    if array.ndim != 1 or (length is not None and len(array) != length):
        expected = "one-dimensional" if length is None else f"of shape [{length}]"
        raise ValueError(f"{name} must be {expected}, got {list(array.shape)}")
