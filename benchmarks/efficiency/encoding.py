"""Encoding a corpus: GPUs send each other nothing; what processors do for them decides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MICRO = 1e-6


@dataclass(frozen=True)
class CorpusCosts:
    """Seconds that a document costs, stage by stage.

    Attributes:
        gpu: the model, predicted.
        read: reading and hashing, in the process that hands out shards; with Ray in each worker's reading task.
        send: what that process takes to send a shard to a worker.
        receive, work: a worker's own, beside the model; it waits for each batch's vectors, so that both add up.
        tokenize: a process that tokenises.
        digest: hashing the files of vectors at the end, in one process.
    """

    gpu: float
    read: float
    send: float
    receive: float
    work: float
    tokenize: float
    digest: float

    @classmethod
    def of(cls, stages: Mapping[str, float], gpu: float) -> CorpusCosts:
        """Of a record's microseconds."""
        names = ("read", "send", "receive", "work", "tokenize", "digest")
        return cls(gpu, **{name: stages[name] * MICRO for name in names})

    @property
    def tokenizers(self) -> int:
        """Processes that keep up with a worker."""
        return math.ceil(self.tokenize / self.worker)

    @property
    def worker(self) -> float:
        """A worker whose texts are always there."""
        return self.gpu + self.receive + self.work

    def seconds(self, gpus: int, tokenizers: int, ray: bool) -> float:
        """Of a document, in the whole run.

        Example:
            >>> costs = CorpusCosts(gpu=50e-6, read=4e-6, send=1e-6, receive=0, work=50e-6, tokenize=200e-6, digest=0)
            >>> [round(1e6 * costs.seconds(32, *each), 2) for each in ((1, False), (2, False), (2, True))]
            [6.25, 5.0, 3.12]
        """
        own = max(self.worker, self.tokenize / tokenizers, self.read if ray else 0.0)
        return max(own / gpus, 0.0 if ray else self.read + self.send) + self.digest

    def efficiency(self, gpus: int, tokenizers: int, ray: bool) -> float:
        """The share of the time in which a GPU computes."""
        return self.gpu / gpus / self.seconds(gpus, tokenizers, ray)
