"""The examples of each step, dealt to ranks so that every rank has about as many tokens.

transformers' `BatchRebalanceSampler` is for padded batches, and repeats examples where the last step has too few, which
then count twice.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from spanbert_kernels.tasks import launch
from spanbert_kernels.tasks.token_batches import TokenBatches, tokens_in

SPARE = "spare"  # in a batch that lets a rank take part in a step which has no example left for it; it counts nothing


def deal(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """The places of some sizes in so many parts of about one sum: each size, the largest first, to the smallest part.

    The part of the largest sum is the first; where there are fewer sizes than parts, the last ones are empty.

    Source: Graham 1969, Bounds on Multiprocessing Timing Anomalies: the largest sum is at most 4/3 of the best one.

    Example:
        >>> deal([5, 9, 3, 2, 2], 2)
        [[1, 4], [0, 2, 3]]
    """
    heap = [(0, number) for number in range(parts)]
    found: list[list[int]] = [[] for _ in range(parts)]
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        total, number = heapq.heappop(heap)
        found[number].append(place)
        heapq.heappush(heap, (total + sizes[place], number))
    return sorted(found, key=lambda part: -sum(sizes[place] for place in part))


def sizes_of(data: Any) -> list[int]:
    """Tokens of each example, or of each batch of `TokenBatches`."""
    if isinstance(data, TokenBatches):
        return data.sizes()
    return [tokens_in(data[index]) for index in range(len(data))]


class DealtBatches(Sampler[list[int]]):
    """The batches of a rank: indices for `WithSpares`.

    An epoch's order is that which one process sees, whatever the number of ranks, and a step takes the next `a_step`
    examples of it; every rank has as many batches as the others in every step.

    Attributes:
        sizes: tokens of each example.
        a_step: examples in a step of all ranks.
        accumulation: batches of a rank in a step; in the last step of an epoch there may be fewer.

    Example:
        >>> batches = [DealtBatches([9, 5, 3, 2, 2], 4, 2, seed=0, rank=rank, ranks=2) for rank in (0, 1)]
        >>> [[[index for index in batch] for batch in own] for own in batches]
        [[[0], [2]], [[1, 4, 3], [-3]]]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        a_step: int,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        ranks: int | None = None,
    ) -> None:
        self.sizes, self.a_step, self.batch_size, self.seed, self.epoch = sizes, a_step, batch_size, seed, 0
        self.rank = launch.rank() if rank is None else rank
        self.ranks = launch.ranks() if ranks is None else ranks
        self.accumulation = self._batches(a_step)

    def set_epoch(self, epoch: int) -> None:
        """Of the training: each has an order of its own."""
        self.epoch = epoch

    def _batches(self, examples: int) -> int:
        """Of a rank, for so many examples of all."""
        return math.ceil(math.ceil(examples / self.batch_size) / self.ranks)

    def __len__(self) -> int:
        steps, left = divmod(len(self.sizes), self.a_step)
        return steps * self.accumulation + self._batches(left)

    def __iter__(self) -> Iterator[list[int]]:
        """Each round of the ranks gets the largest batches that are left, in turns from the first and the last rank."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)  # as accelerate's SeedableRandomSampler
        order = torch.randperm(len(self.sizes), generator=generator).tolist()
        for begin in range(0, len(order), self.a_step):
            step = order[begin : begin + self.a_step]
            rounds = self._batches(len(step))
            parts = deal([self.sizes[index] for index in step], rounds * self.ranks)
            for number in range(rounds):
                place = self.rank if number % 2 == 0 else self.ranks - 1 - self.rank
                part = parts[number * self.ranks + place]
                yield [step[index] for index in part] or [~step[0]]


class WithSpares(Dataset[tuple[bool, Any]]):
    """Examples, each with whether it counts: it does not by the index `~i` in the place of `i`."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[bool, Any]:
        return index >= 0, self.data[max(index, ~index)]


def in_parts(collate: Callable[[list[Any]], dict[str, Any]]) -> Callable[[list[tuple[bool, Any]]], dict[str, Any]]:
    """Makes batches of what `WithSpares` gives; one that counts nothing says so by the name `SPARE`."""

    def batch_of(examples: list[tuple[bool, Any]]) -> dict[str, Any]:
        batch = collate([example for _, example in examples])
        return batch if examples[0][0] else {**batch, SPARE: torch.ones(())}

    return batch_of
