"""cross_document_attention, 12 heads of 64: tokens with the tokens of the other documents, anchors with anchors.

The sub-layer is all that a model adds for it, against its matrix products alone: `bench_cross_document_mixer.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from baselines import CompiledFlexAttention, attention_masked, attention_per_cluster
from batches import offsets_of, real_lengths
from goals import Goal
from registry import BOTH, FORWARD, Inputs, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

HEADS, HEAD_DIM = 12, 64
DENSE, CLUSTERS, FLEX = "SDPA, dense mask", "SDPA per cluster, mask", "FlexAttention, compiled"
MASKED, SDPA = "padded, masked", "padded SDPA"
GATHERED = "keys gathered"


def clusters_of(workload: Workload) -> tuple[Tensor, Tensor]:
    """Lengths of the documents, and how many each cluster has."""
    options = workload.options
    if "real" in options:
        return real_lengths(options["real"], options["per_cluster"])
    if "links" in options:
        return torch.full((options["documents"],), 4), torch.tensor([options["documents"]])
    if options["side"] == "anchors":
        sizes = torch.from_numpy(numpy.random.default_rng(0).integers(3, 21, options["clusters"]))
        return torch.full((int(sizes.sum()),), 4), sizes
    return torch.full((10 * options["clusters"],), 64), torch.full((options["clusters"],), 10)


def links_of(workload: Workload, documents: int) -> Tensor | None:
    """The documents that each one links to, others than itself and each once, `[D, links]`; None: no links."""
    if "links" not in workload.options:
        return None
    steps = torch.from_numpy(numpy.random.default_rng(1).permutation(documents - 1)[: workload.options["links"]] + 1)
    return (torch.arange(documents)[:, None] + steps) % documents


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    lengths, sizes = clusters_of(workload)
    cu_seqlens, cu_clusters, side = offsets_of(lengths), offsets_of(sizes), workload.options["side"]
    targets = links_of(workload, len(lengths))
    links = None if targets is None else (torch.arange(len(lengths) + 1) * targets.shape[1], targets.flatten())
    plan = ops.plan_attention(cu_seqlens, cu_clusters, side, side, links=links)
    rows = len(lengths) if side == "anchors" else int(lengths.sum())
    qkv = torch.randn(rows, 3, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    given = {"cu_seqlens": cu_seqlens, "cu_clusters": cu_clusters, "plan": plan, "sizes": sizes, "lengths": lengths}
    given["targets"] = targets
    return Inputs((qkv.to(workload.dtype).to(dtype),), given)


def work(workload: Workload, inputs: Inputs) -> Work:
    """q, k, v and the output once; backward, those, a gradient in and three out."""
    rows, passes = len(inputs.leaves[0]), 3 if workload.direction == BOTH else 1
    weights = inputs.given["lengths"].double() if workload.options["side"] == "tokens" else torch.ones(rows)
    cluster = torch.repeat_interleave(inputs.given["sizes"])
    per_cluster = torch.zeros(len(inputs.given["sizes"]), dtype=torch.double).index_add(0, cluster, weights.double())
    targets = inputs.given["targets"]
    pairs = float(per_cluster.square().sum() - weights.square().sum()) if targets is None else float(targets.numel())
    axes = {"rows": rows, "documents": len(cluster), "clusters": len(per_cluster)}
    products = (1.0, 3.5)[passes == 3] * 4 * pairs * HEADS * HEAD_DIM
    return Work(axes, passes * 4 * rows * HEADS * HEAD_DIM * workload.dtype.itemsize, int(products))


def ours(workload: Workload, inputs: Inputs) -> Way:
    def way(qkv: Tensor) -> Tensor:
        result = ops.cross_document_attention(*qkv.unbind(1), inputs.given["plan"])
        assert isinstance(result, Tensor)
        return result

    return way


def sight_of(inputs: Inputs) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """The document of each token, and whether a token sees another: of its cluster, not of its document."""
    document = torch.repeat_interleave(inputs.given["lengths"])
    cluster = torch.repeat_interleave(inputs.given["sizes"])[document]
    return document, lambda q, k: (cluster[q] == cluster[k]) & (document[q] != document[k])


def dense(workload: Workload, inputs: Inputs) -> Way:
    document, sees = sight_of(inputs)
    index = torch.arange(len(document))
    mask = sees(index[:, None], index)
    return lambda qkv: attention_masked(*qkv.unbind(1), mask)


def per_cluster(workload: Workload, inputs: Inputs) -> Way:
    _, sees = sight_of(inputs)
    offsets = inputs.given["cu_seqlens"][inputs.given["cu_clusters"].long()].tolist()
    rows = [torch.arange(a, b) for a, b in itertools.pairwise(offsets)]
    masks = [sees(index[:, None], index) for index in rows]
    return lambda qkv: attention_per_cluster(*qkv.unbind(1), offsets, masks)


def flex(workload: Workload, inputs: Inputs) -> Way:
    attend = CompiledFlexAttention(*sight_of(inputs))
    return lambda qkv: attend(*qkv.unbind(1))


class Padded:
    """Anchors of clusters as a padded batch `[C, largest, ..]`, and the documents that each one sees there."""

    def __init__(self, inputs: Inputs) -> None:
        sizes = inputs.given["sizes"]
        place = torch.arange(int(sizes.max()))
        self.real = place < sizes[:, None]
        self.visible = self.real[:, None, None, :] & ~torch.eye(len(place), dtype=torch.bool)

    def parts(self, qkv: Tensor) -> Tensor:
        """Query, key, value, each `[C, heads, documents, head_dim]`."""
        batch = qkv.new_zeros(*self.real.shape, 3, HEADS, HEAD_DIM)
        batch[self.real] = qkv
        return batch.permute(2, 0, 3, 1, 4)


def masked(workload: Workload, inputs: Inputs) -> Way:
    batch = Padded(inputs)

    def way(qkv: Tensor) -> Tensor:
        query, key, value = batch.parts(qkv)
        scores = query @ key.mT * HEAD_DIM**-0.5
        weights = scores.masked_fill(~batch.visible, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2)[batch.real]

    return way


def padded_sdpa(workload: Workload, inputs: Inputs) -> Way:
    batch = Padded(inputs)

    def way(qkv: Tensor) -> Tensor:
        result = F.scaled_dot_product_attention(*batch.parts(qkv), attn_mask=batch.visible)
        return result.transpose(1, 2)[batch.real]

    return way


def gathered(workload: Workload, inputs: Inputs) -> Way:
    """As many links from each document: their keys and values side by side."""
    targets = inputs.given["targets"]

    def way(qkv: Tensor) -> Tensor:
        query, key, value = qkv.unbind(1)
        weights = torch.einsum("dhc,dlhc->dhl", query * HEAD_DIM**-0.5, key[targets]).softmax(-1)
        return torch.einsum("dhl,dlhc->dhc", weights, value[targets])

    return way


def exact(workload: Workload, inputs: Inputs) -> Way:
    """Whatever eager is for the workload."""
    if "links" in workload.options:
        return gathered(workload, inputs)
    return (masked if workload.options["side"] == "anchors" else per_cluster)(workload, inputs)


DTYPES = (torch.float32, torch.bfloat16)


def tokens(name: str, direction: str, *goals: Goal, providers: tuple[str, ...] = (), **fields: Any) -> Workload:
    options = {"side": "tokens", "providers": ("ours", CLUSTERS, *providers), **fields.pop("options", {})}
    return Workload(name, direction, goals=goals, options=options, **{"seconds": 8.0, **fields})


def anchors(name: str, direction: str, clusters: int, *goals: Goal, **fields: Any) -> Workload:
    options = {"side": "anchors", "clusters": clusters, "providers": ("ours", MASKED, SDPA)}
    return Workload(name, direction, goals=goals, options=options, **{"seconds": 4.0, **fields})


def linked(documents: int, direction: str, **fields: Any) -> Workload:
    options = {"side": "anchors", "documents": documents, "links": 5, "providers": ("ours", GATHERED)}
    return Workload(
        f"anchors of one cluster of {documents:,}, 5 links each",
        direction,
        options=options,
        **{"seconds": 1.0, **fields},
    )


PACKED = "8 clusters x 10 documents x 64 tokens"
RANDOM = "anchors of 200 clusters of 3 to 20"
EIGHT = {"clusters": 8}
SUITE = register(
    Suite(
        "cross_document_attention",
        (
            *(
                tokens(PACKED, FORWARD, Goal(9, against=DENSE), Goal(2, against=FLEX), Goal(1.2, against=CLUSTERS),
                       providers=(DENSE, FLEX), dtype=dtype, options=EIGHT)
                for dtype in DTYPES
            ),
            *(
                tokens(PACKED, BOTH, Goal(6, against=DENSE), Goal(1.2, against=CLUSTERS), providers=(DENSE,),
                       dtype=dtype, options=EIGHT)
                for dtype in DTYPES
            ),
            tokens("meantime, 4 topics x 8 documents", FORWARD, options={"real": "meantime", "per_cluster": 8}),
            tokens("the package's own documents", FORWARD, options={"real": "package", "per_cluster": 8}, quick=True),
            *(
                anchors(RANDOM, direction, 200, Goal(4, against=MASKED), dtype=dtype,
                        quick=direction == FORWARD and dtype == torch.float32)
                for direction in (FORWARD, BOTH)
                for dtype in DTYPES
            ),
            *(
                anchors(f"anchors of {count:,} clusters", FORWARD, count, seconds=1.0, curve="anchors over clusters",
                        scaling="clusters")
                for count in (10, 50, 250, 1000)
            ),
            *(
                linked(count, direction, curve="linked anchors over documents", scaling="documents")
                for direction in (FORWARD, BOTH)
                for count in (1_250, 2_500, 5_000, 10_000)
            ),
        ),
        {
            "ours": Provider(ours, "ours"),
            CLUSTERS: Provider(per_cluster, "eager"),
            MASKED: Provider(masked, "eager"),
            GATHERED: Provider(gathered, "eager"),
            DENSE: Provider(dense),
            FLEX: Provider(flex, backward=False, compiles=True),
            SDPA: Provider(padded_sdpa),
            "in float64": Provider(exact),
        },
        inputs,
        work,
        reference="in float64",
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
