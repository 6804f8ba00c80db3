"""Stage 3: attention between the documents of a cluster, on padded clusters, or packed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.agreement import Difference
from spanbert_kernels.cli.encoding import Selection
from spanbert_kernels.cli.measuring import Effort, compare
from spanbert_kernels.cli.stages import StageResult, offsets_of
from spanbert_kernels.ops.backends import record


def attend_padded(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    """Attention between the anchors of each cluster, a document never to itself, the eager way: pad clusters, mask.

    `q, k, v [D, heads, d]`, `sizes [C]` documents a cluster -> `[D, heads, d]`.
    """
    largest = int(sizes.max())
    real = torch.arange(largest)[None, :] < sizes[:, None]  # [C, M]

    def pad(rows: Tensor) -> Tensor:
        padded = rows.new_zeros(len(sizes), largest, *rows.shape[1:])
        padded[real] = rows
        return padded.transpose(1, 2)  # [C, heads, M, d]

    visible = real[:, None, None, :] & ~torch.eye(largest, dtype=torch.bool)
    scores = pad(q) @ pad(k).transpose(2, 3) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).masked_fill(~visible, 0.0)
    return (weights @ pad(v)).transpose(1, 2)[real]


def compare_cross_document(
    hidden: Tensor, selection: Selection, labels: Sequence[str], heads: int, seed: int, effort: Effort
) -> StageResult:
    """Attention between the anchors of a cluster's documents, on random projections of `hidden [T, H]`."""
    clusters = list(dict.fromkeys(labels))
    order = sorted(range(len(labels)), key=lambda i: clusters.index(labels[i]))  # clusters together
    offsets = offsets_of([document.tokens for document in selection.documents])
    anchors = hidden[ops.anchor_indices(offsets, "last")][order]  # [D, H]
    sizes = torch.tensor([list(labels).count(label) for label in clusters])
    cu_clusters, cu_seqlens = offsets_of(sizes.tolist()), offsets_of(offsets.diff()[order].tolist())
    q, k, v = _project(anchors, heads, seed)
    difference = Difference()
    with record() as calls:
        timing = compare(
            [None],
            lambda _: attend_padded(q, k, v, sizes),
            lambda _: ops.cross_document_attention(q, k, v, cu_seqlens, cu_clusters),
            difference.see,
            effort,
            largest=0,
        )
    reference = attend_padded(q.double(), k.double(), v.double(), sizes)
    alone = int((sizes == 1).sum())
    return StageResult(
        title="Cross-document attention",
        baseline="anchors in eager PyTorch: padded clusters, masks",
        accelerated="anchors with ops.cross_document_attention",
        unit="documents",
        count=len(labels),
        timing=timing,
        agreement=difference.judge("all documents", reference),
        backends=sorted(set(calls)),
        notes=[f"{formatting.count(alone, 'document')} alone in a cluster: nothing to see, output 0."] if alone else [],
    )


def _project(anchors: Tensor, heads: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[D, heads, d]`, views of one fused projection with random weights."""
    size = anchors.shape[1]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3 * size, size, generator=generator).div_(math.sqrt(size)).to(anchors.dtype)
    fused = torch.nn.functional.linear(anchors, weight).view(len(anchors), 3, heads, size // heads)
    q, k, v = fused.unbind(1)
    return q, k, v
