"""What both paths are timed against: PyTorch's own ways compute what our definitions do, and draw by no counters."""

from __future__ import annotations

import pytest
import torch
from task_results import own_path
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.ops.cross_document_attention import reference as across
from spanbert_kernels.ops.span_pool import reference as pooling

PARTS = ("start", "end", "mean", "attention", "width")


def with_gradients(output: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Itself and the gradients of a sum that weighs its entries."""
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return output, *torch.autograd.grad((output * weights).sum(), leaves)


@pytest.mark.parametrize("tokens", [40, 400])
def test_spans_are_pooled_alike(tokens: int) -> None:
    """By a product with all tokens, and by gathered ones where they are many."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(tokens - 4, (30,), generator=generator)
    end = start + torch.randint(1, 5, (30,), generator=generator)
    leaves = [
        torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((tokens, 8), (tokens, 1), (4, 3))
    ]
    hidden, scores, table = leaves
    given = (start, end, PARTS, scores, table, end - start - 1)
    assert (tokens <= own_path.DENSE * int((end - start).max())) == (tokens == 40)
    for ours, theirs in zip(
        with_gradients(pooling.span_pool(hidden, *given), *leaves),
        with_gradients(own_path.pooled(hidden, *given), *leaves),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours)
    none = torch.zeros(0, dtype=torch.int64)
    assert own_path.pooled(hidden, none, none, PARTS, scores, table, none).shape == (0, 4 * 8 + 3)
    with pytest.raises(NotImplementedError, match="max"):
        own_path.pooled(hidden, start, end, ("max",), None, None, None)


@pytest.mark.parametrize(("side", "include_self"), [("tokens", False), ("tokens", True), ("anchors", False)])
def test_documents_attend_alike(side: str, include_self: bool) -> None:
    """Also one that is empty, and one that is alone in its cluster."""
    cu_seqlens, cu_clusters = torch.tensor([0, 3, 3, 7, 9, 12]), torch.tensor([0, 3, 4, 5])
    rows = 5 if side == "anchors" else 12
    q, k, v = torch.randn(3, rows, 2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
    sight = (cu_seqlens, cu_clusters, side, side, include_self, None, "joint", 0.7)
    ours = across.cross_document_attention(q, k, v, *sight, 0.0, None, False)[0]
    theirs = own_path.attended(q, k, v, *sight, 0.0, False)[0]
    for one, other in zip(with_gradients(ours, q, k, v), with_gradients(theirs, q, k, v), strict=True):
        torch.testing.assert_close(other, one)


def test_no_counters_are_drawn_by() -> None:
    """Spans' dropout is PyTorch's own; whatever asks for the counters is refused; all is as it was afterwards."""
    hidden, spans = torch.randn(6, 8), torch.tensor([[0, 1], [2, 4], [5, 5]])
    weight, layer = torch.randn(4, 16), torch.randn(1, 4)

    def scored() -> Tensor:
        found: Tensor = ops.span_score(
            hidden, spans, ["start", "end"], weight, None, layer, None, dropout_p=0.5, backend="eager"
        )
        return found

    with own_path.on_pytorchs_own() as calls:
        scored()
        assert dict(calls) == {own_path.DROPOUT: 1, own_path.POOLING: 1}
        with pytest.raises(AssertionError, match="counters"):
            ops.document_attention(*torch.randn(3, 6, 1, 4), torch.tensor([0, 6]), dropout_p=0.5, backend="eager")
    scored()
    assert sum(calls.values()) == 2
