"""Rotary positions: queries and keys are turned, by angles that grow with a token's position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.acceleration.layouts import at


class Rotation(NamedTuple):
    """Cosine and sine of the angles of packed tokens, `[T, head_dim]`.

    Attributes:
        cos: cosines.
        sin: sines.
        interleaved: whether columns 2i and 2i + 1 are turned together, not i and i + head_dim / 2.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """`x [T, heads, head_dim]`, turned.

    Example:
        >>> quarter = Rotation(torch.zeros(1, 4), torch.ones(1, 4), interleaved=False)
        >>> rotate(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), quarter).tolist()
        [[[-3.0, -4.0, 1.0, 2.0]]]
        >>> rotate(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), quarter._replace(interleaved=True)).tolist()
        [[[-2.0, 1.0, -4.0, 3.0]]]
    """
    if rotation.interleaved:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
    return (x * rotation.cos[:, None] + turned * rotation.sin[:, None]).to(x.dtype)


class Angles(NamedTuple):
    """How the angles of layers are made.

    Attributes:
        rotation: of packed tokens, `[T]` positions, in a dtype.
        rows: for how many positions a table is worth keeping.
        sources: gives the tensors that the angles are made of.
    """

    rotation: Callable[[Tensor, torch.dtype], Rotation]
    rows: int
    sources: Callable[[], list[Tensor]]

    def table(self) -> Rotation:
        """Of the first `rows` positions, in float32."""
        device = self.sources()[0].device
        return self.rotation(torch.arange(self.rows, device=device), torch.float32)


@dataclass(frozen=True)
class RotaryModule:
    """A module of transformers' that makes the angles: `cos, sin = module(hidden, position_ids)`.

    Attributes:
        path: of the module in the encoder.
        layer_type: the attribute of a layer that the module is told too, where layers have angles of several kinds.
        widens: whether queries and keys of 16 bits are turned in float32.
    """

    path: str
    layer_type: str | None = None
    widens: bool = False

    def refusal(self, model: Any) -> str | None:
        """Why the angles of a model depend on more than positions, or None."""
        found = at(model, self.path).rope_type
        kinds = list(found.values()) if self.layer_type else [found]
        kind = next((kind for kind in kinds if "dynamic" in kind or kind == "longrope"), None)
        if kind is None:
            return None
        return f"its rotary positions are of the type {kind!r}, whose frequencies follow the longest row of a batch"

    def longest(self, model: Any) -> int | None:
        """How many columns a batch may have: any number."""
        return None

    def angles(self, model: Any) -> Callable[[Any], Angles]:
        """Of each layer of an encoder."""
        module = at(model, self.path)

        def angles(*kind: str) -> Angles:
            def rotation(positions: Tensor, dtype: torch.dtype) -> Rotation:
                dtype = torch.promote_types(dtype, torch.float32) if self.widens else dtype
                cos, sin = module(positions.new_empty(0, dtype=dtype), positions[None], *kind)
                return Rotation(cos[0], sin[0], interleaved=False)

            return Angles(rotation, model.config.max_position_embeddings, lambda: list(module.buffers()))

        name = self.layer_type
        if name is None:
            only = angles()
            return lambda layer: only
        by_kind = {kind: angles(kind) for kind in module.rope_type}
        return lambda layer: by_kind[getattr(layer, name)]


@dataclass(frozen=True)
class RotaryTable:
    """A frozen embedding of positions: the sines of a head's pairs of columns, then the cosines.

    Attributes:
        path: of the embedding in the encoder.
    """

    path: str

    def refusal(self, model: Any) -> str | None:
        """Why the angles of a model depend on more than positions: never."""
        return None

    def longest(self, model: Any) -> int | None:
        """How many columns a batch may have: the rows of the table."""
        rows: int = at(model, self.path).num_embeddings
        return rows

    def angles(self, model: Any) -> Callable[[Any], Angles]:
        """Of each layer of an encoder: all have the same."""
        module = at(model, self.path)

        def rotation(positions: Tensor, dtype: torch.dtype) -> Rotation:
            table = F.embedding(positions, module.weight).to(dtype)
            sin, cos = (half.repeat_interleave(2, dim=-1) for half in table.chunk(2, dim=-1))
            return Rotation(cos, sin, interleaved=True)

        only = Angles(rotation, module.num_embeddings, lambda: [module.weight])
        return lambda layer: only
