"""What attention between documents promises whoever computes it: nothing unseen arrives, order does not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_checks import every_backend
from torch import Tensor

from spanbert_kernels.ops import cross_document_attention, document_attention, plan_attention

everywhere = every_backend("cross_document_attention")
everywhere_in_time = every_backend("cross_document_attention", emulated_slow=True)
LENGTHS, CLUSTERS = (3, 1, 0, 2, 4, 2, 1), (0, 4, 6, 7)  # document 2 is empty, document 6 alone
SIDES = [("anchors", "anchors"), ("tokens", "tokens"), ("anchors", "tokens"), ("tokens", "anchors")]
sides = pytest.mark.parametrize(("queries", "keys"), SIDES, ids=[" x ".join(each) for each in SIDES])
normalizations = pytest.mark.parametrize("normalize", ["joint", "pairwise"])


class Batch:
    """Seeded q, k, v for documents of some lengths, and which document each row belongs to."""

    def __init__(
        self,
        queries: str = "tokens",
        keys: str = "tokens",
        lengths: tuple[int, ...] = LENGTHS,
        clusters: tuple[int, ...] = CLUSTERS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.cu_seqlens, self.cu_clusters = torch.tensor([0, *lengths]).cumsum(0), torch.tensor(clusters)
        self.options: dict[str, Any] = {"queries": queries, "keys": keys}
        documents = torch.arange(len(lengths))
        owners = {"anchors": documents, "tokens": documents.repeat_interleave(torch.tensor(lengths))}
        self.query_document, self.key_document = owners[queries], owners[keys]
        generator = torch.Generator().manual_seed(3)
        self.q, self.k, self.v = (
            torch.randn(len(owner), 2, 8, generator=generator).to(dtype)
            for owner in (self.query_document, self.key_document, self.key_document)
        )

    def run(self, backend: str, **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output and the gradients of q, k, v for an incoming gradient of ones."""
        leaves = [x.detach().clone().requires_grad_() for x in (self.q, self.k, self.v)]
        offsets = (self.cu_seqlens, self.cu_clusters)
        found = cross_document_attention(*leaves, *offsets, **{**self.options, **options}, backend=backend)
        assert isinstance(found, Tensor)
        grad = getattr(self, "grad", torch.ones_like(found))
        return found.detach(), torch.autograd.grad(found, leaves, grad)

    def visible(self, links: tuple[tuple[int, ...], ...] | None = None) -> Tensor:
        """Who sees whom, rows by rows: `[query rows, key rows]`."""
        cluster = torch.searchsorted(self.cu_clusters[1:], torch.arange(len(self.cu_seqlens) - 1), right=True)
        query, key = self.query_document[:, None], self.key_document[None]
        filled = self.cu_seqlens.diff() > 0
        seen = (cluster[query] == cluster[key]) & (query != key) & filled[query] & filled[key]
        if links is not None:
            seen = seen & torch.tensor([[j in row for j in range(len(links))] for row in links])[query, key]
        return seen


def csr(links: tuple[tuple[int, ...], ...]) -> tuple[Tensor, Tensor]:
    indices = torch.tensor([j for row in links for j in row], dtype=torch.int64)
    return torch.tensor([0, *map(len, links)]).cumsum(0), indices


@everywhere
@normalizations
@sides
def test_what_is_not_seen_may_be_anything(queries: str, keys: str, normalize: str, backend: str) -> None:
    """Document 0 links to 1 and 3 alone; all keys and values of its own and of document 4 on are NaN or infinite."""
    links = ((1, 3), (3,), (), (1,), (5,), (4,), ())
    batch = Batch(queries, keys)
    good_output, good_grads = batch.run(backend, normalize=normalize, links=csr(links))
    bad = (batch.key_document == 0) | (batch.key_document >= 4)
    for name, value in (("k", torch.inf), ("v", torch.nan)):
        setattr(batch, name, torch.where(bad[:, None, None], value, getattr(batch, name)))
    bad_queries = batch.query_document >= 4
    batch.q = torch.where(bad_queries[:, None, None], torch.nan, batch.q)
    batch.grad = torch.where(bad_queries[:, None, None], torch.inf, torch.ones_like(good_output))
    output, grads = batch.run(backend, normalize=normalize, links=csr(links))
    torch.testing.assert_close(output[~bad_queries], good_output[~bad_queries], rtol=1e-6, atol=1e-6)
    assert not output[(batch.query_document == 4) | (batch.query_document == 5)].isfinite().any()
    torch.testing.assert_close(grads[0][~bad_queries], good_grads[0][~bad_queries], rtol=1e-5, atol=1e-6)
    for grad, good in zip(grads[1:], good_grads[1:], strict=True):
        torch.testing.assert_close(grad[batch.key_document < 4], good[batch.key_document < 4], rtol=1e-5, atol=1e-6)


