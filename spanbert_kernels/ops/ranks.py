"""What the processes of a group send each other, through torch.distributed: rows of tensors, and who has how many.

All of these are collectives: every rank of the group calls them in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

# PyTorch 2.13's name, and the one before it.
GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


class OtherRankFailed(RuntimeError):
    """Another rank of the group was given arguments that it refuses; there the error says why."""


@dataclass(frozen=True)
class Ranks:
    """A process group as one of its ranks sees it.

    Attributes:
        group: the processes.
    """

    group: dist.ProcessGroup

    @cached_property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @cached_property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    @cached_property
    def device(self) -> torch.device:
        """Where the group's tensors lie."""
        return torch.device("cuda" if dist.get_backend(self.group) == "nccl" else "cpu")

    def after(self, steps: int) -> int:
        """The rank so many steps further on the ring."""
        return (self.rank + steps) % self.size

    def agree(self, numbers: Sequence[int], failed: Exception | None = None) -> list[list[int]]:
        """The numbers of each rank, as many on all, once all are here. A rank that failed gives any.

        Raises:
            OtherRankFailed: another rank failed; on a rank that did it is its own error.
        """
        table = self.gathered(torch.tensor([failed is not None, *numbers], dtype=torch.int64)).view(self.size, -1)
        if failed is not None:
            raise failed
        refusing = table[:, 0].nonzero()[:, 0].tolist()
        if refusing:
            raise OtherRankFailed(f"rank {refusing[0]} of the group was given arguments that it refuses: see its error")
        return table[:, 1:].tolist()

    def gathered(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape on a CPU, behind each other on a CPU."""
        own = tensor.to(self.device).contiguous()
        result = own.new_empty(self.size * own.shape[0], *own.shape[1:])
        getattr(dist, GATHER)(result, own, group=self.group)
        return result.cpu()

    def gathered_lists(self, numbers: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """The int64 `numbers` of each rank, which all know to be so many."""
        most = max(lengths)
        table = self.gathered(torch.nn.functional.pad(numbers, (0, most - len(numbers)))).view(self.size, most)
        return [row[:length] for row, length in zip(table, lengths, strict=True)]

    def all_rows(self, rows: Tensor, most: int) -> Tensor:
        """The rows of all ranks, each rank's in `most` places: `[size * most, ...]`."""
        own = rows.new_zeros(most, *rows.shape[1:])
        own[: len(rows)] = rows
        result = rows.new_empty(self.size * most, *rows.shape[1:])
        getattr(dist, GATHER)(result, own, group=self.group)
        return result

    def sums_of_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Of rows for every rank, so many for each of them, the sums of this rank's, added up in the order of ranks."""
        own = counts[self.rank]
        received = rows.new_empty(self.size * own, *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), [own] * self.size, list(counts), group=self.group)
        wide = torch.promote_types(rows.dtype, torch.float32)
        return received.view(self.size, own, *rows.shape[1:]).sum(0, dtype=wide).to(rows.dtype)

    def exchange(self, outgoing: Tensor, to: int, incoming: Tensor, source: int) -> Exchange:
        """Begin to send to one rank and to receive from another; what is empty goes nowhere."""
        works = [
            dist.P2POp(send, tensor, group=self.group, group_peer=peer)
            for send, tensor, peer in ((dist.isend, outgoing, to), (dist.irecv, incoming, source))
            if tensor.numel()
        ]
        return Exchange(outgoing, incoming, dist.batch_isend_irecv(works) if works else [])


@dataclass(frozen=True)
class Exchange:
    """What is under way."""

    outgoing: Tensor
    incoming: Tensor
    works: list[dist.Work]

    def wait(self) -> Tensor:
        """What was received."""
        for work in self.works:
            work.wait()
        return self.incoming
