"""DeBERTa's disentangled attention: a table of distances, projected to keys and queries by each layer."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spanbert_kernels.acceleration.layouts import at
from spanbert_kernels.acceleration.relative import LayerTerms, Product, index_on
from spanbert_kernels.ops import RelativeTerms, clipped_index, log_bucketed_index


@dataclass(frozen=True)
class Disentangled:
    """DeBERTa's: a vector for each bucket of distances, which layers project to keys and queries of their own.

    Attributes:
        keys, queries: the attribute of a layer's attention with the Linear that projects to them.
        counted: kinds of terms of which each makes the logits' scale smaller; None: all that the attention names.
    """

    keys: str
    queries: str
    counted: frozenset[str] | None = None

    def refusal(self, model: Any) -> str | None:
        table, norm = at(model, "encoder.rel_embeddings"), self._norm(model)
        for name, module, kind in (("rel_embeddings", table, nn.Embedding), ("LayerNorm", norm, nn.LayerNorm)):
            if module is not None and type(module) is not kind:
                return f"its encoder.{name} is a {type(module).__name__}, not PyTorch's {kind.__name__}"
        for layer in model.encoder.layer:
            attention = layer.attention.self
            if not attention.relative_attention:
                continue
            buckets, distance = _sizes(attention)
            if table is None or table.num_embeddings < 2 * (buckets or distance):
                return f"its table of distances has not the {2 * (buckets or distance)} rows that attention looks at"
            try:
                _index_of(attention, torch.device("cpu"))
            except ValueError as error:
                return f"its distances: {error}"
        return None

    def of(self, model: Any, attention: Any, projections: tuple[nn.Linear, ...]) -> LayerTerms:
        table, norm = at(model, "encoder.rel_embeddings"), self._norm(model)
        return _DisentangledOfLayer(self, table, norm, attention, projections)

    @staticmethod
    def _norm(model: Any) -> Any:
        return at(model, "encoder.LayerNorm") if "layer_norm" in getattr(model.encoder, "norm_rel_ebd", ()) else None


@dataclass(frozen=True, eq=False)
class _DisentangledOfLayer:
    kind: Disentangled
    table: nn.Embedding | None
    norm: nn.LayerNorm | None
    attention: Any
    projections: tuple[nn.Linear, ...]

    def terms(self, product: Product) -> RelativeTerms | None:
        attention, table = self.attention, self.table
        linears = self._linears()
        if table is None or linears == (None, None):
            return None
        rows = table.weight if self.norm is None else self.norm(table.weight)
        buckets, distance = _sizes(attention)
        rows = attention.pos_dropout(rows)[: 2 * (buckets or distance)]
        heads = (-1, attention.num_attention_heads, attention.attention_head_size)
        keys, queries = (None if linear is None else product(linear, rows).view(heads) for linear in linears)
        return RelativeTerms(_index_of(attention, rows.device), None, keys, queries)

    def scale(self) -> float | None:
        kinds, counted = self.attention.pos_att_type, self.kind.counted
        return _scale(self.attention.attention_head_size, 1 + len(kinds if counted is None else counted & {*kinds}))

    def modules(self) -> list[nn.Module]:
        linears = self._linears()
        found = () if linears == (None, None) else (self.table, self.norm, *linears)
        return [module for module in found if module is not None]

    def settings(self) -> tuple[Any, ...]:
        return (*self._linears(), *_sizes(self.attention)) if self.attention.relative_attention else ()

    def drops(self) -> bool:
        dropout = getattr(self.attention, "pos_dropout", None)
        return dropout is not None and dropout.training and dropout.p > 0.0

    def _linears(self) -> tuple[nn.Linear | None, nn.Linear | None]:
        """What projects the table to keys, and to queries."""
        attention = self.attention
        if not attention.relative_attention:
            return None, None
        query: nn.Linear | None
        key: nn.Linear | None
        if getattr(attention, "share_att_key", False):
            query, key = self.projections[:2]
        else:
            query = getattr(attention, self.kind.queries, None)
            key = getattr(attention, self.kind.keys, None)
        kinds = attention.pos_att_type
        return key if "c2p" in kinds else None, query if "p2c" in kinds else None


@functools.cache
def _scale(head_dim: int, factor: int) -> float:
    """Rounded as those who trained with it rounded it, in models of any precision."""
    return 1.0 / torch.sqrt(torch.tensor(float(head_dim)) * factor).item()


def _sizes(attention: Any) -> tuple[int, int]:
    """Buckets of distances on either side, 0 where there is one for each distance, and the largest distance."""
    return max(getattr(attention, "position_buckets", 0), 0), attention.max_relative_positions


def _index_of(attention: Any, device: torch.device) -> Tensor:
    buckets, distance = _sizes(attention)
    if buckets:
        return index_on(log_bucketed_index, (buckets, distance), device)
    return index_on(clipped_index, (distance,), device)
