"""Who attends to whom: a plan works that out once and serves every layer, head and call of a batch.

Both attention operations are one picture. Document d has query rows and key rows; it belongs to a cluster, a run of
documents; and its queries see the keys of the documents of that cluster, or of those that it links to, with or without
its own. Attention of documents with themselves is the case of clusters of one.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, overload

import torch
import torch.distributed as dist
from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.attention.work import UNCOUNTED, AttentionWork, TileCounts, make_work
from spanbert_kernels.ops.choices import ROLES, Role
from spanbert_kernels.ops.repeats import Repeats
from spanbert_kernels.ops.streams import Made, is_capturing, make_for_all

if TYPE_CHECKING:
    from spanbert_kernels.ops.distributed_plans import DistributedPlan


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Documents, their clusters and who sees whom. Made by `plan_attention`, which copies the tensors that it is given.

    Attributes:
        cu_seqlens: `[D + 1]`, offsets of the documents in the packed tokens.
        cu_clusters: `[C + 1]`, offsets of the clusters in the documents; None: each document sees itself alone.
        queries, keys: `"anchors"` or `"tokens"`.
        include_self, links: as in `cross_document_attention`.
        num_tokens: T; 0 where no side is one of tokens and it is not known.
        max_seqlen: tokens of the longest document, 0 where that is not known: also where it was given and nobody could
            look, as kernels for short documents would leave the rest of a longer one out.
        max_documents: documents of the largest cluster, 0 where that is not known.
        said_max_seqlen: what the caller says of the longest document and nobody could look at, else 0: kernels for
            short documents are launched, and others beside them for those that are longer.
        tile_counts: what launches on a GPU are cut by, where somebody has looked.
        checked: the fields are known to fit each other; else they are looked at, as far as no GPU is waited for.

    Raises:
        ValueError: fields that do not fit each other; the value seen is named.
        TypeError: their kinds, dtypes or devices.

    Example:
        >>> plan = AttentionPlan(cu_seqlens=torch.tensor([0, 3, 5]), num_tokens=5, max_seqlen=3)
        >>> plan.num_documents, plan.queries, plan.keys
        (2, 'tokens', 'tokens')
    """

    cu_seqlens: Tensor
    cu_clusters: Tensor | None = None
    queries: Role = "tokens"
    keys: Role = "tokens"
    include_self: bool = True
    links: tuple[Tensor, Tensor] | None = None
    num_tokens: int
    max_seqlen: int = 0
    max_documents: int = 0
    said_max_seqlen: int = 0
    tile_counts: TileCounts = UNCOUNTED
    checked: InitVar[bool] = False
    _repeats: Repeats | None = field(default=None, init=False, repr=False, compare=False)
    _works: dict[bool, Made[AttentionWork]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _in_graph: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self, checked: bool) -> None:
        if not torch.compiler.is_compiling() and is_capturing(self.cu_seqlens.device):
            object.__setattr__(self, "_in_graph", True)
        if not checked:
            _check_fields(self)
            said = self.max_seqlen
            object.__setattr__(self, "max_seqlen", checked_max_seqlen(said or None, self.cu_seqlens))
            if said and not self.max_seqlen:
                object.__setattr__(self, "said_max_seqlen", said)

    @classmethod
    def of_documents(
        cls,
        cu_seqlens: Tensor,
        num_tokens: int,
        max_seqlen: int = 0,
        *,
        said_max_seqlen: int = 0,
        tile_counts: TileCounts = UNCOUNTED,
        checked: bool = False,
    ) -> AttentionPlan:
        """The plan of `document_attention`: each document sees itself alone. The arguments are the attributes.

        Example:
            >>> AttentionPlan.of_documents(torch.tensor([0, 3, 5]), num_tokens=5).max_documents
            1
        """
        return cls(
            cu_seqlens=cu_seqlens,
            num_tokens=num_tokens,
            max_seqlen=max_seqlen,
            max_documents=1,
            said_max_seqlen=said_max_seqlen,
            tile_counts=tile_counts,
            checked=checked,
        )

    @classmethod
    def of_clusters(
        cls,
        cu_seqlens: Tensor,
        cu_clusters: Tensor,
        queries: Role = "anchors",
        keys: Role = "anchors",
        *,
        include_self: bool = False,
        links: tuple[Tensor, Tensor] | None = None,
        num_tokens: int = 0,
        max_seqlen: int = 0,
        max_documents: int = 0,
        checked: bool = False,
    ) -> AttentionPlan:
        """The plan of `cross_document_attention`. The arguments are the attributes, by default as in that function.

        Example:
            >>> plan = AttentionPlan.of_clusters(torch.tensor([0, 3, 5, 6]), torch.tensor([0, 2, 3]))
            >>> plan.queries, plan.include_self
            ('anchors', False)
        """
        return cls(
            cu_seqlens=cu_seqlens,
            cu_clusters=cu_clusters,
            queries=queries,
            keys=keys,
            include_self=include_self,
            links=links,
            num_tokens=num_tokens,
            max_seqlen=max_seqlen,
            max_documents=max_documents,
            checked=checked,
        )

    @property
    def repeats(self) -> Repeats:
        """What is kept of the calls that get this plan."""
        if self._repeats is None:
            object.__setattr__(self, "_repeats", Repeats())
        assert self._repeats is not None
        return self._repeats

    @property
    def num_documents(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    def work(self, tiled: bool) -> AttentionWork:
        """What raw operators take, with tiles for a GPU's kernels: made at the first call, not inside a graph."""
        if torch.compiler.is_compiling():
            return self._make_work(tiled)
        if tiled not in self._works:
            sources = (self.cu_seqlens, self.cu_clusters, *(self.links or ()))
            self._works[tiled] = made = make_for_all(partial(self._make_work, tiled), sources, self._in_graph)
            if tiled:
                self.repeats.work = made.value
        return self._works[tiled].here()

    def prepare(self) -> None:
        """Make now what a GPU's kernels need, on the current stream, and not at the first call: before a CUDA graph is
        captured.

        Raises:
            RuntimeError: one is being captured already.
        """
        self.work(True)

    def _make_work(self, tiled: bool) -> AttentionWork:
        counts = self.tile_counts
        if tiled and self.max_seqlen and counts == UNCOUNTED and can_look(self.cu_seqlens):
            counts = TileCounts.of(self.cu_seqlens.diff())
        return make_work(
            self.cu_seqlens,
            self.cu_clusters,
            self.queries,
            self.keys,
            self.include_self,
            self.links,
            self.num_tokens,
            self.max_seqlen or -self.said_max_seqlen,
            tiled,
            counts,
        )


@overload
def plan_attention(
    cu_seqlens: Tensor,
    cu_clusters: Tensor | None = ...,
    queries: Role = ...,
    keys: Role = ...,
    *,
    include_self: bool = ...,
    links: tuple[Tensor, Tensor] | None = ...,
    group: None = ...,
) -> AttentionPlan: ...


@overload
def plan_attention(
    cu_seqlens: Tensor,
    cu_clusters: Tensor | None = ...,
    queries: Role = ...,
    keys: Role = ...,
    *,
    include_self: bool = ...,
    links: tuple[Tensor, Tensor] | None = ...,
    group: dist.ProcessGroup,
) -> DistributedPlan: ...


@checks.uncompiled
def plan_attention(
    cu_seqlens: Tensor,
    cu_clusters: Tensor | None = None,
    queries: Role = "anchors",
    keys: Role = "anchors",
    *,
    include_self: bool = False,
    links: tuple[Tensor, Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
) -> AttentionPlan | DistributedPlan:
    """Work out once who attends to whom, for all layers and calls of a batch.

    Args:
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents in the packed tokens.
        cu_clusters: int32 or int64 `[C + 1]`, offsets of the clusters in the documents, for `cross_document_attention`;
            without it the plan is one for `document_attention`, and the other arguments mean nothing.
        queries, keys, include_self, links: as in `cross_document_attention`.
        group: a process group, each rank of which calls this with its own documents; it may have none. There are as
            many clusters on every rank: cluster c is the same one on all, and may have no document here. Queries, keys
            and `include_self` are the same on all; targets of links are counted through the documents of all ranks,
            rank after rank.

    On a GPU the sizes are read once, here, and no call that gets the plan waits for the GPU. Between the ranks of a
    group the lengths and clusters of all documents are exchanged once, here.

    Returns:
        A plan, for `document_attention` where no clusters are given, else for `cross_document_attention`. It holds
        copies of the tensors, on their device. With a group a `DistributedPlan`.

    Raises:
        ValueError: offsets, options, links that cross clusters, ranks that do not agree; the value seen is named.
        TypeError: dtypes or devices.
        OtherRankFailed: another rank of the group raised one of these.

    Example:
        >>> plan = plan_attention(torch.tensor([0, 3, 5, 6]), torch.tensor([0, 2, 3]), keys="tokens")
        >>> plan.num_documents, plan.max_seqlen, plan.max_documents
        (3, 3, 2)
    """
    if group is not None:
        from spanbert_kernels.ops.distributed_plans import agreed_plan

        return agreed_plan(group, cu_seqlens, cu_clusters, queries, keys, include_self, links)
    checks.check_index("cu_seqlens", cu_seqlens, 1, "[documents + 1]")
    checks.check_readable("cu_seqlens", cu_seqlens)
    checks.check_offsets("cu_seqlens", cu_seqlens, None, "tokens")
    checks.check_flag("include_self", include_self)
    if cu_clusters is not None:
        check_who_sees_whom(cu_seqlens, cu_clusters, queries, keys, links)
    # Copied before the host waits for the device, so that any stream may read them.
    offsets, clusters = _copy(cu_seqlens), None if cu_clusters is None else _copy(cu_clusters)
    own_links = None if links is None else (_copy(links[0]), _copy(links[1]))
    on_host = cu_seqlens if torch.compiler.is_compiling() else cu_seqlens.cpu()
    tokens, longest = int(on_host[-1]), largest(on_host)
    if len(cu_seqlens) == 1 and tokens:
        raise ValueError(f"cu_seqlens must start with 0, got {tokens}")
    if clusters is None:
        counts = UNCOUNTED if torch.compiler.is_compiling() else TileCounts.of(on_host.diff())
        return AttentionPlan.of_documents(offsets, tokens, longest, tile_counts=counts, checked=True)
    return AttentionPlan.of_clusters(
        offsets,
        clusters,
        queries,
        keys,
        include_self=include_self,
        links=own_links,
        num_tokens=tokens,
        max_seqlen=longest,
        max_documents=largest(clusters),
        checked=True,
    )


def _copy(tensor: Tensor) -> Tensor:
    """The plan's own: what the caller writes to the tensor later changes nothing."""
    if torch.compiler.is_compiling():
        return tensor.clone()
    with torch.inference_mode(False):  # a plan outlives it
        return tensor.clone()


def _check_fields(plan: AttentionPlan) -> None:
    checks.check_flag("include_self", plan.include_self)
    for name in ("num_tokens", "max_seqlen", "max_documents"):
        checks.check_integer(name, getattr(plan, name), 0)
    sides = (plan.queries, plan.keys)
    if plan.cu_clusters is None:
        alone = {"queries": "tokens", "keys": "tokens", "include_self": True, "links": None}
        for name, value in alone.items():
            if getattr(plan, name) is not value and getattr(plan, name) != value:
                raise ValueError(
                    f"{name} must be {value!r} without cu_clusters, got {checks.shown(getattr(plan, name))}"
                )
    known = plan.num_tokens if "tokens" in sides or plan.num_tokens else None
    checks.check_offsets("cu_seqlens", plan.cu_seqlens, known, "tokens")
    if plan.cu_clusters is not None:
        check_who_sees_whom(plan.cu_seqlens, plan.cu_clusters, *sides, plan.links)
    if plan.max_documents and can_look(plan.cu_seqlens):
        documents = 1 if plan.cu_clusters is None else largest(plan.cu_clusters)
        if plan.max_documents != documents:
            raise ValueError(f"max_documents is {plan.max_documents}, but the largest cluster has {documents}")


def can_look(offsets: Tensor) -> bool:
    """Whether values can be read without waiting for a GPU, and are real."""
    return offsets.device.type == "cpu" and not torch.compiler.is_compiling()


def checked_max_seqlen(max_seqlen: int | None, cu_seqlens: Tensor) -> int:
    """What a plan may believe of the longest document: 0, not known, where none is given or nobody can look."""
    if max_seqlen is None:
        return 0
    checks.check_integer("max_seqlen", max_seqlen, 0)
    if not can_look(cu_seqlens):
        return 0
    for document, length in enumerate(cu_seqlens.diff().tolist()):
        if length > max_seqlen:
            raise ValueError(f"max_seqlen is {max_seqlen}, but document {document} has {length} tokens")
    return max_seqlen


def largest(offsets: Tensor) -> int:
    """The longest of the runs between offsets, 0 where there is none; waits for a GPU."""
    return int(offsets.diff().max()) if len(offsets) > 1 else 0


def check_who_sees_whom(
    cu_seqlens: Tensor, cu_clusters: Tensor, queries: str, keys: str, links: tuple[Tensor, Tensor] | None
) -> None:
    """Clusters, sides and links fit each other. Values are looked at on a CPU only: no synchronisation."""
    for name, value in (("queries", queries), ("keys", keys)):
        checks.check_choice(name, value, ROLES)
    documents = len(cu_seqlens) - 1
    checks.check_offsets("cu_clusters", cu_clusters, documents, "documents")
    checks.check_device("cu_clusters", cu_clusters, "cu_seqlens", cu_seqlens)
    if links is not None:
        check_links(links, cu_clusters, documents)
        for place, part in enumerate(links):
            checks.check_device(f"links[{place}]", part, "cu_seqlens", cu_seqlens)


def check_links(links: tuple[Tensor, Tensor], cu_clusters: Tensor, documents: int) -> None:
    """CSR links fit the documents and stay inside a cluster; targets are looked at on a CPU only."""
    indptr, indices = check_link_offsets(links, documents)
    if {indptr.device.type, indices.device.type} != {"cpu"} or torch.compiler.is_compiling():
        return
    numbers = torch.arange(documents)
    query = numbers.repeat_interleave(indptr.diff().long())
    cluster = torch.searchsorted(cu_clusters[1:].long().contiguous(), numbers, right=True)
    exists = (indices >= 0) & (indices < documents)
    stays = exists if documents == 0 else cluster[torch.where(exists, indices, 0).long()] == cluster[query]
    wrong = ~(exists & stays)
    if wrong.any():
        first = int(wrong.int().argmax())
        source, target = int(query[first]), int(indices[first])
        if not exists[first]:
            raise ValueError(f"document {source} links to document {target}, but there are {documents} documents")
        raise ValueError(
            f"document {source} of cluster {int(cluster[source])} links to document {target} "
            f"of cluster {int(cluster[target])}: links must stay inside a cluster"
        )


def check_link_offsets(links: tuple[Tensor, Tensor], documents: int) -> tuple[Tensor, Tensor]:
    """The two tensors of CSR links, whose offsets fit the documents."""
    if not isinstance(links, (tuple, list)) or len(links) != 2:
        raise TypeError(f"links must be two tensors (indptr [D + 1], indices), got {checks.shown(links)}")
    indptr, indices = links
    checks.check_index("links[1]", indices, 1, "[links]")
    checks.check_offsets("links[0]", indptr, len(indices), "links")
    if len(indptr) != documents + 1:
        raise ValueError(
            f"links[0] must have one offset per document and one more ({documents + 1}), got {len(indptr)}"
        )
    return indptr, indices
