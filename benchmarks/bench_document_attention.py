"""document_attention, 12 heads of 64, on documents of log-normal and of real lengths, against PyTorch's attentions.

The padded way gets a batch that is padded already: packing and unpacking it is not counted. With dropout the masks
differ, so that results are compared at a rate of 0, and what is timed drops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from baselines import CompiledFlexAttention, attention_padded, attention_per_document
from batches import document_lengths, offsets_of, padding_share, real_lengths
from goals import Goal
from registry import BACKWARD, BOTH, FORWARD, Inputs, Prepared, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.ops.documents import document_of

HEADS, HEAD_DIM = 12, 64
PADDED, LOOP, FLEX = "SDPA padded", "SDPA per document", "FlexAttention, compiled"
# Tensors of [T, heads, head_dim] that are read or written at least, and operations as shares of the forward's.
PASSES = {FORWARD: (4, 1.0), BACKWARD: (8, 2.5), BOTH: (12, 3.5)}


def lengths_of(workload: Workload) -> Tensor:
    options = workload.options
    if "real" in options:
        return real_lengths(options["real"], options["per_cluster"])[0]
    return document_lengths(options.get("documents", 16), options.get("sigma", 0.7))


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    lengths = lengths_of(workload)
    shape = (int(lengths.sum()), 3, HEADS, HEAD_DIM)
    qkv = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(workload.dtype).to(dtype)
    return Inputs((qkv,), {"lengths": lengths, "cu_seqlens": offsets_of(lengths)})


def work(workload: Workload, inputs: Inputs) -> Work:
    lengths: Tensor = inputs.given["lengths"]
    transfers, products = PASSES[workload.direction]
    tokens, pairs, size = int(lengths.sum()), int(lengths.square().sum()), HEADS * HEAD_DIM
    axes = {"tokens": tokens, "documents": len(lengths), "padding": padding_share(lengths)}
    return Work(axes, transfers * tokens * size * workload.dtype.itemsize, int(products * 4 * pairs * size))


def at_rates(workload: Workload, way: Callable[[float], Way], leaves: tuple[Tensor, ...], **more: Any) -> Prepared:
    """The way at a rate of dropout of 0, and at the workload's where there is one."""
    rate = workload.options.get("dropout", 0.0)
    return Prepared(way(0.0), leaves, timed=way(rate) if rate else None, **more)


def ours(workload: Workload, inputs: Inputs) -> Prepared:
    def way(rate: float) -> Way:
        return lambda qkv: ops.document_attention(*qkv.unbind(1), inputs.given["cu_seqlens"], dropout_p=rate)

    return at_rates(workload, way, inputs.leaves)


def per_document(workload: Workload, inputs: Inputs) -> Prepared:
    offsets = inputs.given["cu_seqlens"].tolist()

    def way(rate: float) -> Way:
        return lambda qkv: attention_per_document(*qkv.unbind(1), offsets, rate)

    return at_rates(workload, way, inputs.leaves)


def padded(workload: Workload, inputs: Inputs) -> Prepared:
    lengths, qkv = inputs.given["lengths"], inputs.leaves[0]
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    batch = qkv.new_zeros(*mask.shape, 3, HEADS, HEAD_DIM)
    batch[mask] = qkv

    def unpack(tensor: Tensor) -> Tensor:
        """Of the output `[B, heads, L, head_dim]`, or of the gradient, which has a dimension of three before."""
        return (tensor.permute(1, 3, 0, 2, 4) if tensor.dim() == 5 else tensor.transpose(1, 2))[mask]

    def way(rate: float) -> Way:
        return lambda parts: attention_padded(*parts.unbind(0), mask, rate)

    leaves = (batch.permute(2, 0, 3, 1, 4).contiguous(),)  # [3, B, heads, L, head_dim]
    return at_rates(workload, way, leaves, unpack=unpack)


def flex(workload: Workload, inputs: Inputs) -> Way:
    document = document_of(inputs.given["cu_seqlens"], len(inputs.leaves[0]))
    attend = CompiledFlexAttention(document, lambda query, key: document[query] == document[key])
    return lambda qkv: attend(*qkv.unbind(1))


WITHOUT_FLEX = ("ours", LOOP, PADDED)
DTYPES = (torch.float32, torch.bfloat16)


def row(name: str, direction: str = FORWARD, *goals: Goal, **fields: Any) -> Workload:
    fields["options"] = {"providers": WITHOUT_FLEX, **fields.get("options", {})}
    return Workload(name, direction, goals=goals, **{"seconds": 3.0, **fields})


def point(name: str, axis: str, **options: Any) -> Workload:
    return row(name, options=options, seconds=1.0, curve=f"attention over {axis}", scaling=axis)


SUITE = register(
    Suite(
        "document_attention",
        (
            *(
                row("16 documents", FORWARD, Goal(4, against=PADDED), Goal(3.5, against=FLEX), Goal(1.2, against=LOOP),
                    dtype=dtype, options={"providers": (*WITHOUT_FLEX, FLEX)}, seconds=4.0)
                for dtype in DTYPES
            ),
            *(
                row("16 documents", BOTH, Goal(3.5, against=PADDED), Goal(1.2, against=LOOP), dtype=dtype, seconds=4.0,
                    quick=dtype == torch.float32)
                for dtype in DTYPES
            ),
            row("16 documents", BACKWARD),
            row("the package's own documents", options={"real": "package", "per_cluster": 8}, quick=True),
            row("15 documents of gum", options={"real": "gum", "per_cluster": 3}),
            row("15 documents of gum, dropout", BOTH, options={"real": "gum", "per_cluster": 3, "dropout": 0.1}),
            row("the package's own documents, dropout", BOTH,
                options={"real": "package", "per_cluster": 8, "dropout": 0.1}, quick=True),
            *(point(f"{count} documents", "documents", documents=count) for count in (1, 4, 32, 128)),
            *(point(f"64 documents, sigma {s:g}", "padding", documents=64, sigma=s) for s in (0.0, 0.25, 0.5, 1.0)),
        ),
        {
            "ours": Provider(ours, "ours"),
            LOOP: Provider(per_document, "eager"),
            PADDED: Provider(padded),
            FLEX: Provider(flex, backward=False, compiles=True),
        },
        inputs,
        work,
        reference=LOOP,
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
