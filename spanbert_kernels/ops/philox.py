"""Dropout decisions from a counter-based generator: every backend drops the same entries.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key is the seed (low word,
high word); the counter is (key index / 4, query index, head, 0); word `key index % 4` of the result decides: an entry
is kept when the word is at least `p * 2^32`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


class Dropout(NamedTuple):
    """What a call drops, as raw operators take it.

    Attributes:
        dropout_p: share of the entries, in [0, 1).
        seed: int64 `[1]`; absent where nothing is dropped.
    """

    dropout_p: float
    seed: Tensor | None


def new_seed(device: torch.device) -> Tensor:
    """A fresh int64 seed `[1]` on the device, drawn from torch's generator there."""
    return torch.randint(-(2**63), 2**63 - 1, (1,), device=device, dtype=torch.int64)


def threshold(dropout_p: float) -> int:
    """Words below it are dropped.

    Example:
        >>> threshold(0.5) == 2**31
        True
    """
    return min(int(dropout_p * 2**32), _MASK)


def _multiply(constant: int, value: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product; int64 wraps, so that it has all 64 bits, the sign among them."""
    product = constant * value
    return (product >> 32) & _MASK, product & _MASK


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds over int64 tensors that hold 32-bit words; the four words of the result.

    Example (the generator's published test vector):
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> [hex(int(word)) for word in philox((zero, zero, zero, zero), (zero, zero))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def keep(seed: Tensor, dropout_p: float, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Which attention entries are kept: bool, of the broadcast shape of `head`, `query`, `key` (int64 indices).

    Example:
        >>> index = torch.arange(1000)
        >>> kept = keep(torch.tensor([7]), 0.25, index[:1], index[:1], index)
        >>> 0.70 < kept.float().mean().item() < 0.80
        True
    """
    head, query, key = torch.broadcast_tensors(head, query, key)
    seed_words = (seed & _MASK, (seed >> 32) & _MASK)
    words = philox((key >> 2, query, head, torch.zeros_like(key)), seed_words)
    lane = key & 3
    word = torch.where(lane == 0, words[0], words[1])
    word = torch.where(lane == 2, words[2], word)
    word = torch.where(lane == 3, words[3], word)
    return word >= threshold(dropout_p)
