"""What the CUDA kernels of attention do beyond the operations' shared checks: order of threads, work lists, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_on_cpu import library
from torch import Tensor

from spanbert_kernels.ops import choices, cross_document_attention, document_attention
from spanbert_kernels.ops.attention.work import AttentionWork, make_work, pair_statistics
from spanbert_kernels.ops.attention_plans import plan_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def operators() -> Any:
    reason = library.load()
    if reason is not None:
        pytest.skip(reason)
    return getattr(torch.ops, library.NAMESPACE)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(work: AttentionWork, queries: int, keys: int, dim: int, heads: int = 1) -> list[Tensor]:
    return [randn(rows, heads, dim, seed=place) for place, rows in enumerate((queries, keys, keys, queries))]


def joint(operators: Any, work: AttentionWork, tensors: list[Tensor], dropout_p: float = 0.0) -> tuple[Tensor, ...]:
    """Output, log-sum-exp and gradients."""
    q, k, v, grad = tensors
    call = (*work, q.shape[2] ** -0.5, dropout_p, torch.tensor([11]) if dropout_p else None)
    output, lse = operators.document_attention_forward(q, k, v, *call)
    return output, lse, *operators.document_attention_backward(grad, q, k, v, lse, *call)


def pairwise(operators: Any, work: AttentionWork, tensors: list[Tensor], places: int) -> tuple[Tensor, ...]:
    q, k, v, grad = tensors
    statistics = pair_statistics(work, q.shape[0], places)
    call = (*work, *statistics, q.shape[2] ** -0.5, 0.25, torch.tensor([11]))
    output, lse = operators.cross_document_attention_pairwise_forward(q, k, v, *call)
    return output, lse, *operators.cross_document_attention_pairwise_backward(grad, q, k, v, lse, *call)


def check(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * (1 + float(b.abs().max())))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_order_of_threads_and_blocks_does_not_matter(
    operators: Any, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Two tiles of one document, a document alone, and documents of a cluster that see each other, with dropout."""
    alone = plan_attention(torch.tensor([0, 70, 90])).work(True)
    cluster = plan_attention(torch.tensor([0, 20, 20, 37]), torch.tensor([0, 3]), "tokens", "tokens").work(True)
    anchors = plan_attention(torch.tensor([0, 20, 20, 37]), torch.tensor([0, 3]), "tokens", "anchors").work(True)
    runs = []
    for seed in (None, "1", "2", "3"):
        if seed is not None:
            monkeypatch.setenv("SPANBERT_FIBERS_SEED", seed)
        results: list[Tensor] = []
        for work, queries, keys in ((alone, 90, 90), (cluster, 37, 37), (anchors, 37, 3)):
            tensors = [x.to(dtype) for x in inputs(work, queries, keys, 20)]
            results += joint(operators, work, tensors, 0.2)
        tensors = [x.to(dtype) for x in inputs(cluster, 37, 37, 20)]
        results += pairwise(operators, cluster, tensors, 3)
        lse = operators.document_attention_forward(*tensors[:3], *cluster, 0.3, 0.0, None)[1]
        results.append(operators.cross_document_attention_weights(*tensors[:2], lse, *cluster, 3, 0.3))
        runs.append(results)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("dim", [20, 32, 64, 72, 96, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_of_every_size(operators: Any, dtype: torch.dtype, dim: int) -> None:
    """Documents of one tile and of two, each of which has its own way through the backward."""
    offsets = torch.tensor([0, 17, 17, 86])
    work = plan_attention(offsets).work(True)
    tensors = [x.to(dtype) for x in inputs(work, 86, 86, dim)]
    found = joint(operators, work, tensors, 0.2)
    leaves = [x.double().requires_grad_() for x in tensors[:3]]
    expected = document_attention(
        *leaves, offsets, dropout_p=0.2, seed=torch.tensor([11]), return_lse=True, backend="eager"
    )
    assert isinstance(expected, tuple)
    grads = torch.autograd.grad(expected[0], leaves, tensors[3].double())
    check(found, (expected[0].detach(), expected[1], *grads), 5 * torch.finfo(dtype).eps)


def test_heads_too_wide_are_refused(operators: Any) -> None:
    work = plan_attention(torch.tensor([0, 2])).work(True)
    with pytest.raises(RuntimeError, match="heads of up to 256 columns, but head_dim is 257"):
        joint(operators, work, inputs(work, 2, 2, 257))


def test_a_document_alone_and_one_among_others_have_the_same_gradients(operators: Any) -> None:
    """Alone, one block makes all three gradients; here two clusterings say the same of a document of 40 tokens."""
    offsets, cluster = torch.tensor([0, 40, 40]), torch.tensor([0, 2])
    alone = plan_attention(offsets).work(True)
    beside_an_empty_one = plan_attention(offsets, cluster, "tokens", "tokens", include_self=True).work(True)
    tensors = [x.half() for x in inputs(alone, 40, 40, 24)]
    both = [joint(operators, work, tensors, 0.1) for work in (alone, beside_an_empty_one)]
    check(both[0], both[1], torch.finfo(torch.float16).eps)


@pytest.mark.parametrize("keys", choices.ROLES)
@pytest.mark.parametrize("queries", choices.ROLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_more_documents_than_lanes_and_more_tokens_than_a_tile(
    operators: Any, queries: str, keys: str, dtype: torch.dtype
) -> None:
    lengths = torch.tensor([70, 0, 3, *[1] * 33, 0])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    clusters = torch.tensor([0, len(lengths)])
    sides = (queries, keys)
    work = plan_attention(offsets, clusters, *sides).work(True)
    rows = [len(lengths) if side == "anchors" else int(offsets[-1]) for side in sides]
    tensors = [x.to(dtype) for x in inputs(work, *rows, 16)]
    found = joint(operators, work, tensors, 0.2)
    leaves = [x.double().requires_grad_() for x in tensors[:3]]
    expected = cross_document_attention(
        *leaves, offsets, clusters, *sides, dropout_p=0.2, seed=torch.tensor([11]), return_lse=True, backend="eager"
    )
    assert isinstance(expected, tuple)
    grads = torch.autograd.grad(expected[0], leaves, tensors[3].double())
    check(found, (expected[0].detach(), expected[1], *grads), 5 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keys", choices.ROLES)
def test_rows_of_empty_documents_reach_nothing(operators: Any, keys: str, dtype: torch.dtype) -> None:
    """Anchors of empty documents hold NaN: as keys of tokens and as queries."""
    offsets, clusters = torch.tensor([0, 0, 3, 3, 5]), torch.tensor([0, 4])
    for queries in choices.ROLES:
        work = plan_attention(offsets, clusters, queries, keys, include_self=True).work(True)
        rows = [4 if side == "anchors" else 5 for side in (queries, keys)]
        tensors = [x.to(dtype) for x in inputs(work, *rows, 8)]
        expected = joint(operators, work, tensors), pairwise(operators, work, tensors, 4)
        for tensor, side in zip(tensors, (queries, keys, keys, queries), strict=True):
            if side == "anchors":
                tensor[[0, 2]] = torch.nan
        found = joint(operators, work, tensors), pairwise(operators, work, tensors, 4)
        for results, others in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(results, others, strict=True))
        for result, side in zip((found[0][0], *found[0][2:]), (queries, queries, keys, keys), strict=True):
            assert side == "tokens" or not result[[0, 2]].any()


@pytest.mark.parametrize("dim", [8, 140])
def test_rows_of_no_document_are_cleared(operators: Any, dim: int) -> None:
    """Offsets on a GPU are not checked: those that end early, begin late, or point anywhere."""
    work = make_work(torch.tensor([2, 5]), None, "tokens", "tokens", True, None, 8, 0, True)
    found = joint(operators, work, inputs(work, 8, 8, dim))
    outside = [0, 1, 5, 6, 7]
    for result in (found[0], *found[2:]):
        assert not result[outside].any()
        assert result[2:5].any()
    assert (found[1][:, outside] == -torch.inf).all()
    for offsets in ([-5, 10**9, 3, -(10**9)], [7, 3, 8, 0]):
        work = make_work(torch.tensor(offsets), None, "tokens", "tokens", True, None, 8, 0, True)
        joint(operators, work, inputs(work, 8, 8, dim))
        lie = work._replace(documents=torch.cat([work.documents[:4] * 10**9, work.documents[4:]]))
        joint(operators, lie, inputs(work, 8, 8, dim))


def test_links_to_be_passed_over(operators: Any) -> None:
    """-1 stands for a link twice there, to its own document, or out of the cluster."""
    offsets, clusters = torch.tensor([0, 2, 5, 9]), torch.tensor([0, 2, 3])
    links = torch.tensor([0, 4, 5, 6]), torch.tensor([1, 0, 1, 2, 0, 1])
    plain = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0])
    results = []
    for given in (links, plain):
        work = make_work(offsets, clusters, "tokens", "tokens", False, given, 9, 0, True)
        tensors = inputs(work, 9, 9, 8)
        output, _, *grads = pairwise(operators, work, tensors, 2)  # where its sums lie depends on the links
        results.append((*joint(operators, work, tensors), output, *grads))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (results[0][1][:, 5:] == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 1000])
