"""Anchors and the document of a token."""

from __future__ import annotations

import pytest
import torch

from spanbert_kernels.ops import anchor_indices
from spanbert_kernels.ops.documents import document_of


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_anchors(dtype: torch.dtype) -> None:
    cu_seqlens = torch.tensor([0, 3, 3, 4, 6, 6], dtype=dtype)
    last, first = anchor_indices(cu_seqlens), anchor_indices(cu_seqlens, "first")
    assert last.tolist() == [2, -1, 3, 5, -1]
    assert first.tolist() == [0, -1, 3, 4, -1]
    assert last.dtype == first.dtype == torch.int64


def test_no_documents() -> None:
    assert anchor_indices(torch.tensor([0])).tolist() == []


@pytest.mark.parametrize(
    ("error", "text", "cu_seqlens", "which"),
    [
        (ValueError, 'which must be "last" or "first", got \'middle\'', torch.tensor([0, 1]), "middle"),
        (ValueError, r"cu_seqlens must ascend, but cu_seqlens\[2\] = 1 comes after 2", torch.tensor([0, 2, 1]), "last"),
        (ValueError, "cu_seqlens must start with 0, got 2", torch.tensor([2, 3]), "last"),
        (ValueError, "cu_seqlens must hold at least one offset", torch.zeros(0).long(), "last"),
        (TypeError, "cu_seqlens must be int32 or int64, got torch.float32", torch.zeros(2), "last"),
        (TypeError, "cu_seqlens must be a tensor .* got list", [0, 1], "last"),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, cu_seqlens: torch.Tensor, which: str) -> None:
    with pytest.raises(error, match=text):
        anchor_indices(cu_seqlens, which)


def test_document_of_every_token() -> None:
    assert document_of(torch.tensor([0, 0, 2, 2, 3], dtype=torch.int32), 3).tolist() == [1, 1, 3]
    assert document_of(torch.tensor([0]), 0).tolist() == []
