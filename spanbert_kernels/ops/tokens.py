"""The packed tokens of a call over spans: one tensor for all parts, or one a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops import checks


class Tokens(NamedTuple):
    """Tokens by part.

    Attributes:
        tensors: the different tensors, `[T, H]` with the same T, H their own.
        places: the place among them of every part that reads tokens.
    """

    tensors: tuple[Tensor, ...]
    places: dict[str, int]

    def of(self, part: str) -> Tensor:
        """The tokens that a part reads; any for one that reads none."""
        return self.tensors[self.places.get(part, 0)]

    def columns(self, part: str) -> Any:
        """H of a part."""
        return self.of(part).shape[1]

    def to(self, dtype: torch.dtype) -> Tokens:
        return self._replace(tensors=tuple(tensor.to(dtype) for tensor in self.tensors))


def check_tokens(hidden: Tensor | Mapping[Any, Tensor], parts: Sequence[str]) -> Tokens:
    """`hidden` as Tokens, for checked parts.

    Example:
        >>> first, last = torch.zeros(4, 2), torch.zeros(4, 3)
        >>> check_tokens({"end": last, "start": first}, ["start", "width", "end"]).places
        {'start': 0, 'end': 1}
    """
    reading = [part for part in parts if part != "width"]
    if not isinstance(hidden, Mapping):
        checks.check_floating("hidden", hidden, 2, "[T, H]")
        return Tokens((hidden,), dict.fromkeys(reading, 0))
    if set(hidden) != set(reading) or not reading:
        given = ", ".join(map(str, hidden)) or "no part"
        expected = f"a tensor for each of {', '.join(reading)}" if reading else "one tensor, as no part reads tokens"
        raise ValueError(f"hidden must be {expected}, got a mapping of {given}")
    tensors: list[Tensor] = []
    places: dict[str, int] = {}
    for part in reading:
        name, other, tensor = f'hidden["{part}"]', f'hidden["{reading[0]}"]', hidden[part]
        checks.check_floating(name, tensor, 2, "[T, H]")
        checks.check_same(name, tensor, other, hidden[reading[0]])
        if len(tensor) != len(hidden[reading[0]]):
            raise ValueError(f"{name} has {len(tensor)} tokens, but {other} has {len(hidden[reading[0]])}")
        known = [place for place, each in enumerate(tensors) if each is tensor]
        places[part] = known[0] if known else len(tensors)
        tensors += [] if known else [tensor]
    return Tokens(tuple(tensors), places)