@everywhere
@sides
def test_a_documents_own_keys_may_be_anything(queries: str, keys: str, backend: str) -> None:
    """Without include_self, whatever document 0 holds, its own output is finite; the others' is not."""
    batch = Batch(queries, keys)
    good_output, _ = batch.run(backend)
    own = batch.key_document == 0
    batch.v = torch.where(own[:, None, None], torch.nan, batch.v)
    output, grads = batch.run(backend)
    mine = batch.query_document == 0
    torch.testing.assert_close(output[mine], good_output[mine], rtol=1e-6, atol=1e-6)
    assert grads[0][mine].isfinite().all()
    assert not output[(batch.query_document == 1) | (batch.query_document == 3)].isfinite().any()


@everywhere_in_time
@normalizations
def test_documents_of_a_cluster_in_another_order(normalize: str, backend: str) -> None:
    batch, lengths, order = Batch(), list(LENGTHS), [3, 0, 2, 1, 5, 4, 6]
    other = Batch(lengths=tuple(lengths[i] for i in order))
    starts = batch.cu_seqlens.tolist()
    rows = torch.tensor([t for i in order for t in range(starts[i], starts[i + 1])])
    other.q, other.k, other.v = batch.q[rows], batch.k[rows], batch.v[rows]
    output, grads = batch.run(backend, normalize=normalize)
    other_output, other_grads = other.run(backend, normalize=normalize)
    torch.testing.assert_close(other_output, output[rows], rtol=1e-5, atol=1e-6)
    for grad, expected in zip(other_grads, grads, strict=True):
        torch.testing.assert_close(grad, expected[rows], rtol=1e-5, atol=1e-6)


@everywhere_in_time
@normalizations
@sides
def test_other_clusters_change_no_bit(queries: str, keys: str, normalize: str, backend: str) -> None:
    batch = Batch(queries, keys)
    output, grads = batch.run(backend, normalize=normalize)
    alone = Batch(queries, keys, lengths=LENGTHS[:4], clusters=(0, 4))
    alone.q, alone.k, alone.v = batch.q[: len(alone.q)], batch.k[: len(alone.k)], batch.v[: len(alone.v)]
    alone_output, alone_grads = alone.run(backend, normalize=normalize)
    same = torch.equal if backend != "eager" else torch.allclose  # eager pads to the largest cluster
    assert same(alone_output, output[: len(alone.q)])
    for grad, whole in zip(alone_grads, grads, strict=True):
        assert same(grad, whole[: len(grad)])


@everywhere_in_time
@normalizations
@sides
def test_nothing_to_see_gives_exactly_zero(queries: str, keys: str, normalize: str, backend: str) -> None:
    """Document 6 is alone in its cluster."""
    batch = Batch(queries, keys)
    output, grads = batch.run(backend, normalize=normalize)
    alone = batch.query_document == 6
    assert not output[alone].any()
    assert not grads[0][alone].any()
    for grad in grads[1:]:
        assert not grad[batch.key_document == 6].any()


@everywhere
@normalizations
def test_nobody_links_to_anybody(normalize: str, backend: str) -> None:
    """There are links, and none of them: not the same as no link mask."""
    output, grads = Batch().run(backend, normalize=normalize, links=csr(((),) * len(LENGTHS)))
    for result in (output, *grads):
        assert not result.any()


@everywhere_in_time
@sides
def test_nobody_links_to_anybody_on_all_sides(queries: str, keys: str, backend: str) -> None:
    output, grads = Batch(queries, keys).run(backend, links=csr(((),) * len(LENGTHS)))
    for result in (output, *grads):
        assert not result.any()


@everywhere_in_time
@normalizations
def test_logits_of_sixty_thousand(normalize: str, backend: str) -> None:
    """In float16 the products reach +-60,000, close to the largest number there is."""
    batch = Batch(lengths=(1, 2, 2), clusters=(0, 3), dtype=torch.float16)
    sign = torch.tensor([1, -1, 1, -1, 1.0]).half()[:, None, None]
    batch.q, batch.k = torch.full_like(batch.q, 86.6), torch.full_like(batch.k, 86.6) * sign
    output, grads = batch.run(backend, scale=1.0, normalize=normalize)
    assert all(result.isfinite().all() for result in (output, *grads))
    if normalize == "joint":  # of the keys that it sees, a query takes those with the positive logit
        torch.testing.assert_close(output[0], (batch.v[2] + batch.v[4]) / 2, rtol=2e-3, atol=2e-3)


