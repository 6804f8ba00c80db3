"""The whole sub-layer that lets documents see each other, against its matrix products alone.

Gather, LayerNorm, QKV, attention, projection, gate and the addition in place; 200 clusters of 3 to 20 documents.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
import torch
import torch.nn.functional as F
from batches import offsets_of
from goals import Goal
from registry import Inputs, Prepared, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.nn import CrossDocumentMixer

SIZE, HEADS, CLUSTERS, TOKENS = 768, 12, 200, 4
FLOOR = "its matrix products"


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    sizes = torch.from_numpy(numpy.random.default_rng(0).integers(3, 21, CLUSTERS))
    documents = int(sizes.sum())
    cu_seqlens, cu_clusters = offsets_of(torch.full((documents,), TOKENS)), offsets_of(sizes)
    torch.manual_seed(0)
    mixer = CrossDocumentMixer(SIZE, HEADS).eval()
    torch.nn.init.constant_(mixer.gate, 0.5)
    hidden = torch.randn(documents * TOKENS, SIZE)
    given = {"mixer": mixer.to(dtype), "cu_seqlens": cu_seqlens, "cu_clusters": cu_clusters}
    return Inputs((hidden.to(dtype),), given)


def work(workload: Workload, inputs: Inputs) -> Work:
    """Weights once, anchors read and added to; four products of [documents, 768] x [768, 768]."""
    documents = len(inputs.given["cu_seqlens"]) - 1
    moved = 4 * SIZE * SIZE + 3 * documents * SIZE
    axes = {"documents": documents, "clusters": CLUSTERS, "tokens": documents * TOKENS}
    return Work(axes, moved * workload.dtype.itemsize, 4 * 2 * documents * SIZE * SIZE)


def ours(workload: Workload, inputs: Inputs) -> Prepared:
    """In place, call after call on the same copy."""
    given = inputs.given
    plan = ops.plan_attention(given["cu_seqlens"], given["cu_clusters"])
    scratch = inputs.leaves[0].clone()
    return Prepared(lambda hidden: given["mixer"](scratch, plan, inplace=True), inputs.leaves, accumulates=True)


def eager(workload: Workload, inputs: Inputs) -> Prepared:
    """The same in eager PyTorch; where each anchor stands in its padded cluster is found beforehand, in its favour."""
    mixer, ends = inputs.given["mixer"], inputs.given["cu_seqlens"][1:].long() - 1
    sizes = inputs.given["cu_clusters"].diff()
    real = torch.arange(int(sizes.max())) < sizes[:, None]  # [C, L]
    visible = (real[:, None] & ~torch.eye(real.shape[1], dtype=torch.bool))[:, None]  # [C, 1, L, L]
    scratch = inputs.leaves[0].clone()

    def heads(rows: Tensor) -> Tensor:
        """`[D, H]` padded: `[C, heads, L, head_dim]`."""
        padded = rows.new_zeros(*real.shape, HEADS, SIZE // HEADS)
        padded[real] = rows.view(-1, HEADS, SIZE // HEADS)
        return padded.transpose(1, 2)

    def way(hidden: Tensor) -> Tensor:
        anchors = mixer.layer_norm(scratch[ends])
        parts = (heads(rows) for rows in (mixer.query(anchors), *mixer.key_value(anchors).chunk(2, dim=-1)))
        attended = F.scaled_dot_product_attention(*parts, attn_mask=visible).transpose(1, 2)[real].flatten(1)
        return scratch.index_add_(0, ends, torch.tanh(mixer.gate) * mixer.output(attended))

    return Prepared(way, inputs.leaves, accumulates=True)


def products(workload: Workload, inputs: Inputs) -> Way:
    mixer, ends = inputs.given["mixer"], inputs.given["cu_seqlens"][1:].long() - 1
    anchors = inputs.leaves[0][ends]

    def way(hidden: Tensor) -> Tensor:
        F.linear(anchors, mixer.query.weight)
        F.linear(anchors, mixer.key_value.weight)
        return F.linear(anchors, mixer.output.weight)

    return way


SUITE = register(
    Suite(
        "cross_document_mixer",
        (Workload("anchors of 200 clusters", goals=(Goal(at_most=1.15, against=FLOOR),), quick=True),),
        {"ours": Provider(ours, "ours"), "eager": Provider(eager, "eager"), FLOOR: Provider(products, "floor")},
        inputs,
        work,
        reference="eager",
    )
)


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
