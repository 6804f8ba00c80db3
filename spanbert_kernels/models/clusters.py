"""Which documents of a batch may see each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import pad

from spanbert_kernels import ops
from spanbert_kernels.nn.cross_document_mixer import CrossDocumentMixer
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.ops.ranks import Ranks


@dataclass(frozen=True, eq=False)
class ClusteredDocuments:
    """The documents of a batch in cluster order, built once per forward and without a synchronisation.

    Attributes:
        cu_seqlens: int32 `[D + 1]`, offsets of the documents in that order.
        cu_clusters: int32 `[D + 1]`, offsets of the clusters in the documents; clusters beyond the last are empty.
        packed_rows: int64 `[T]`, where each token of that order lies in the packed batch `[T]`.
        padded_rows: int64 `[T]`, where it lies in the flattened padded batch `[B * L]`.
        max_seqlen: tokens of the longest document.
        group: the processes that have documents of the same clusters, None for this one alone; `cu_clusters` then
            has every cluster that any of them has.

    Example:
        >>> packing = Packing.from_mask(None, 3, 2, "cpu")
        >>> documents = ClusteredDocuments.from_ids(torch.tensor([7, -1, 7]), packing)
        >>> documents.cu_clusters.tolist(), documents.packed_rows.tolist()
        ([0, 1, 3, 3], [2, 3, 0, 1, 4, 5])
    """

    cu_seqlens: Tensor
    cu_clusters: Tensor
    packed_rows: Tensor
    padded_rows: Tensor
    max_seqlen: int
    group: ProcessGroup | None = None
    _plans: dict[tuple[str, str, bool], ops.AttentionPlan | ops.DistributedPlan] = field(
        default_factory=dict, init=False, repr=False
    )

    def plan(self, mixer: CrossDocumentMixer) -> ops.AttentionPlan | ops.DistributedPlan:
        """Who attends to whom, worked out once for all layers."""
        sight = (mixer.queries, mixer.keys, mixer.include_self)
        if sight not in self._plans and self.group is not None:
            queries, keys, include_self = sight
            self._plans[sight] = ops.plan_attention(
                self.cu_seqlens, self.cu_clusters, queries, keys, include_self=include_self, group=self.group
            )
        elif sight not in self._plans:
            self._plans[sight] = ops.AttentionPlan.of_clusters(
                self.cu_seqlens,
                self.cu_clusters,
                mixer.queries,
                mixer.keys,
                include_self=mixer.include_self,
                num_tokens=self.packed_rows.shape[0],
                max_seqlen=self.max_seqlen,
                checked=True,
            )
        return self._plans[sight]

    @classmethod
    def from_ids(cls, cluster_ids: Tensor, packing: Packing, group: ProcessGroup | None = None) -> ClusteredDocuments:
        """Documents with the same id, adjacent or not, on whichever rank of a group, form a cluster.

        Raises:
            TypeError: `cluster_ids` is not an integer tensor on the batch's device.
            ValueError: `cluster_ids` is not `[B]`.
            OtherRankFailed: another rank raised one of these.
        """
        every_id = None if group is None else _ids_of_all(cluster_ids, packing, group)
        _check_ids(cluster_ids, packing)
        sorted_ids, order = torch.sort(cluster_ids, stable=True)
        offsets = packing.cu_seqlens
        lengths = offsets.diff().index_select(0, order)
        cu_seqlens = _offsets(lengths)
        shift = offsets[:-1].index_select(0, order) - cu_seqlens[:-1]
        packed_rows = torch.arange(packing.num_tokens, device=offsets.device)
        packed_rows += shift.repeat_interleave(lengths, output_size=packing.num_tokens)
        padded_rows = packed_rows if packing.indices is None else packing.indices.index_select(0, packed_rows)
        if every_id is None:
            cu_clusters = _offsets(_cluster_sizes(sorted_ids))
        else:
            cu_clusters = pad(torch.searchsorted(sorted_ids.long(), every_id, right=True), (1, 0))
        return cls(cu_seqlens, cu_clusters, packed_rows, padded_rows, packing.max_seqlen, group)


def _ids_of_all(cluster_ids: Tensor, packing: Packing, group: ProcessGroup) -> Tensor:
    """Each id that documents of any rank have, ascending."""
    ranks, failed = Ranks(group), None
    try:
        _check_ids(cluster_ids, packing)
    except (TypeError, ValueError) as error:
        failed = error
    counts = [count for (count,) in ranks.agree([packing.batch], failed)]
    return torch.cat(ranks.gathered_lists(cluster_ids.cpu().long(), counts)).unique().to(cluster_ids.device)


def _cluster_sizes(sorted_ids: Tensor) -> Tensor:
    """Sizes of the runs of equal ids, as many as there are ids: how many runs there are, the host need not know."""
    starts = pad(sorted_ids[1:] != sorted_ids[:-1], (1, 0))[: sorted_ids.shape[0]]
    sizes = sorted_ids.new_zeros(sorted_ids.shape, dtype=torch.int32)
    return sizes.index_add(0, starts.cumsum(0), torch.ones_like(sizes))


def _offsets(sizes: Tensor) -> Tensor:
    return pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))


def _check_ids(cluster_ids: Tensor, packing: Packing) -> None:
    if not isinstance(cluster_ids, Tensor):
        raise TypeError(f"cluster_ids must be an integer tensor [{packing.batch}], got {type(cluster_ids).__name__}")
    if cluster_ids.dtype == torch.bool or cluster_ids.dtype.is_floating_point or cluster_ids.dtype.is_complex:
        raise TypeError(f"cluster_ids must hold integers, got {cluster_ids.dtype}")
    if cluster_ids.shape != (packing.batch,):
        raise ValueError(f"cluster_ids must be [{packing.batch}], one per document, got {list(cluster_ids.shape)}")
    if cluster_ids.device != packing.cu_seqlens.device:
        raise TypeError(f"cluster_ids is on {cluster_ids.device}, but the batch is on {packing.cu_seqlens.device}")