@everywhere
def test_the_same_as_sdpa_with_a_dense_mask(backend: str) -> None:
    """PyTorch's own attention over the packed stream; rows without a key are left out, it gives them NaN or 0."""
    links = ((1, 3), (0,), (), (0, 1), (5,), (4,), ())
    for linked in (None, links):
        batch = Batch()
        mask = batch.visible(linked)
        output, grads = batch.run(backend, links=None if linked is None else csr(linked))
        rows = mask.any(1)
        leaves = [x.detach().double().requires_grad_() for x in (batch.q, batch.k, batch.v)]
        q, k, v = (x.transpose(0, 1)[None] for x in leaves)
        expected = F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=mask[rows])[0].transpose(0, 1)
        torch.testing.assert_close(output[rows].double(), expected, rtol=1e-5, atol=1e-5)
        for grad, exact in zip(grads, torch.autograd.grad(expected.sum(), leaves), strict=True):
            torch.testing.assert_close(grad.double(), exact, rtol=1e-4, atol=1e-5)


@everywhere
def test_the_same_as_transformer_xh(backend: str) -> None:
    """Zhao et al. 2020: the [CLS] tokens of the documents of a graph attend to their neighbours, written densely."""
    edges = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]).bool()
    batch = Batch("anchors", "anchors", lengths=(2, 1, 3, 1), clusters=(0, 4))
    links = csr(tuple(tuple(row.nonzero()[:, 0].tolist()) for row in edges))
    scores = torch.einsum("ihd,jhd->hij", batch.q.double(), batch.k.double()) / 8**0.5
    weights = scores.masked_fill(~edges, -torch.inf).softmax(-1)
    expected = torch.einsum("hij,jhd->ihd", weights, batch.v.double())
    output, _ = batch.run(backend, links=links)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    found = cross_document_attention(
        batch.q,
        batch.k,
        batch.v,
        batch.cu_seqlens,
        batch.cu_clusters,
        links=links,
        return_weights=True,
        backend=backend,
    )
    torch.testing.assert_close(found[1].double(), weights.permute(1, 0, 2), rtol=1e-5, atol=1e-6)


@everywhere_in_time
@normalizations
@sides
def test_every_backend_drops_the_same(queries: str, keys: str, normalize: str, backend: str) -> None:
    batch, options = Batch(queries, keys), {"normalize": normalize, "dropout_p": 0.4, "seed": torch.tensor([2**40 + 7])}
    output, grads = batch.run(backend, **options)
    expected, expected_grads = batch.run("eager", **options)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for grad, exact in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, exact, rtol=1e-4, atol=1e-5)


@everywhere_in_time
@sides
def test_a_plan_gives_the_same_bits(queries: str, keys: str, backend: str) -> None:
    links = csr(((1, 3), (0,), (), (0, 1), (5,), (4,), ()))
    for options in ({}, {"include_self": True}, {"links": links}):
        batch = Batch(queries, keys)
        plan = plan_attention(batch.cu_seqlens, batch.cu_clusters, queries, keys, **options)
        output = batch.run(backend, **options)[0]
        for _ in range(2):
            assert torch.equal(cross_document_attention(batch.q, batch.k, batch.v, plan, backend=backend), output)


def test_a_plan_under_inference_serves_training() -> None:
    batch = Batch()
    with torch.inference_mode():
        plan = plan_attention(batch.cu_seqlens, batch.cu_clusters, "tokens", "tokens")
        cross_document_attention(batch.q, batch.k, batch.v, plan)
    q = batch.q.clone().requires_grad_()
    output = cross_document_attention(q, batch.k, batch.v, plan)
    assert isinstance(output, Tensor)
    assert torch.autograd.grad(output.sum(), q)[0].isfinite().all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda b, p, d: document_attention(b.q, b.k, b.v, p), "one of clusters, for cross_document_attention"),
        (lambda b, p, d: cross_document_attention(b.q, b.k, b.v, d), "one of documents alone"),
        (lambda b, p, d: cross_document_attention(b.q, b.k, b.v, p, include_self=True), "do not give them again"),
        (lambda b, p, d: cross_document_attention(b.q, b.k, b.v, b.cu_seqlens), "cu_clusters is needed"),
        (lambda b, p, d: document_attention(b.q[1:], b.k[1:], b.v[1:], d), "made for 13 tokens, but q has 12"),
    ],
)
def test_plans_of_another_kind(call: Any, text: str) -> None:
    batch = Batch()
    plan = plan_attention(batch.cu_seqlens, batch.cu_clusters, "tokens", "tokens")
    with pytest.raises(ValueError, match=text):
        call(batch, plan, plan_attention(batch.cu_seqlens))
