"""Span masking: the published procedure, its distribution, and the same result from both ways."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanbert_kernels import host
from spanbert_kernels.host import fallback

MASK = -1
needs_module = pytest.mark.skipif(host.load() is not None, reason=str(host.load()))


def documents(lengths: list[int], seed: int = 0, pieces: float = 0.3) -> dict[str, Any]:
    """Tokens 1000, 1001, ..; about so many of them go on with the word before."""
    total = sum(lengths)
    return {
        "tokens": np.arange(1000, 1000 + total),
        "cu_seqlens": np.array([0, *itertools.accumulate(lengths)]),
        "word_starts": np.random.default_rng(seed).random(total) >= pieces,
        "mask_token": MASK,
        "random_tokens": np.arange(5, 50),
    }


def published(words: list[bool], wanted: int, cumulative: list[float], draws: Any) -> list[tuple[int, int]]:
    """The masked spans of one document, half-open, as the published code draws them: a set, then intervals."""
    masked: set[int] = set()
    spans: list[list[int]] = []

    def word_end(token: int) -> int:
        token += 1
        while token < len(words) and not words[token]:
            token += 1
        return token

    while len(masked) < wanted:
        draw = draws.uniform()
        span_words = next((i + 1 for i, chance in enumerate(cumulative) if draw < chance), len(cumulative))
        anchor = draws.below(len(words))
        if anchor in masked:
            continue
        left = anchor
        while left > 0 and not words[left]:
            left -= 1
        spans.append([left, left])
        right = left
        for _ in range(span_words):
            if right >= len(words) or len(masked) >= wanted:
                break
            end = word_end(right)
            for token in range(right, end):
                if len(masked) >= wanted:
                    break
                masked.add(token)
                spans[-1][1] = token
            right = end
    merged: list[list[int]] = []
    for first, last in sorted(spans):
        if merged and merged[-1][1] + 1 >= first:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return [(first, last + 1) for first, last in merged]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=5),
    seed=st.integers(0, 2**64 - 1),
    budget=st.sampled_from([0.0, 0.05, 0.15, 0.5, 1.0]),
    max_words=st.integers(1, 10),
    pieces=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_the_published_procedure_both_ways(
    lengths: list[int], seed: int, budget: float, max_words: int, pieces: float
) -> None:
    given = documents(lengths, seed % 1000, pieces)
    options = {"seed": seed, "budget": budget, "max_words": max_words}
    results = [
        host.mask_spans(**given, **options, compiled=way) for way in (True, False) if not way or host.load() is None
    ]
    for arrays in zip(*results, strict=True):
        for array in arrays:
            assert array.dtype == np.int64
            np.testing.assert_array_equal(array, arrays[0])
    inputs, starts, ends = results[0]

    chances = [0.2 * 0.8**i for i in range(max_words)]
    cumulative = np.cumsum(np.array(chances) / sum(chances)).tolist()
    expected = []
    for document, (begin, end) in enumerate(itertools.pairwise(given["cu_seqlens"].tolist())):
        words = given["word_starts"][begin:end].tolist()
        draws = fallback._Draws(seed, document)
        found = published(words, math.ceil((end - begin) * budget), cumulative, draws)
        expected += [(begin + first, begin + last) for first, last in found]
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == expected

    for start, end in expected:
        tokens = inputs[start:end]
        kinds = [(tokens == MASK).all(), (tokens < 50).all(), (tokens == given["tokens"][start:end]).all()]
        assert any(kinds), "a span became several things"
    outside = np.ones(len(inputs), dtype=bool)
    for start, end in expected:
        outside[start:end] = False
    np.testing.assert_array_equal(inputs[outside], given["tokens"][outside])


def test_the_distribution() -> None:
    """Of many documents with one span each: lengths in words, and what becomes of them."""
    given = documents([1000] * 4000, pieces=0.0)
    inputs, starts, ends = host.mask_spans(**given, seed=7, budget=0.01)  # ten words at most
    widths = ends - starts
    assert int(widths.sum()) == 4000 * 10
    became = np.array(["mask" if (inputs[s:e] == MASK).all() else "random" if (inputs[s:e] < 50).all() else "same"
                       for s, e in zip(starts.tolist(), ends.tolist(), strict=True)])  # fmt: skip
    for kind, chance in (("mask", 0.8), ("random", 0.1), ("same", 0.1)):
        assert abs((became == kind).mean() - chance) < 4 * math.sqrt(chance * (1 - chance) / len(became)), kind


def test_lengths_are_geometric() -> None:
    """The first length drawn in each of many documents against p (1 - p)^(n - 1), normalised over 1 .. 10."""
    chances = 0.2 * 0.8 ** np.arange(10)
    chances /= chances.sum()
    cumulative = np.cumsum(chances)
    drawn = [int(np.searchsorted(cumulative, fallback._Draws(3, i).uniform(), side="right")) for i in range(40_000)]
    counts = np.bincount(drawn, minlength=10) / len(drawn)
    np.testing.assert_allclose(counts, chances, atol=4 * math.sqrt(0.25 / len(drawn)))
    assert abs((counts * np.arange(1, 11)).sum() - 3.80) < 0.06  # the mean that the paper gives


def test_other_documents_change_nothing() -> None:
    together = host.mask_spans(**documents([50, 80]), seed=5)
    alone = host.mask_spans(**{**documents([50]), "word_starts": documents([50, 80])["word_starts"][:50]}, seed=5)
    first = together[1] < 50
    np.testing.assert_array_equal(together[0][:50], alone[0])
    np.testing.assert_array_equal(together[1][first], alone[1])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"tokens": [1, 2]}, TypeError, "tokens must be a numpy array"),
        ({"cu_seqlens": np.array([0, 9])}, ValueError, r"cu_seqlens must begin with 0 and end with 10"),
        ({"cu_seqlens": np.array([0, 7, 3, 10])}, ValueError, r"must ascend, but cu_seqlens\[2\] = 3 < 7"),
        ({"word_starts": np.ones(9, dtype=bool)}, ValueError, r"shape \[10\], got \[9\]"),
        ({"word_starts": np.ones(10)}, TypeError, "must be bool, got float64"),
        ({"random_tokens": np.array([], dtype=np.int64)}, ValueError, "at least one token"),
        ({"budget": 1.5}, ValueError, "budget must be from 0 to 1, got 1.5"),
        ({"masked": 0.8, "randomised": 0.3}, ValueError, "must be from 0 to 1, got 1.1"),
        ({"geometric_p": 0.0}, ValueError, "geometric_p must be above 0"),
        ({"max_words": 0}, ValueError, "max_words must be at least 1"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        host.mask_spans(**{**documents([10]), "seed": 0, **change})


@needs_module
def test_never_the_bottleneck() -> None:
    """A million tokens, far more than an encoder takes in a second on any machine, in less of a processor than that."""
    given = documents([512] * 2000)
    start = time.process_time()
    host.mask_spans(**given, seed=1, compiled=True)
    assert time.process_time() - start < 1.0
