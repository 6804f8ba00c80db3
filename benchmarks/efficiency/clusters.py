"""One cluster of documents over GPUs: what a rank sends, and what a layer between documents takes."""

from __future__ import annotations

import math
from typing import NamedTuple

from .links import Links
from .predicted import PredictedTimes


class ClusterBytes(NamedTuple):
    """What a rank sends in a layer, forward and backward."""

    forward: int
    backward: int


def sent(keys: str, documents: int, length: int, gpus: int, row: int) -> ClusterBytes:
    """What `DistributedPlan.bytes_sent` says where all ranks have as many documents of one length.

    Args:
        keys: "anchors" or "tokens".
        documents: of each rank.
        length: tokens of each.
        gpus: ranks.
        row: bytes of a key and its value.

    Example:
        >>> sent("anchors", 125, 128, 8, 3072), sent("tokens", 125, 128, 8, 3072)
        (ClusterBytes(forward=2688000, backward=2688000), ClusterBytes(forward=344064000, backward=688128000))
    """
    rows = documents * (gpus - 1) * (1 if keys == "anchors" else length)
    return ClusterBytes(rows * row, rows * row * (1 if keys == "anchors" else 2))


def seconds(times: PredictedTimes, links: Links, keys: str, documents: int, length: int, gpus: int, row: int) -> float:
    """Of encoding a cluster and one layer between its documents, without gradients.

    Anchors are gathered before the layer. Tokens go round while those of the round before are worked on.
    """
    own = math.ceil(documents / gpus)
    encoder = times.encoding(own * length)
    if keys == "anchors":
        return encoder + times.anchors + links.gather(gpus * own * row, gpus)
    work = max(times.pair * (own * length) ** 2, times.launch)
    return encoder + work + (gpus - 1) * max(work, links.send(own * length * row, gpus))


def least_tokens(times: PredictedTimes, links: Links, gpus: int, row: int) -> float:
    """Tokens that each rank has to have for a round of the ring to hide behind the work on the one before it."""
    rate = row / links.rate_of_one(gpus)
    return rate / times.pair
