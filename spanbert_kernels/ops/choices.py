"""The names that arguments choose from: their types, for a type checker, and their values."""

from __future__ import annotations

from typing import Literal, get_args

Backend = Literal["cuda", "triton", "cpu", "eager"]
Part = Literal["start", "end", "mean", "sum", "max", "attention", "width"]
Activation = Literal["none", "relu", "gelu"]
Role = Literal["anchors", "tokens"]
Normalization = Literal["joint", "pairwise"]
Anchor = Literal["last", "first"]

BACKENDS: tuple[Backend, ...] = get_args(Backend)
PARTS: tuple[Part, ...] = get_args(Part)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
ROLES: tuple[Role, ...] = get_args(Role)
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
ANCHORS: tuple[Anchor, ...] = get_args(Anchor)