def test_one_key_has_a_weight_of_one_and_leaves_queries_no_gradient(
    operators: Any, dtype: torch.dtype, size: int
) -> None:
    """Anchors of a cluster of two, documents of one token, and documents of tokens that see one of one token."""
    two = plan_attention(torch.tensor([0, 2, 5]), torch.tensor([0, 2])).work(True)
    alone = plan_attention(torch.tensor([0, 1, 2, 3])).work(True)
    for work, rows in ((two, 2), (alone, 3)):
        q, *others = (x.to(dtype) for x in inputs(work, rows, rows, 8))
        tensors = [size * q, *others]
        for dropout_p in (0.0, 0.2):
            found = joint(operators, work, tensors, dropout_p)
            assert not found[2].any()
            assert not found[3].any()
        found = pairwise(operators, work, tensors, 2)
        assert not found[2].any()
        assert not found[3].any()
    seen = plan_attention(torch.tensor([0, 1, 8]), torch.tensor([0, 2]), "tokens", "tokens").work(True)
    q, *others = (x.to(dtype) for x in inputs(seen, 8, 8, 8))
    for found in (joint(operators, seen, [size * q, *others]), pairwise(operators, seen, [size * q, *others], 2)):
        assert not found[2][1:].any()
        assert not found[3][0].any()
