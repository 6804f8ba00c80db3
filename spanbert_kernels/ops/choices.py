"""The names that arguments choose from: their types, for a type checker, and their values."""

from __future__ import annotations

from typing import Literal, get_args

Backend = Literal["cuda", "triton", "cpu", "eager"]
Part = Literal["start", "end", "mean", "sum", "max", "attention", "width"]
Activation = Literal["none", "relu", "gelu"]
Role = Literal["anchors", "tokens"]
Normalization = Literal["joint", "pairwise"]
Anchor = Literal["last", "first"]
Precision = Literal["float32", "bfloat16", "int8"]

BACKENDS: tuple[Backend, ...] = get_args(Backend)
PARTS: tuple[Part, ...] = get_args(Part)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
ROLES: tuple[Role, ...] = get_args(Role)
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
ANCHORS: tuple[Anchor, ...] = get_args(Anchor)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # csrc/common/storage.h
