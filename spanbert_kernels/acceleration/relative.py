"""Terms of attention by distance: from the tables of an encoder to what `ops.document_attention` takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spanbert_kernels.acceleration.layouts import at
from spanbert_kernels.ops import RelativeTerms, bucketed_index

Product = Callable[[nn.Linear, Tensor], Tensor]


class LayerTerms(Protocol):
    """What gives a layer its terms."""

    def terms(self, product: Product) -> RelativeTerms | None:
        """The terms now, their tables multiplied by `product(linear, x)`; None if attention has none."""

    def scale(self) -> float | None:
        """What products of queries and keys are multiplied by; None: as in attention without terms."""

    def modules(self) -> list[nn.Module]:
        """The modules whose parameters are in them."""

    def settings(self) -> tuple[Any, ...]:
        """What else they follow from."""

    def drops(self) -> bool:
        """Whether a dropout acts on them."""


class EncoderTerms(Protocol):
    """Where an encoder has the tables of its layers' terms."""

    def refusal(self, model: Any) -> str | None:
        """Why the tables of a model are not what the packed forward computes with, or None."""

    def of(self, model: Any, attention: Any, projections: tuple[nn.Linear, ...]) -> LayerTerms:
        """The terms of a layer with this attention, whose queries, keys and values are made by `projections`."""


@dataclass(frozen=True)
class SharedBias:
    """A bias for each head and bucket of distances, one table for all layers.

    Attributes:
        path: of the embedding in the encoder.
        buckets, max_distance: of `bucketed_index`.
    """

    path: str
    buckets: int
    max_distance: int

    def refusal(self, model: Any) -> str | None:
        table = at(model, self.path)
        if type(table) is not nn.Embedding:
            return f"its {self.path} is a {type(table).__name__}, not PyTorch's Embedding"
        if table.num_embeddings < self.buckets:
            return f"its {self.path} has {table.num_embeddings} rows for {self.buckets} buckets of distances"
        return None

    def of(self, model: Any, attention: Any, projections: tuple[nn.Linear, ...]) -> LayerTerms:
        return _SharedBiasOfLayer(at(model, self.path), self.buckets, self.max_distance)


@dataclass(frozen=True, eq=False)
class _SharedBiasOfLayer:
    table: nn.Embedding
    buckets: int
    max_distance: int

    def terms(self, product: Product) -> RelativeTerms | None:
        bias = self.table.weight
        return RelativeTerms(index_on(bucketed_index, (self.buckets, self.max_distance), bias.device), bias)

    def scale(self) -> float | None:
        return None

    def modules(self) -> list[nn.Module]:
        return [self.table]

    def settings(self) -> tuple[Any, ...]:
        return ()

    def drops(self) -> bool:
        return False


@functools.cache
def index_on(make: Callable[..., Tensor], sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Made where transformers makes it: which bucket a distance is in may hang on the rounding of a logarithm."""
    with torch.inference_mode(False), torch.device(device):
        return make(*sizes)
