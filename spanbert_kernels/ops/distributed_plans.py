"""Who attends to whom where the documents of a cluster lie on several ranks: worked out once for all layers of a batch.

Documents have one order, that of the single process with which every rank's result agrees: cluster by cluster, in a
cluster rank by rank, on a rank as they are given. Keys that are anchors are few and go to everybody. Keys that are
tokens go round: in round s a rank has those of the rank s before it on the ring, of documents that somebody here sees.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.attention.work import AttentionWork, tiles_between, work_of_documents
from spanbert_kernels.ops.attention_plans import (
    AttentionPlan,
    check_link_offsets,
    check_who_sees_whom,
    largest,
)
from spanbert_kernels.ops.choices import ROLES, Role
from spanbert_kernels.ops.ranks import Ranks

Kept = TypeVar("Kept")


class BytesSent(NamedTuple):
    """What a rank sends to others.

    Attributes:
        forward, backward: keys and values, and in the backward their gradients, too.
    """

    forward: int
    backward: int


@dataclass(frozen=True, eq=False)
class Round:
    """Keys that a rank meets together.

    Attributes:
        to, source: the ranks that get this one's rows and whose rows these are.
        sent: int64, this rank's key rows that go to the other; None: all of them.
        sent_rows, rows: how many go, and how many come.
        documents: `AttentionWork`'s, of the documents of all ranks, between this rank's queries and those keys.
    """

    to: int
    source: int
    sent: Tensor | None
    sent_rows: int
    rows: int
    documents: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class DistributedPlan:
    """Documents on several ranks, their clusters and who sees whom. Made by `plan_attention` with a group.

    Attributes:
        ranks: the process group.
        cu_seqlens: `[D + 1]`, offsets of this rank's documents in its packed tokens.
        queries, keys, include_self: as in `cross_document_attention`.
        counts: how many documents each rank has.
        filled: bool `[all documents]`, in their order: which have tokens.
        by_rank: int64 `[all documents]`, where the documents of all ranks, rank after rank, stand in that order.
        whole: the plan of the documents of all ranks in that order. Where the keys are anchors, those of other ranks
            have one token, if they are not empty.
        query_rows: int64, where this rank's query rows stand in those of that plan; None: it has no others.
        rounds: of keys that are tokens, this rank's own first.

    Example:
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> plan = agreed_plan(dist.group.WORLD, torch.tensor([0, 3, 5]), torch.tensor([0, 2]), "anchors", "tokens")
        >>> plan.counts, plan.bytes_sent(torch.zeros(5, 1, 4))
        ([2], BytesSent(forward=0, backward=0))
        >>> dist.destroy_process_group()
    """

    ranks: Ranks
    cu_seqlens: Tensor
    queries: Role
    keys: Role
    include_self: bool
    counts: list[int]
    filled: Tensor
    by_rank: Tensor
    whole: AttentionPlan
    query_rows: Tensor | None
    rounds: list[Round]
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def keep(self, name: Hashable, make: Callable[[], Kept]) -> Kept:
        """What is made at the first call under a name, for all layers of the batch."""
        if name not in self._kept:
            self._kept[name] = make()
        kept: Kept = self._kept[name]
        return kept

    def work(self, number: int, tiled: bool) -> AttentionWork:
        """What raw operators take in a round."""
        return self.keep(("work", number, tiled), lambda: self._work(self.rounds[number].documents, number, tiled))

    def sight(self) -> AttentionWork:
        """Who sees whom of all documents, each of which has one key row if it is not empty."""
        queries, clusters = self.rounds[0].documents[:2], self.rounds[0].documents[4:]
        keys = torch.stack([torch.zeros_like(self.filled, dtype=torch.int64), self.filled.long()])
        return self.keep("sight", lambda: self._work(torch.cat([queries, keys, clusters]), 0, False))

    def _work(self, documents: Tensor, number: int, tiled: bool) -> AttentionWork:
        anchors = (self.queries == "anchors", False)
        tiles: tuple[Tensor | None, Tensor | None] = (None, None)
        if tiled:
            tiles = tiles_between(documents, 0 if anchors[0] else int(self.cu_seqlens[-1]), self.rounds[number].rows)
        return work_of_documents(documents, tiles, anchors, self.include_self, self.whole.links)

    def bytes_sent(self, k: Tensor) -> BytesSent:
        """What this rank sends to others in a call on keys like `k [rows, heads, head_dim]` and values like them.

        Anchors: its own to every other rank, in as many places as the rank with the most documents has, and back one
        gradient for each document of another rank. Tokens: in each round what the other rank sees of its own, in the
        backward once more, and the gradients of what it got itself.
        """
        row = 2 * k.shape[1] * k.shape[2] * k.element_size()
        own, others = self.counts[self.ranks.rank], self.ranks.size - 1
        if self.keys == "anchors":
            return BytesSent(others * max(self.counts) * row, (sum(self.counts) - own) * row)
        there = sum(step.sent_rows for step in self.rounds[1:])
        back = sum(step.rows for step in self.rounds[1:])
        return BytesSent(there * row, (there + back) * row)


# What has to be the same on every rank, in the order in which ranks send it, and how a message shows it.
SAME: dict[str, Callable[[int], object]] = {
    "number of clusters": int,
    "queries": ROLES.__getitem__,
    "keys": ROLES.__getitem__,
    "include_self": bool,
    "heads": int,
    "head_dim": int,
    "bytes of an element": int,
}


def agreed_plan(
    group: dist.ProcessGroup,
    cu_seqlens: Tensor,
    cu_clusters: Tensor | None,
    queries: Role,
    keys: Role,
    include_self: bool = False,
    links: tuple[Tensor, Tensor] | None = None,
    check: Callable[[], Sequence[int]] = lambda: (0, 0, 0),
) -> DistributedPlan:
    """What `plan_attention` makes for a group, or a call whose own `check` gives what SAME has beyond a plan.

    Raises:
        ValueError: offsets, options, links that cross clusters, ranks that do not agree; the value seen is named.
        TypeError: dtypes or devices, or no group.
        OtherRankFailed: another rank raised one of these.
    """
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be a process group of torch.distributed, got {checks.shown(group)}")
    ranks = Ranks(group)
    failed, numbers = None, [0] * (len(SAME) + 2)
    try:
        numbers = _checked(cu_seqlens, cu_clusters, queries, keys, include_self, links, check)
    except (TypeError, ValueError) as error:
        failed = error
    table = ranks.agree(numbers, failed)
    assert cu_clusters is not None
    for column, (name, shown) in enumerate(SAME.items()):
        for rank, row in enumerate(table):
            if row[column] != table[0][column]:
                raise ValueError(
                    f"the {name} must be the same on every rank, but rank 0 has {shown(table[0][column])!r} "
                    f"and rank {rank} has {shown(row[column])!r}"
                )
    counts = [row[-2] for row in table]
    everybody = _gather(ranks, counts, cu_seqlens, cu_clusters)
    own_links, failed = None, None
    if links is not None:
        try:
            own_links = everybody.own_links(links)
        except ValueError as error:
            failed = error
    seen = everybody.seen_without_links()
    if any(row[-1] for row in table):
        own = seen[ranks.rank] if own_links is None else everybody.linked(own_links)
        seen = torch.tensor(ranks.agree(own.int().tolist(), failed)).view(ranks.size, -1).bool()
    return everybody.plan(cu_seqlens.device, queries, keys, include_self, own_links, seen)


def _checked(
    cu_seqlens: Tensor,
    cu_clusters: Tensor | None,
    queries: Role,
    keys: Role,
    include_self: bool,
    links: tuple[Tensor, Tensor] | None,
    check: Callable[[], Sequence[int]],
) -> list[int]:
    """The row of SAME that a rank has, how many documents, and whether it has links."""
    if cu_clusters is None:
        raise ValueError("cu_clusters is needed beside cu_seqlens, got None")
    checks.check_index("cu_seqlens", cu_seqlens, 1, "[documents + 1]")
    checks.check_readable("cu_seqlens", cu_seqlens)
    checks.check_offsets("cu_seqlens", cu_seqlens, None, "tokens")
    checks.check_flag("include_self", include_self)
    check_who_sees_whom(cu_seqlens, cu_clusters, queries, keys, None)
    if links is not None:
        check_link_offsets(links, len(cu_seqlens) - 1)
        for place, part in enumerate(links):
            checks.check_device(f"links[{place}]", part, "cu_seqlens", cu_seqlens)
    sides = (ROLES.index(queries), ROLES.index(keys), int(include_self))
    return [len(cu_clusters) - 1, *sides, *check(), len(cu_seqlens) - 1, int(links is not None)]


def _gather(ranks: Ranks, counts: list[int], cu_seqlens: Tensor, cu_clusters: Tensor) -> _Everybody:
    """The documents of all ranks."""
    offsets, clusters = cu_seqlens.cpu().long(), cu_clusters.cpu().long()
    own = torch.stack([offsets.diff(), torch.arange(len(clusters) - 1).repeat_interleave(clusters.diff())], 1)
    lists = ranks.gathered_lists(own.flatten(), [2 * count for count in counts])
    lengths, cluster = torch.cat(lists).view(-1, 2).unbind(1)
    cluster, order = cluster.sort(stable=True)
    rank = torch.arange(ranks.size).repeat_interleave(torch.tensor(counts))[order]
    sizes = torch.bincount(cluster, minlength=len(clusters) - 1)
    return _Everybody(ranks, counts, order.argsort(), rank, lengths[order], cluster, _offsets(sizes), offsets.diff())


def _offsets(sizes: Tensor) -> Tensor:
    return pad(sizes.cumsum(0), (1, 0))


@dataclass(frozen=True, eq=False)
class _Everybody:
    """The documents of all ranks, on the host.

    Attributes:
        by_rank, counts: DistributedPlan's.
        rank, lengths, cluster: int64 `[all documents]`, in their order: where a document lies, its tokens, its cluster.
        cu_clusters: offsets of the clusters in them.
        own_lengths: of this rank's documents.
    """

    ranks: Ranks
    counts: list[int]
    by_rank: Tensor
    rank: Tensor
    lengths: Tensor
    cluster: Tensor
    cu_clusters: Tensor
    own_lengths: Tensor

    def places(self, rank: int) -> Tensor:
        """Where a rank's documents stand in the order of all."""
        return (self.rank == rank).nonzero()[:, 0]

    def own_links(self, links: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Those of this rank's documents as links of all, which are counted in their order."""
        indptr, indices = links[0].cpu().long(), links[1].cpu().long()
        own, documents = self.places(self.ranks.rank), len(self.rank)
        query = torch.arange(len(own)).repeat_interleave(indptr.diff())
        missing = (indices < 0) | (indices >= documents)
        if missing.any():
            first = int(missing.int().argmax())
            raise ValueError(
                f"document {int(query[first])} links to document {int(indices[first])}, "
                f"but there are {documents} documents on all ranks"
            )
        target = self.by_rank[indices]
        strays = self.cluster[target] != self.cluster[own[query]]
        if strays.any():
            first = int(strays.int().argmax())
            raise ValueError(
                f"document {int(query[first])} of cluster {int(self.cluster[own[query[first]]])} links to document "
                f"{int(indices[first])} of cluster {int(self.cluster[target[first]])}: links must stay inside a cluster"
            )
        counts = torch.zeros(documents, dtype=torch.int64)
        counts[own] = indptr.diff()
        return _offsets(counts), target

    def seen_without_links(self) -> Tensor:
        """Bool `[ranks, all documents]`: those that have tokens and lie in a cluster of documents of the rank's."""
        present = torch.zeros(self.ranks.size, len(self.cu_clusters) - 1, dtype=torch.bool)
        filled = self.lengths > 0
        present[self.rank[filled], self.cluster[filled]] = True
        return present[:, self.cluster] & filled

    def linked(self, links: tuple[Tensor, Tensor]) -> Tensor:
        """Bool `[all documents]`: those that have tokens and that documents of this rank with tokens link to."""
        seeing = torch.arange(len(self.rank)).repeat_interleave(links[0].diff())
        seen = torch.zeros(len(self.rank), dtype=torch.bool)
        seen[links[1][self.lengths[seeing] > 0]] = True
        return seen & (self.lengths > 0)

    def plan(
        self,
        device: torch.device,
        queries: Role,
        keys: Role,
        include_self: bool,
        links: tuple[Tensor, Tensor] | None,
        seen: Tensor,
    ) -> DistributedPlan:
        own = self.rank == self.ranks.rank
        lengths = torch.where(own, self.lengths, self.lengths.clamp(max=int(keys == "anchors")))
        query_rows: Tensor | None = own.nonzero()[:, 0]
        if queries == "tokens":
            query_rows = own.repeat_interleave(lengths).nonzero()[:, 0] if keys == "anchors" else None
        whole = AttentionPlan.of_clusters(
            _offsets(lengths).to(device),
            self.cu_clusters.to(device),
            queries,
            keys,
            include_self=include_self,
            links=None if links is None else (links[0].to(device), links[1].to(device)),
            num_tokens=int(lengths.sum()),
            max_documents=largest(self.cu_clusters),
            checked=True,
        )
        steps = range(self.ranks.size) if keys == "tokens" else ()
        return DistributedPlan(
            ranks=self.ranks,
            cu_seqlens=_offsets(self.own_lengths).to(device),
            queries=queries,
            keys=keys,
            include_self=include_self,
            counts=self.counts,
            filled=(self.lengths > 0).to(device),
            by_rank=self.by_rank.to(device),
            whole=whole,
            query_rows=None if query_rows is None else query_rows.to(device),
            rounds=[self._round(step, device, queries, seen) for step in steps],
        )

    def _round(self, steps: int, device: torch.device, queries: Role, seen: Tensor) -> Round:
        here, to, source = self.ranks.rank, self.ranks.after(steps), self.ranks.after(-steps)
        own = self.rank == here
        index = torch.arange(len(self.rank))
        bounds = (index, index + (own & (self.lengths > 0))) if queries == "anchors" else _rows(self.lengths, own)
        come = _rows(self.lengths, (self.rank == source) & (seen[here] | (source == here)))
        goes = seen[to][own] & (source != here)
        sent = goes.repeat_interleave(self.own_lengths).nonzero()[:, 0]
        clusters = (self.cu_clusters[self.cluster], self.cu_clusters[self.cluster + 1])
        return Round(
            to=to,
            source=source,
            sent=None if len(sent) == int(self.own_lengths.sum()) else sent.to(device),
            sent_rows=len(sent),
            rows=int(come[1][-1]) if len(index) else 0,
            documents=torch.stack([*bounds, *come, *clusters]).to(device),
        )


def _rows(lengths: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """First row of each document and the one after its last, where the rows of the chosen ones follow each other."""
    kept = torch.where(chosen, lengths, 0)
    end = kept.cumsum(0)
    return end - kept, end
