"""document_attention on 16 documents of log-normal lengths, 12 heads of 64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from baselines import CompiledFlexAttention, attention_padded, attention_per_document
from batches import document_lengths
from torch import Tensor
from turns import Goal, assert_agrees

from spanbert_kernels import ops
from spanbert_kernels.ops.documents import document_of

HEADS, HEAD_DIM = 12, 64
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
PADDED, LOOP, FLEX = "SDPA padded", "SDPA per document", "FlexAttention, compiled"


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    lengths = document_lengths()
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    qkv = torch.randn(int(lengths.sum()), 3, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    return qkv.to(dtype), cu_seqlens


def padded_way(cu_seqlens: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]:
    """How a padded batch is made of packed rows, and attention on it."""
    lengths = cu_seqlens.diff()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]

    def pad(qkv: Tensor) -> Tensor:
        padded = qkv.new_zeros(*mask.shape, 3, HEADS, HEAD_DIM)
        padded[mask] = qkv
        return padded.permute(2, 0, 3, 1, 4)  # [3, B, heads, L, head_dim]

    return pad, lambda q, k, v: attention_padded(q, k, v, mask)


@DTYPES
@torch.inference_mode()
def test_forward(compare: Callable[..., None], dtype: torch.dtype) -> None:
    qkv, cu_seqlens = inputs(dtype)
    q, k, v = qkv.unbind(1)
    offsets, document = cu_seqlens.tolist(), document_of(cu_seqlens, len(qkv))
    pad, attend_padded = padded_way(cu_seqlens)
    padded = pad(qkv)
    reference = attention_per_document(q.double(), k.double(), v.double(), offsets)
    eager = attention_per_document(q, k, v, offsets)
    flex = CompiledFlexAttention(document, lambda query, key: document[query] == document[key])
    torch.testing.assert_close(flex(q, k, v), eager, rtol=2e-2, atol=2e-2)
    compare(
        lambda: ops.document_attention(q, k, v, cu_seqlens),
        {
            LOOP: lambda: attention_per_document(q, k, v, offsets),
            PADDED: lambda: attend_padded(*padded),
            FLEX: lambda: flex(q, k, v),
        },
        error=assert_agrees(ops.document_attention(q, k, v, cu_seqlens), eager, reference),
        goals=(Goal(4, against=PADDED), Goal(3.5, against=FLEX), Goal(1.2, against=LOOP)),
    )


@DTYPES
def test_forward_and_backward(compare: Callable[..., None], dtype: torch.dtype) -> None:
    qkv, cu_seqlens = inputs(dtype)
    offsets = cu_seqlens.tolist()
    grad = torch.randn(qkv.shape[0], HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    pad, attend_padded = padded_way(cu_seqlens)

    def gradient(way: Callable[..., Tensor], dtype: torch.dtype = dtype) -> Tensor:
        leaf = qkv.to(dtype, copy=True).requires_grad_()
        way(*leaf.unbind(1)).backward(grad.to(dtype))
        assert leaf.grad is not None
        return leaf.grad

    padded, padded_grad = pad(qkv), pad(grad.to(dtype)[:, None].expand(-1, 3, -1, -1))[0]

    def padded_gradient() -> Tensor:
        leaf = padded.clone().requires_grad_()
        attend_padded(*leaf.unbind(0)).backward(padded_grad)
        assert leaf.grad is not None
        return leaf.grad

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.document_attention(q, k, v, cu_seqlens)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_per_document(q, k, v, offsets)

    error = assert_agrees(gradient(ours), gradient(theirs), gradient(theirs, torch.float64))
    compare(
        lambda: gradient(ours),
        {LOOP: lambda: gradient(theirs), PADDED: padded_gradient},
        error=error,
        goals=(Goal(3.5, against=PADDED), Goal(1.2, against=LOOP)),
    )
