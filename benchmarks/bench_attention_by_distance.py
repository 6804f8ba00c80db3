"""document_attention with a window and with terms by distance, 12 heads of 64, against what transformers runs.

ModernBERT's local layers on a CPU are SDPA with a dense mask; DeBERTa has its own formula alone, in tensors of
[batch * heads, L, L]. Their batches are padded already, which is nothing where all documents are of one length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from batches import offsets_of
from goals import Goal
from registry import BACKWARD, BOTH, FORWARD, Inputs, Prepared, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

HEADS, HEAD_DIM, WINDOW = 12, 64, 64
BUCKETS, REACH = 256, 512
THEIRS = "as transformers runs it"
# Tensors of [T, heads, head_dim] that are read or written at least, and operations as shares of the forward's.
PASSES = {FORWARD: (4, 1.0), BACKWARD: (8, 2.5), BOTH: (12, 3.5)}


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    documents, length = workload.options["documents"]
    generator = torch.Generator().manual_seed(0)
    shapes = [(documents * length, 3, HEADS, HEAD_DIM)]
    if "window" not in workload.options:
        shapes += [(2, 2 * BUCKETS, HEADS, HEAD_DIM)]
    leaves = tuple(torch.randn(shape, generator=generator).to(workload.dtype).to(dtype) for shape in shapes)
    return Inputs(leaves, {"cu_seqlens": offsets_of(torch.full((documents,), length)), "scale": (3 * HEAD_DIM) ** -0.5})


def work(workload: Workload, inputs: Inputs) -> Work:
    documents, length = workload.options["documents"]
    transfers, products = PASSES[workload.direction]
    tokens, seen = documents * length, min(length, 2 * workload.options.get("window", length) + 1)
    axes = {"tokens": tokens, "documents": documents}
    # A term is one product more, of as many rows as there are keys or rows of the table.
    terms = 0 if "window" in workload.options else 2 * min(length, 2 * BUCKETS)
    operations = int(products * (4 * seen + 2 * terms) * tokens * HEADS * HEAD_DIM)
    return Work(axes, transfers * tokens * HEADS * HEAD_DIM * workload.dtype.itemsize, operations)


def ours(workload: Workload, inputs: Inputs) -> Way:
    offsets, scale = inputs.given["cu_seqlens"], inputs.given["scale"]
    if "window" in workload.options:
        return lambda qkv: ops.document_attention(*qkv.unbind(1), offsets, window=workload.options["window"])
    index = ops.log_bucketed_index(BUCKETS, REACH)

    def way(qkv: Tensor, tables: Tensor) -> Tensor:
        terms = ops.RelativeTerms(index, None, *tables.unbind(0))
        return ops.document_attention(*qkv.unbind(1), offsets, scale=scale, relative=terms)

    return way


def padded(workload: Workload, inputs: Inputs, attend: Callable[..., Tensor]) -> Prepared:
    """A way of `[3, documents, heads, length, head_dim]` and the tables."""
    documents, length = workload.options["documents"]

    def unpack(tensor: Tensor) -> Tensor:
        """Of the output `[documents, heads, L, head_dim]`, of the gradient, with three of them, and of the tables'."""
        if tensor.dim() == 5:
            return tensor.permute(1, 3, 0, 2, 4).flatten(0, 1)
        return tensor.transpose(1, 2).flatten(0, 1) if tensor.shape[0] == documents else tensor

    qkv, *tables = inputs.leaves
    batch = qkv.view(documents, length, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4).contiguous()
    return Prepared(lambda parts, *rest: attend(*parts.unbind(0), *rest), (batch, *tables), unpack)


def dense(workload: Workload, inputs: Inputs) -> Prepared:
    position, window = torch.arange(workload.options["documents"][1]), workload.options["window"]
    mask = ((position[:, None] - position).abs() <= window)[None, None]
    mask = mask.expand(workload.options["documents"][0], 1, -1, -1).contiguous()
    return padded(workload, inputs, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def formula(workload: Workload, inputs: Inputs) -> Prepared:
    """As in transformers' DisentangledSelfAttention, projections left out: products of all rows, then gathers."""
    length, scale = workload.options["documents"][1], inputs.given["scale"]
    position = torch.arange(length)
    distance = (position - position[:, None]).clamp(-REACH, REACH) + REACH
    index = ops.log_bucketed_index(BUCKETS, REACH).long()[distance]

    def attend(q: Tensor, k: Tensor, v: Tensor, tables: Tensor) -> Tensor:
        shape = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        keys, queries = (x.transpose(0, 1).repeat(shape[0], 1, 1) for x in tables.unbind(0))
        rows = index.expand(len(q), -1, -1)
        scores = torch.bmm(q, k.mT * scale)
        scores = scores + torch.bmm(q, keys.mT).gather(-1, rows) * scale
        scores = scores + torch.bmm(k, queries.mT).gather(-1, rows.mT).mT * scale
        return torch.bmm(scores.softmax(-1), v).view(shape)

    return padded(workload, inputs, attend)


def theirs(workload: Workload, inputs: Inputs) -> Prepared:
    return (dense if "window" in workload.options else formula)(workload, inputs)


def windows(direction: str, *goals: Goal, **fields: Any) -> Workload:
    options = {"documents": (8, 1024), "window": WINDOW}
    return Workload("8 x 1,024, window of 64", direction, options=options, goals=goals, seconds=3.0, **fields)


def disentangled(documents: int, length: int, direction: str, *goals: Goal, **fields: Any) -> Workload:
    options = {"documents": (documents, length)}
    return Workload(f"{documents} x {length}, disentangled", direction, options=options, goals=goals, **fields)


SUITE = register(
    Suite(
        "attention_by_distance",
        (
            windows(FORWARD, Goal(4, against=THEIRS)),
            windows(BOTH, Goal(3, against=THEIRS)),
            disentangled(16, 128, FORWARD, Goal(3, against=THEIRS), quick=True),
            disentangled(16, 128, BOTH, Goal(2.5, against=THEIRS)),
            disentangled(4, 512, FORWARD, Goal(3, against=THEIRS)),
            disentangled(4, 512, BOTH, Goal(2.5, against=THEIRS)),
            disentangled(16, 128, FORWARD, dtype=torch.bfloat16),
        ),
        {"ours": Provider(ours, "ours"), THEIRS: Provider(theirs, "eager")},
        inputs,
        work,
        reference=THEIRS,
    )
)


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
