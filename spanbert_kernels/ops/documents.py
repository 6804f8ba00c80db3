"""Packed documents: offsets, the document of each token, anchors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.choices import ANCHORS, Anchor

TAKERS_OF_A_COPY = 64


def anchor_indices(cu_seqlens: Tensor, which: Anchor = "last") -> Tensor:
    """The token that stands for each document.

    Args:
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents in the packed tokens.
        which: `"last"` real token (the default) or `"first"`.

    Returns:
        int64 `[D]`, packed positions; -1 for an empty document, which has no anchor.

    Raises:
        ValueError: `which` is neither, or the offsets do not ascend from 0.
        TypeError: the offsets are not int32 or int64.

    Source: one token for a document is how Transformer-XH (Zhao et al. 2020) lets documents attend to each other; there
    it is the first.

    Example:
        >>> anchor_indices(torch.tensor([0, 3, 3, 5])).tolist()
        [2, -1, 4]
    """
    checks.check_choice("which", which, ANCHORS)
    checks.check_offsets("cu_seqlens", cu_seqlens, None, "tokens")
    begin, end = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    anchor = end - 1 if which == "last" else begin
    return torch.where(end > begin, anchor, -1)


def document_of(cu_seqlens: Tensor, count: int) -> Tensor:
    """For each of `count` packed tokens the index of its document, int64 `[count]`.

    Example:
        >>> document_of(torch.tensor([0, 2, 2, 3]), 3).tolist()
        [0, 0, 2]
    """
    tokens = torch.arange(count, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens[1:].long().contiguous(), tokens, right=True)


def document_of_spans(cu_seqlens: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """For each span the document of its first token, int64 `[N]`; D for one without tokens, which is of none.

    Example:
        >>> document_of_spans(torch.tensor([0, 2, 2, 3]), torch.tensor([1, 2, 2]), torch.tensor([2, 3, 2])).tolist()
        [0, 2, 3]
    """
    offsets = cu_seqlens[1:].long().contiguous()
    return torch.where(end > start, torch.searchsorted(offsets, start.contiguous(), right=True), len(offsets))


def rows_of_documents(table: Tensor, document: Tensor) -> Tensor:
    """The row of `table [D, S]` of each document; zeros for document D, which is none.

    Example:
        >>> rows_of_documents(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 2, 0])).tolist()
        [[2.0], [0.0], [1.0]]
    """
    rows = F.pad(table, (0, 0, 0, 1))
    # A row that many take has copies, whose gradients are added up last: one long sum in float32 would lose digits.
    copies = 1 + len(document) // (TAKERS_OF_A_COPY * len(rows))
    copy = torch.arange(len(document), device=document.device) % copies
    return F.embedding(document * copies + copy, rows[:, None].expand(-1, copies, -1).flatten(0, 1))
