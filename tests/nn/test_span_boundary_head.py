"""The span boundary head against the published one, which concatenates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.nn import SpanBoundaryHead

SIZE, VOCABULARY, TARGETS = 12, 23, 4
SPANS = torch.tensor([[1, 1], [3, 8], [10, 12]])  # the second is wider than the head's targets


def concatenated(head: SpanBoundaryHead, hidden: Tensor, spans: Tensor) -> Tensor:
    """`[S, targets, V]`, every slot of every span, as the published code computes them."""
    left, right = (
        hidden[rows][:, None].expand(-1, head.max_targets, -1) for rows in (spans[:, 0] - 1, spans[:, 1] + 1)
    )
    positions = head.position_embeddings.weight.expand(len(spans), -1, -1)
    mlp = head.mlp_layer_norm
    inner = mlp.layer_norm1(F.gelu(mlp.linear1(torch.cat((left, right, positions), -1))))
    return head.decoder(mlp.layer_norm2(F.gelu(mlp.linear2(inner)))) + head.bias


def test_the_published_head() -> None:
    torch.manual_seed(0)
    head = SpanBoundaryHead(SIZE, VOCABULARY, TARGETS).double()
    torch.nn.init.normal_(head.bias)
    hidden = torch.randn(14, SIZE, dtype=torch.double, requires_grad=True)
    logits, span, slot = head(hidden, SPANS)
    assert list(zip(span.tolist(), slot.tolist(), strict=True)) == [
        (0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2),
    ]  # fmt: skip
    expected = concatenated(head, hidden, SPANS)[span, slot]
    torch.testing.assert_close(logits, expected)
    leaves = [hidden, *head.parameters()]
    grad = torch.randn_like(logits)
    found = torch.autograd.grad(logits, leaves, grad)
    for mine, theirs in zip(found, torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_no_span() -> None:
    logits, span, slot = SpanBoundaryHead(SIZE, VOCABULARY)(torch.randn(3, SIZE), SPANS[:0])
    assert (logits.shape, len(span), len(slot)) == ((0, VOCABULARY), 0, 0)
