"""A training step over GPUs: what of the exchange of gradients and weights does not hide behind work.

What exchange takes from the work that it hides behind (multiprocessors, memory) is not reckoned with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .links import MACHINE, Links
from .predicted import TOKENS, EncoderShape, PredictedTimes

GRADIENT, WEIGHT = 4, 2  # bytes: gradients in float32, weights that are gathered in bfloat16
FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20  # bytes, of DistributedDataParallel


@dataclass(frozen=True)
class StepOfOne:
    """Seconds of a step of one GPU on its own.

    Attributes:
        embedding: forward and backward of the embeddings.
        layer: the same of each layer.
        optimizer: for all weights.
    """

    embedding: tuple[float, float]
    layer: tuple[float, float]
    optimizer: float

    @classmethod
    def of(cls, times: PredictedTimes, shape: EncoderShape, tokens: float) -> StepOfOne:
        """Of so many tokens, however few: launches take their time."""
        part = tokens / TOKENS
        whole = shape.layers * (times.forward + times.backward) + times.embedding_forward + times.embedding_backward
        part = max(part, times.launches[1] * times.launch / whole)
        return cls(
            (part * times.embedding_forward, part * times.embedding_backward),
            (part * times.forward, part * times.backward),
            times.optimizer(shape.weights),
        )

    def seconds(self, layers: int) -> float:
        """Of the whole step."""
        return sum(self.embedding) + layers * sum(self.layer) + self.optimizer


def buckets(ready: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Of gradients as they come, when each bucket is full and its bytes: a bucket ends with what fills it.

    Example:
        >>> buckets([(1.0, FIRST_BUCKET), (2.0, 10), (3.0, BUCKET), (4.0, 7)])
        [(1.0, 1048576), (3.0, 26214410), (4.0, 7)]
    """
    found: list[tuple[float, int]] = []
    size = 0
    for when, own in ready:
        size += own
        if size >= (BUCKET if found else FIRST_BUCKET):
            found.append((when, size))
            size = 0
    return [*found, (ready[-1][0], size)] if size else found


def data_parallel(step: StepOfOne, shape: EncoderShape, links: Links, gpus: int) -> float:
    """Seconds of a step of DistributedDataParallel: buckets are reduced one after the other, each when it is full."""
    forward = step.embedding[0] + shape.layers * step.layer[0]
    now, ready = forward, [(forward, GRADIENT * size) for size in reversed(shape.pooler)]
    for _ in range(shape.layers):
        now += step.layer[1]
        ready += [(now, GRADIENT * size) for size in reversed(shape.layer)]
    now += step.embedding[1]
    ready += [(now, GRADIENT * size) for size in reversed(shape.embeddings)]
    free = 0.0
    for when, size in buckets(ready):
        free = max(free, when) + links.reduce(size, gpus)
    return max(now, free if gpus > 1 else 0.0) + step.optimizer


def fully_sharded(step: StepOfOne, shape: EncoderShape, links: Links, gpus: int, shards: int) -> float:
    """Seconds of a step of FSDP2, each layer a unit: weights are gathered a layer ahead, gradients scattered behind.

    Args:
        step: of one GPU.
        shape: of the encoder.
        links: between the GPUs.
        gpus: how many.
        shards: over how many of them weights are spread: all, or those of a machine, which the others repeat.
    """
    layer, root = sum(shape.layer), sum(shape.embeddings) + sum(shape.pooler)

    def gather(weights: int) -> float:
        return links.gather(WEIGHT * weights, shards)

    def scatter(weights: int) -> float:
        repeated = links.between_machines(GRADIENT * weights / shards, gpus // shards)
        return links.gather(GRADIENT * weights, shards) + repeated

    network = gather(root)
    compute = network + step.embedding[0]
    network += gather(layer)
    for number in range(shape.layers):
        begin = max(compute, network)
        compute = begin + step.layer[0]
        if number + 1 < shape.layers:
            network = max(network, begin) + gather(layer)
    there = network = max(network, compute) + gather(layer)  # the last layer's weights, which nothing hides
    for number in range(shape.layers):
        begin = max(compute, there)
        if number + 1 < shape.layers:
            there = network = max(network, begin) + gather(layer)
        compute = begin + step.layer[1]
        network = max(network, compute) + scatter(layer)
    compute += step.embedding[1]
    network = max(network, compute) + scatter(root)
    return (max(compute, network) if gpus > 1 else compute) + step.optimizer / shards


WAYS = ("DDP", "FSDP2 over all", "FSDP2 in each machine")


def efficiencies(times: PredictedTimes, shape: EncoderShape, links: Links, gpus: int, tokens: float) -> list[float]:
    """Of each of `WAYS`: one GPU's time for a step, over that of so many together.

    Args:
        times, shape, links: as elsewhere.
        gpus: how many.
        tokens: of the whole step.
    """
    one, own = (StepOfOne.of(times, shape, each) for each in (tokens, tokens / gpus))
    found = (
        data_parallel(own, shape, links, gpus),
        fully_sharded(own, shape, links, gpus, gpus),
        fully_sharded(own, shape, links, gpus, min(gpus, MACHINE)),
    )
    return [one.seconds(shape.layers) / gpus / each for each in found]
