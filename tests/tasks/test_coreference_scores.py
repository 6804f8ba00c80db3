"""Coreference scores against the figures that the CoNLL scorer's test cases publish, and what scorch gets wrong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.tasks import coreference
from spanbert_kernels.tasks.coreference_scores import METRICS, disjoint, f1_scores


def f1(recall: float, precision: float) -> float:
    return 2 * recall * precision / (recall + precision)


LUO = "12345 67 89ABC"  # Luo 2005, On Coreference Resolution Performance Metrics
# Case, key, response (a letter a mention, a word an entity), F1 of MUC, B3 and CEAFe as published; None: not published.
# A mention that overlaps another one has a letter of its own (b and B in A5 and A6); one that repeats, the same.
CASES: list[tuple[str, str, str, float | None, float | None, float | None]] = [
    ("A1", "a bc def", "a bc def", 1, 1, 1),
    ("A2", "a bc def", "a de", 0.5, 14 / 25, 0.72),
    ("A3", "a bc def", "a bcx defy z", 0.75, 110 / 163, 0.75918),
    ("A4", "a bc def", "a bcx dy z", 1 / 3, f1(5 / 9, 17 / 42), 0.62857),
    ("A5", "a bc def", "a bcxB dy z", 2 / 7, f1(5 / 9, 5 / 16), 0.59048),
    ("A6", "a bc def", "a bcx dy Bz", 2 / 7, f1(5 / 9, 17 / 48), 0.62857),
    ("A7", "a bc def", "a bcxb dy z", 1 / 3, f1(5 / 9, 17 / 42), 0.62857),
    ("A8", "a bc def", "a bcx dy bz", 1 / 3, f1(5 / 9, 17 / 42), 0.62857),
    ("A9", "a bc def", "a bcx dy bbbbbbbbbbz", 1 / 3, f1(5 / 9, 17 / 42), 0.62857),
    ("A10", "a bc def", "a b c d e f", 0, 2 / 3, None),
    ("A11", "a bc def", "abcdef", 0.75, 14 / 25, None),
    ("D1", LUO, "12345 6789ABC", f1(1, 9 / 10), f1(1, 16 / 21), None),
    ("E1", LUO, "1234589ABC 67", f1(1, 9 / 10), f1(1, 7 / 12), None),
    ("F1", "abcd", "ab cd", f1(2 / 3, 1), None, None),
    ("G1", "ab cd", "abcd", f1(1, 2 / 3), None, None),
    ("J1", "abc", "ac", f1(1 / 2, 1), None, None),
    ("M1", "abcdef", "abcdef", 1, 1, 1),
    ("M2", "abcdef", "a b c d e f", 0, None, None),
    ("N2", "a b c d e f", "abcdef", 0, None, None),
]


@pytest.mark.parametrize(("key", "response", "wanted"), [(k, r, w) for _, k, r, *w in CASES], ids=[c[0] for c in CASES])
def test_published_figures(key: str, response: str, wanted: list[float | None]) -> None:
    found = f1_scores(key.split(), response.split())
    for name, value in zip(METRICS, wanted, strict=True):
        assert value is None or found[name] == pytest.approx(value, abs=5e-6), name


@pytest.mark.parametrize(
    ("key", "response"),
    [("ab", "xy"), ("ab", "x"), ("ab", ""), ("", "ab"), ("", ""), ("a b", "x y"), ("abc de", "x yz w")],
)
def test_nothing_in_common(key: str, response: str) -> None:
    assert set(f1_scores(key.split(), response.split()).values()) == {0.0}


def test_no_score_exceeds_1() -> None:
    """However often mentions repeat; and gold against itself is 1 wherever two mentions are linked."""
    draw = random.Random(0)
    for _ in range(200):
        key, response = (
            ["".join(draw.choices("abcdefg", k=draw.randint(1, 4))) for _ in range(draw.randint(1, 4))] for _ in "kr"
        )
        assert all(0.0 <= value <= 1.0 for value in f1_scores(key, response).values()), (key, response)
        linked = any(len(entity) > 1 for entity in disjoint(key))
        assert f1_scores(key, key)["CoNLL F1"] == pytest.approx(1.0 if linked else 2 / 3)


def test_a_mention_of_two_entities() -> None:
    spans = [(0, 0, "a"), (2, 3, "a"), (2, 3, "b"), (5, 5, "b"), (7, 7, "b")]
    mentions = tuple(Mention(first, last, "", entity) for first, last, entity in spans)
    document = MarkedDocument("d", ("w",) * 8, mentions, Path("f.conll"), tuple(range(1, 9)))
    gold = coreference.gold(document)
    assert coreference.score([document], [gold]) == {"MUC": 1.0, "B3": 1.0, "CEAFe": 1.0, "CoNLL F1": 1.0}
    assert coreference.score([document], [{frozenset([(1, 1)])}])["CoNLL F1"] == 0.0
