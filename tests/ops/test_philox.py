"""Philox4x32-10: the published vectors, and the decisions drawn from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spanbert_kernels.ops import philox

# (counter, key, result) from the Random123 distribution's known-answer tests.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([int(word, 16)]) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter: str, key: str, result: str) -> None:
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    assert philox.philox((c0, c1, c2, c3), (k0, k1)) == words(result)


def by_integers(c0: int, c1: int, c2: int, c3: int, seed: int) -> list[int]:
    """The generator in Python's integers, which do not overflow."""
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c3 ^ k1, a & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
def test_an_entrys_word_is_chosen_by_seed_head_query_and_key(seed: int) -> None:
    p, shape = 0.37, (3, 5, 11)
    head, query, key = (torch.arange(n) for n in shape)
    kept = philox.keep(torch.tensor([seed]), p, head[:, None, None], query[:, None], key)
    for h, i, j in [(0, 0, 0), (2, 4, 10), (1, 3, 5), (1, 3, 6), (0, 1, 4), (1, 0, 4)]:
        word = by_integers(j // 4, i, h, 0, seed)[j % 4]
        assert bool(kept[h, i, j]) == (word >= p * 2**32)


def test_large_indices_are_words() -> None:
    index = torch.tensor([2**31 + 7])
    kept = [philox.keep(torch.tensor([3]), p, index, index, index) for p in (0.25, 0.5, 0.75)]
    word = by_integers(int(index) // 4, int(index), int(index), 0, 3)[int(index) % 4]
    assert [bool(k) for k in kept] == [word >= p * 2**32 for p in (0.25, 0.5, 0.75)]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_keep_rate(p: float) -> None:
    index = torch.arange(256)
    kept = philox.keep(torch.tensor([11]), p, index[:4, None, None], index[:, None], index).double()
    deviation = 5 * (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(float(kept.mean()) - (1 - p)) <= deviation


def test_threshold() -> None:
    assert philox.threshold(0.0) == 0
    assert philox.threshold(0.5) == 2**31
    assert philox.threshold(1 - 1e-12) == 2**32 - 1


def test_new_seed_comes_from_torchs_generator() -> None:
    torch.manual_seed(4)
    first, second = philox.new_seed(torch.device("cpu")), philox.new_seed(torch.device("cpu"))
    torch.manual_seed(4)
    assert torch.equal(philox.new_seed(torch.device("cpu")), first)
    assert not torch.equal(first, second)
    assert first.shape == (1,)
    assert first.dtype == torch.int64
