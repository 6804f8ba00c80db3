"""Attention of packed documents with themselves: by our kernels, or without them by PyTorch's, on padded rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.acceleration.parts import LayerParts
from spanbert_kernels.acceleration.rotary import Angles, Rotation, rotate
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.ops import AttentionPlan, RelativeTerms

_OPERATION = "document_attention"


@dataclass(frozen=True, eq=False)
class Batch:
    """What all layers are told of a batch.

    Attributes:
        packing: how it is packed.
        turn: makes the rotation of queries and keys by a layer's angles, where positions are rotary.
        by_place: whether positions grow by one from token to token of a document, as in most batches.
        linked: who sees whom, where that is not each document itself.
    """

    packing: Packing
    turn: Callable[[Angles], Rotation] | None = None
    by_place: bool = True
    linked: AttentionPlan | None = None
    _rotations: dict[Angles, Rotation] = field(default_factory=dict)

    def rotation(self, angles: Angles) -> Rotation:
        """By what queries and keys of layers with these angles are turned."""
        assert self.turn is not None
        if angles not in self._rotations:
            self._rotations[angles] = self.turn(angles)
        return self._rotations[angles]


def attend(
    parts: LayerParts,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: Batch,
    relative: RelativeTerms | None,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    """`[T, heads, head_dim]` each -> `[T, heads * head_dim]`; `relative`: the layer's terms by distance.

    Padding for the attention alone keeps the gain of everything around it; our eager attention, which is written to be
    read, would lose more than that in training. What PyTorch's has no name for comes to it all the same.
    """
    packing, scale, window = batch.packing, parts.scale, parts.window
    if batch.linked is not None:
        seen = ops.cross_document_attention(query, key, value, batch.linked, dropout_p=dropout_p, scale=scale)
        assert isinstance(seen, Tensor)
        return seen.flatten(1)
    if parts.angles is not None:
        rotation = batch.rotation(parts.angles)
        query, key = rotate(query, rotation), rotate(key, rotation)
        if parts.turns_values:
            value = rotate(value, rotation)
    if window is not None and window >= packing.max_seqlen - 1:
        window = None  # it leaves nothing out
    ours = window is not None or relative is not None or not packing.by_row
    if ours or ops.backends.without_kernels(_OPERATION, query.device.type, query.dtype) is None:
        if relative is not None:  # under autocast tables keep their dtype
            tables = (None if table is None else table.to(query.dtype) for table in relative[1:])
            relative = RelativeTerms(relative.index, *tables)
        packed = ops.document_attention(
            query, key, value, packing.documents, dropout_p=dropout_p, scale=scale, window=window, relative=relative
        )
        return packed.flatten(1)
    q, k, v = (packing.pad(part).transpose(1, 2) for part in (query, key, value))  # [B, heads, L, head_dim]
    padded = F.scaled_dot_product_attention(q, k, v, attn_mask=packing.keys_mask, dropout_p=dropout_p, scale=scale)
    return packing.pack(padded.transpose(1, 2)).flatten(1)


def sees_alone(parts: LayerParts, qkv: Tensor, batch: Batch) -> bool:
    """Whether `attend_jointly` takes a layer and a batch: compiled kernels for nothing but scores in documents."""
    known = (batch.linked, parts.angles, parts.relative, parts.window)
    missing = ops.backends.without_kernels(_OPERATION, qkv.device.type, qkv.dtype)
    return missing is None and all(each is None for each in known)


def attend_jointly(parts: LayerParts, qkv: Tensor, batch: Batch, *, dropout_p: float) -> Tensor:
    """`attend` of queries, keys and values in one tensor `[T, 3, heads, head_dim]`, as is their gradient."""
    documents = batch.packing.documents
    return ops.document_attention_qkv(qkv, documents, dropout_p=dropout_p, scale=parts.scale).flatten(1)


def missing_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    """What an encoder on this device lacks and what that costs, in a line; None where it lacks nothing."""
    reason = ops.backends.without_kernels(_OPERATION, device.type, dtype)
    if reason is None:
        return None
    return (
        f"no compiled attention for {str(dtype).removeprefix('torch.')} on {device.type} ({reason}): PyTorch's own "
        "takes its place, on padded rows, and batches with much padding take longer than with it"
    )
