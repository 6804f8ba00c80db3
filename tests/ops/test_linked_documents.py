"""Attention between linked documents costs what the links do, not what all pairs would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spanbert_kernels.ops import cross_document_attention, library, plan_attention
from spanbert_kernels.ops.attention.work import pair_statistics
from spanbert_kernels.ops.cross_document_attention import linked_reference, reference

HEADS, DIM = 2, 8
built = pytest.mark.skipif(library.cpu_isa() is None, reason="the CPU library is not built")
normalizations = pytest.mark.parametrize("normalize", ["joint", "pairwise"])


class Ring:
    """One cluster of documents in a ring, each linked to the next ones: no link is twice there or to itself."""

    def __init__(self, documents: int, degree: int, tokens: int = 1) -> None:
        self.cu_seqlens, self.cu_clusters = torch.arange(documents + 1) * tokens, torch.tensor([0, documents])
        steps = torch.arange(documents)[:, None] + torch.arange(1, degree + 1)
        self.links = torch.arange(documents + 1) * degree, (steps % documents).flatten()

    def tensors(self, queries: str, keys: str) -> dict[str, Tensor]:
        rows = {"anchors": len(self.cu_seqlens) - 1, "tokens": int(self.cu_seqlens[-1])}
        generator = torch.Generator().manual_seed(5)
        sides = {"q": queries, "k": keys, "v": keys}
        return {name: torch.randn(rows[side], HEADS, DIM, generator=generator) for name, side in sides.items()}


def pairs_met(ring: Ring, queries: str, keys: str, linked: bool = True, **options: Any) -> int:
    """Pairs of rows that the CPU kernels go through, forward and backward."""
    leaves = [tensor.requires_grad_() for tensor in ring.tensors(queries, keys).values()]
    before = torch.ops.spanbert_kernels.document_attention_pairs_met()
    links = ring.links if linked else None
    offsets = (ring.cu_seqlens, ring.cu_clusters, queries, keys)
    output = cross_document_attention(*leaves, *offsets, links=links, **options, backend="cpu")
    assert isinstance(output, Tensor)
    output.sum().backward()
    return torch.ops.spanbert_kernels.document_attention_pairs_met() - before


@built
@normalizations
@pytest.mark.parametrize(
    ("queries", "keys"), [("anchors", "anchors"), ("tokens", "anchors"), ("anchors", "tokens"), ("tokens", "tokens")]
)
def test_kernels_go_through_linked_pairs_alone(queries: str, keys: str, normalize: str) -> None:
    tokens, degree = 3, 4
    rows = (tokens if queries == "tokens" else 1) * (tokens if keys == "tokens" else 1)
    for documents in (200, 400):
        met = pairs_met(Ring(documents, degree, tokens), queries, keys, normalize=normalize)
        assert met == 2 * HEADS * documents * degree * rows  # forward and backward


@built
def test_dense_links_and_small_clusters_go_in_blocks() -> None:
    """At most eight times the linked pairs: in blocks of many rows these cost less than row by row."""
    for documents, degree in ((200, 25), (100, 1)):
        assert pairs_met(Ring(documents, degree), "anchors", "anchors") == 2 * HEADS * documents**2
    assert pairs_met(Ring(200, 24), "anchors", "anchors") == 2 * HEADS * 200 * 24
    assert pairs_met(Ring(50, 1), "anchors", "anchors", linked=False) == 2 * HEADS * 50**2


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_softmax_a_pair_keeps_as_many_numbers_as_there_are_linked_rows(tokens: int) -> None:
    for documents in (100, 200):
        ring = Ring(documents, 4, tokens)
        side = "tokens" if tokens > 1 else "anchors"
        work = plan_attention(ring.cu_seqlens, ring.cu_clusters, side, side, links=ring.links).work(tiled=True)
        size = pair_statistics(work, documents * tokens, documents).size
        assert size == documents * 4 * tokens


@normalizations
@pytest.mark.parametrize(("queries", "keys"), [("anchors", "anchors"), ("tokens", "tokens")])
def test_eager_makes_no_matrix_of_rows(
    queries: str, keys: str, normalize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few links go pair by pair; many, where the matrix is the smaller, do not."""
    met: list[int] = []

    def linked_attention(*arguments: Any) -> Any:
        met.append(len(arguments[3].slot))
        return linked_reference.linked_attention(*arguments)

    monkeypatch.setattr(reference, "linked_attention", linked_attention)
    tokens, degree = (3 if queries == "tokens" else 1), 4
    for documents in (200, 400):
        ring = Ring(documents, degree, tokens)
        offsets = (ring.cu_seqlens, ring.cu_clusters, queries, keys)
        leaves = list(ring.tensors(queries, keys).values())
        cross_document_attention(*leaves, *offsets, links=ring.links, normalize=normalize, backend="eager")
        assert met.pop() == documents * degree * tokens**2
    dense = Ring(20, 19, tokens)
    leaves = list(dense.tensors(queries, keys).values())
    offsets = (dense.cu_seqlens, dense.cu_clusters, queries, keys)
    cross_document_attention(*leaves, *offsets, links=dense.links, normalize=normalize, backend="eager")
    assert not met


@built
@normalizations
def test_one_document_that_all_link_to(normalize: str) -> None:
    """A hub with many links, and one that many see: most lists are short, and one is as long as the cluster."""
    documents = 150
    lists = [list(range(1, documents))] + [[0]] * (documents - 1)
    indptr = torch.tensor([0, *(len(targets) for targets in lists)]).cumsum(0)
    indices = torch.tensor([target for targets in lists for target in targets])
    ring = Ring(documents, 1)
    leaves = [tensor.double().requires_grad_() for tensor in ring.tensors("anchors", "anchors").values()]
    results = []
    for backend in ("cpu", "eager"):
        output, weights = cross_document_attention(
            *leaves,
            ring.cu_seqlens,
            ring.cu_clusters,
            links=(indptr, indices),
            normalize=normalize,
            return_weights=True,
            backend=backend,
        )
        results.append((output, weights, *torch.autograd.grad(output.square().sum(), leaves)))
    for found, exact in zip(*results, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-9)


@normalizations
@built
def test_the_same_bits_from_any_number_of_threads(normalize: str) -> None:
    ring = Ring(200, 5, 2)
    leaves = [tensor.requires_grad_() for tensor in ring.tensors("tokens", "tokens").values()]
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            output = cross_document_attention(
                *leaves, ring.cu_seqlens, ring.cu_clusters, "tokens", "tokens", links=ring.links, normalize=normalize
            )
            assert isinstance(output, Tensor)
            results.append((output, *torch.autograd.grad(output.square().sum(), leaves)))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
