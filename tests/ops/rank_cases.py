"""What each rank does in `test_attention_over_ranks.py`: calls on its own documents, beside one on those of all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from attention_loops import cross_score_terms
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.ops.ranks import GATHER, OtherRankFailed

HEADS, COLUMNS = 2, 4
SEED = torch.tensor([5])
# Documents as (rank, cluster, tokens), in the order of all; on two ranks those of rank 3 lie on rank 1. Rank 2 has
# none, cluster 1 lies on one rank, cluster 2 is empty, cluster 3 is one document and one without tokens.
DOCUMENTS = (
    *((0, 0, 2), (0, 0, 0), (0, 0, 3), (1, 0, 1), (1, 0, 4), (3, 0, 2), (3, 0, 1)),
    *((1, 1, 2), (1, 1, 3)),
    *((0, 3, 2), (1, 3, 0)),
    *((0, 4, 1), (3, 4, 2), (3, 4, 0), (3, 4, 1)),
)
CLUSTERS = 5
# By document, in the order of all: to itself, across ranks, to and from one without tokens, twice, none.
LINKS = ((3, 0), (2,), (5, 3, 3, 6), (), (0, 1), (2, 4), (0,), (8,), (7, 8), (10,), (9,), (12, 14), (11, 13), (12,), ())


class Case(NamedTuple):
    queries: str
    keys: str
    normalize: str = "joint"
    include_self: bool = False
    linked: bool = False
    dtype: torch.dtype = torch.float64
    backend: str | None = None
    dropout_p: float = 0.0


CASES = (
    Case("anchors", "anchors", dropout_p=0.4),
    Case("tokens", "anchors", linked=True),
    Case("anchors", "anchors", "pairwise", include_self=True),
    Case("tokens", "tokens", dtype=torch.float32),
    Case("tokens", "tokens", include_self=True, backend="eager"),
    Case("tokens", "tokens", linked=True),
    Case("anchors", "tokens"),
    Case("anchors", "tokens", include_self=True, linked=True, backend="eager"),
    Case("tokens", "tokens", "pairwise", linked=True),
    Case("anchors", "tokens", "pairwise"),
    Case("tokens", "tokens", dtype=torch.bfloat16),
)

IN_TRITON = tuple(
    Case(queries, keys, linked=linked, dtype=torch.float32, backend="triton")
    for queries, keys, linked in (
        ("tokens", "tokens", False),
        ("anchors", "tokens", True),
        ("tokens", "anchors", True),
        ("anchors", "anchors", False),
    )
)


class Everything(NamedTuple):
    """All documents of a case in one process, and which of them are a rank's.

    Attributes:
        documents, queries, keys: int64, this rank's documents, query rows and key rows.
    """

    rank_of: list[int]
    cu_seqlens: Tensor
    cu_clusters: Tensor
    documents: Tensor
    queries: Tensor
    keys: Tensor
    tensors: list[Tensor]
    incoming: Tensor


def everything(case: Case, rank: int, size: int) -> Everything:
    generator = torch.Generator().manual_seed(7)
    rank_of = [min(each, 1) if size == 2 else each for each, _, _ in DOCUMENTS]
    lengths = torch.tensor([length for _, _, length in DOCUMENTS])
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    cu_clusters = torch.tensor([sum(cluster < c for _, cluster, _ in DOCUMENTS) for c in range(CLUSTERS + 1)])
    own = torch.tensor(rank_of) == rank
    rows = {"anchors": own.nonzero()[:, 0], "tokens": own.repeat_interleave(lengths).nonzero()[:, 0]}
    counts = {"anchors": len(lengths), "tokens": int(lengths.sum())}
    q, k, v, incoming = (
        torch.randn(counts[side], HEADS, COLUMNS, generator=generator, dtype=torch.float64).to(case.dtype)
        for side in (case.queries, case.keys, case.keys, case.queries)
    )
    for name, tensor in ((case.queries, q), (case.keys, k)):
        if name == "anchors":
            tensor[lengths == 0] = torch.nan  # an empty document has no anchor
    return Everything(
        rank_of, cu_seqlens, cu_clusters, rows["anchors"], rows[case.queries], rows[case.keys], [q, k, v], incoming
    )


def own_sight(case: Case, all_of: Everything, rank: int) -> dict[str, Any]:
    """What a rank is told of its documents."""
    own = all_of.documents
    clusters = [DOCUMENTS[document][1] for document in own.tolist()]
    lengths = all_of.cu_seqlens.diff()[own]
    sight: dict[str, Any] = {
        "cu_seqlens": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        "cu_clusters": torch.tensor([sum(each < c for each in clusters) for c in range(CLUSTERS + 1)]),
    }
    if case.linked:
        by_rank = sorted(range(len(DOCUMENTS)), key=lambda document: all_of.rank_of[document])
        targets = [[by_rank.index(target) for target in LINKS[document]] for document in own.tolist()]
        sight["links"] = csr(targets)
    return sight


def csr(rows: Any) -> tuple[Tensor, Tensor]:
    indices = torch.tensor([index for row in rows for index in row], dtype=torch.int64)
    return torch.tensor([0, *map(len, rows)]).cumsum(0), indices


def alone(case: Case, all_of: Everything, dtype: torch.dtype) -> list[Tensor]:
    """Results and gradients of one process that has all documents, by the definition."""
    tensors = [tensor.to(dtype).requires_grad_() for tensor in all_of.tensors]
    found = ops.cross_document_attention(
        *tensors,
        all_of.cu_seqlens,
        all_of.cu_clusters,
        case.queries,
        case.keys,
        include_self=case.include_self,
        links=csr(LINKS) if case.linked else None,
        normalize=case.normalize,
        return_lse=case.normalize == "joint",
        return_weights=True,
        backend="eager",
        dropout_p=case.dropout_p,
        seed=SEED,
    )
    found[0].backward(all_of.incoming.to(dtype))
    return [*found, *gradients(tensors)]


def gradients(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]


class Sent:
    """Counts the bytes that this process hands to torch.distributed for others."""

    def __init__(self, rank: int, size: int) -> None:
        self.bytes, self.rank, self.size = 0, rank, size

    def batch(self, original: Any, works: list[dist.P2POp]) -> Any:
        self.bytes += sum(work.tensor.nbytes for work in works if work.op is dist.isend)
        return original(works)

    def gather(self, original: Any, result: Tensor, own: Tensor, **options: Any) -> Any:
        self.bytes += own.nbytes * (self.size - 1)
        return original(result, own, **options)

    def everybody(self, original: Any, result: Tensor, own: Tensor, come: Any, go: list[int], **options: Any) -> Any:
        assert sum(go) == len(own)
        self.bytes += (len(own) - go[self.rank]) * (own.nbytes // max(len(own), 1))
        return original(result, own, come, go, **options)

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, counter in (
                ("batch_isend_irecv", self.batch),
                (GATHER, self.gather),
                ("all_to_all_single", self.everybody),
            ):
                original = getattr(dist, name)
                counted = lambda *values, counter=counter, original=original, **options: counter(  # noqa: E731
                    original, *values, **options
                )
                stack.enter_context(mock.patch.object(dist, name, counted))
            yield


def check(case: Case, group: dist.ProcessGroup) -> None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    all_of = everything(case, rank, size)
    sight = own_sight(case, all_of, rank)
    rows = (all_of.queries, all_of.keys, all_of.keys)
    options: dict[str, Any] = {"normalize": case.normalize, "backend": case.backend, "return_weights": True}
    options |= {"return_lse": case.normalize == "joint", "dropout_p": case.dropout_p, "seed": SEED}
    sides = {"queries": case.queries, "keys": case.keys, "include_self": case.include_self}
    plan = ops.plan_attention(**sight, **sides, group=group)
    results = []
    for _ in range(2):
        own = [tensor[index].requires_grad_() for tensor, index in zip(all_of.tensors, rows, strict=True)]
        there, back = Sent(rank, size), Sent(rank, size)
        with there.counting():
            found = list(ops.cross_document_attention(*own, plan, **options))
        with back.counting():
            found[0].backward(all_of.incoming[all_of.queries])
        assert (there.bytes, back.bytes) == plan.bytes_sent(own[1]), case
        results.append([*found, *gradients(own)])
    for first, again in zip(*results, strict=True):
        assert torch.equal(first.nan_to_num(), again.nan_to_num()), f"not the same twice: {case}"
    # A call with the group makes the plan itself.
    again = ops.cross_document_attention(*[tensor.detach() for tensor in own], **sight, **sides, **options, group=group)
    torch.testing.assert_close(again[0], found[0].detach())
    index = [all_of.queries] * (len(found)) + list(rows)
    dims = [int(number == 1 and case.normalize == "joint") for number in range(len(index))]

    def of_rank(dtype: torch.dtype) -> list[Tensor]:
        whole = alone(case, all_of, dtype)
        return [each.detach().index_select(dim, rows) for each, dim, rows in zip(whole, dims, index, strict=True)]

    kept = {"normalize": case.normalize, "include_self": case.include_self, "dropout_p": case.dropout_p}
    whole = [tensor.double().nan_to_num() for tensor in (*all_of.tensors, all_of.incoming)]
    offsets = (all_of.cu_seqlens, all_of.cu_clusters, SEED, *(csr(LINKS) if case.linked else ()))
    terms = cross_score_terms(*whole[:3], *offsets, queries=case.queries, keys=case.keys, grad=whole[3], **kept)
    sizes = [0.0] * len(found) + [terms[name] for name in "qkv"]
    compared = zip(results[0], of_rank(torch.float64), of_rank(case.dtype), sizes, strict=True)
    for number, (got, wanted, eager, terms_of_sums) in enumerate(compared):
        assert got.shape == wanted.shape
        assert (got.isneginf() == wanted.isneginf()).all()
        error, most = (
            (each.double().nan_to_num(neginf=0.0).abs().max().item() if each.numel() else 0.0)
            for each in (eager - wanted, wanted)
        )
        # Parts of a softmax, and of gradients, are rounded before they are added up: those of each rank.
        eps, eps_of_float32 = torch.finfo(got.dtype).eps, torch.finfo(torch.float32).eps
        bound = 2 * error + size * (eps * max(1.0, most) + min(eps, eps_of_float32) * terms_of_sums)
        difference = (got.detach().double() - wanted).nan_to_num(neginf=0.0).abs()
        assert difference.numel() == 0 or difference.max() <= bound, (
            f"{case}: result {number} is {difference.max()} off"
        )


def dropped(group: dist.ProcessGroup) -> None:
    """Where keys go round the backward drops what the forward dropped: results are linear in the values."""
    case = Case("anchors", "tokens")
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    all_of = everything(case, rank, size)
    q, k, v = (t[i] for t, i in zip(all_of.tensors, (all_of.queries, all_of.keys, all_of.keys), strict=True))
    grad, sight = all_of.incoming[all_of.queries], own_sight(case, all_of, rank)
    for normalize in ("joint", "pairwise"):
        call = partial(ops.cross_document_attention, q, k, **sight, keys="tokens", normalize=normalize, group=group)
        found = call(v=v.requires_grad_(), dropout_p=0.4, seed=SEED)
        (found_grad,) = torch.autograd.grad(found, v, grad)
        sums = torch.stack([(found * grad).sum(), (found_grad * v).sum()]).detach()
        dist.all_reduce(sums, group=group)
        torch.testing.assert_close(sums[0], sums[1])
        whole = call(v=v)  # on every rank, one without documents as well
        assert not len(q) or not torch.equal(found, whole)


def refusals(group: dist.ProcessGroup) -> None:
    """What is wrong on one rank raises there, with the value, and on the others at once."""
    rank = dist.get_rank(group)
    last = dist.get_world_size(group) - 1
    q = torch.zeros(2, 1, 4)
    cu_seqlens, cu_clusters = torch.tensor([0, 1, 3]), torch.tensor([0, 2])

    offsets = cu_seqlens if rank < last else torch.tensor([0, 2, 1])
    with pytest.raises(
        ValueError if rank == last else OtherRankFailed, match="after 2" if rank == last else f"rank {last}"
    ):
        ops.cross_document_attention(q, q, q, offsets, cu_clusters, group=group)
    with pytest.raises(
        ValueError, match=f"head_dim must be the same on every rank, but rank 0 has 4 and rank {last} has 2"
    ):
        ops.cross_document_attention(*[q if rank < last else q[:, :, :2]] * 3, cu_seqlens, cu_clusters, group=group)
    with pytest.raises(
        ValueError, match=f"keys must be the same on every rank, but rank 0 has 'anchors' and rank {last}"
    ):
        ops.plan_attention(cu_seqlens, cu_clusters, keys="anchors" if rank < last else "tokens", group=group)
    wrong = rank == last
    links = (torch.tensor([0, 1, 1]), torch.tensor([99 if wrong else 0]))
    with pytest.raises(ValueError if wrong else OtherRankFailed, match="links to document 99" if wrong else "refuses"):
        ops.plan_attention(cu_seqlens, cu_clusters, links=links, group=group)


def a_model(group: dist.ProcessGroup) -> None:
    """States and parameters' gradients, added up over ranks, are those of one process with all documents."""
    from spanbert_kernels import SpanBERTConfig, SpanBERTModel, accelerate

    config = SpanBERTConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        cross_document_layers=[0, 1],
        cross_document_queries="tokens",
        cross_document_keys="tokens",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(3)
    model = SpanBERTModel(config, add_pooling_layer=False).double()
    for layer in model.encoder.layer:
        torch.nn.init.ones_(layer.cross_document.gate)
    accelerate(model)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    ids, clusters = torch.randint(30, (3 * size, 5)), torch.arange(3 * size) % 2 + 4
    mask = torch.arange(5) <= torch.arange(3 * size)[:, None] % 5
    wanted = model(ids, mask, cluster_ids=clusters).last_hidden_state
    (wanted * mask[..., None]).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    own = slice(3 * rank, 3 * rank + 3)
    found = model(ids[own], mask[own], cluster_ids=clusters[own], cluster_group=group).last_hidden_state
    torch.testing.assert_close(found[mask[own]], wanted[own][mask[own]])
    (found * mask[own][..., None]).square().sum().backward()
    for parameter, want in zip(model.parameters(), expected, strict=True):
        dist.all_reduce(parameter.grad, group=group)
        torch.testing.assert_close(parameter.grad, want)
    with pytest.raises(ValueError if rank else OtherRankFailed, match=r"must be \[3\]" if rank else "rank 1 of"):
        model(ids[own], mask[own], cluster_ids=clusters[: 3 - (rank > 0)], cluster_group=group)


def every_case(group: dist.ProcessGroup) -> None:
    for case in CASES + (() if dist.get_world_size(group) == 2 else IN_TRITON):
        check(case, group)
    dropped(group)
    refusals(group)
    if dist.get_world_size(group) > 2:
        a_model(group)
