"""document_attention on 16 documents of log-normal lengths, 12 heads of 64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from baselines import attention_padded, attention_per_document
from batches import document_lengths
from conftest import assert_agrees
from torch import Tensor

from spanbert_kernels import ops

HEADS, HEAD_DIM = 12, 64


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    lengths = document_lengths()
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    qkv = torch.randn(int(lengths.sum()), 3, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    return qkv.to(dtype), cu_seqlens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.inference_mode()
def test_forward(compare: Callable[..., None], dtype: torch.dtype) -> None:
    qkv, cu_seqlens = inputs(dtype)
    q, k, v = qkv.unbind(1)
    offsets, lengths = cu_seqlens.tolist(), cu_seqlens.diff()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.zeros(*mask.shape, 3, HEADS, HEAD_DIM, dtype=dtype)
    padded[mask] = qkv
    padded_q, padded_k, padded_v = padded.permute(2, 0, 3, 1, 4)
    reference = attention_per_document(q.double(), k.double(), v.double(), offsets)
    eager = attention_per_document(q, k, v, offsets)
    compare(
        lambda: ops.document_attention(q, k, v, cu_seqlens),
        {
            "SDPA per document": lambda: attention_per_document(q, k, v, offsets),
            "SDPA padded": lambda: attention_padded(padded_q, padded_k, padded_v, mask),
        },
        error=assert_agrees(ops.document_attention(q, k, v, cu_seqlens), eager, reference),
    )


def test_forward_and_backward(compare: Callable[..., None]) -> None:
    qkv, cu_seqlens = inputs(torch.float32)
    offsets = cu_seqlens.tolist()
    grad = torch.randn(qkv.shape[0], HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1))

    def gradient(way: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        leaf = qkv.to(dtype, copy=True).requires_grad_()
        way(*leaf.unbind(1)).backward(grad.to(dtype))
        assert leaf.grad is not None
        return leaf.grad

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.document_attention(q, k, v, cu_seqlens)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_per_document(q, k, v, offsets)

    error = assert_agrees(gradient(ours), gradient(theirs), gradient(theirs, torch.float64))
    compare(lambda: gradient(ours), {"SDPA per document": lambda: gradient(theirs)}, error=error)
