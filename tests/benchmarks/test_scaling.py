"""The arithmetic of SCALING.md, done again from its beginnings: every figure in its text follows from these."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

PAGE = " ".join((Path(__file__).parents[2] / "benchmarks" / "SCALING.md").read_text(encoding="utf-8").split())
LAYERS, HIDDEN, INNER, HEADS, BYTES = 12, 768, 3072, 12, 2
PEAK, BANDWIDTH, MEMORY = 989e12, 4.8e12, 141e9
RATE = PEAK / 2
WEIGHTS = 4 * HIDDEN**2 + 2 * HIDDEN * INNER
PARAMETERS = 108e6
TOKEN = LAYERS * (2 * WEIGHTS + 4 * 512 * HIDDEN)
CLUSTER = 512_000  # tokens of 1,000 documents
STATE = HIDDEN * BYTES
SPANS = 512 * 30 - 30 * 29 // 2
STEP = 3 * 32_768 * TOKEN
RING = 2 * PARAMETERS * BYTES
# The figure stands where the braces are; the value is in its unit.
CLAIMS = [
    ("= {} million weights", WEIGHTS / 1e6),
    ("= {} MFLOP in the products", LAYERS * 2 * WEIGHTS / 1e6),
    ("= {} L for attention", LAYERS * 4 * HIDDEN),
    ("its document: {} MFLOP", LAYERS * 4 * HIDDEN * 512 / 1e6),
    ("Together {} GFLOP", TOKEN / 1e9),
    ("512 million tokens: {} operations", 1e6 * 512 * TOKEN),
    ("1e6 pairs: {} GFLOP", 4 * HIDDEN * 1e6 / 1e9),
    ("pairs: {} operations, 262,144", 4 * HIDDEN * CLUSTER**2),
    ("operations, {} times as many", CLUSTER**2 / 1e6),
    ("half of the first is {} TFLOP/s", RATE / 1e12),
    ("{} tokens a second", 1e7 / 3600),
    ("tokens a second, {} TFLOP/s", 1e7 / 3600 * TOKEN / 1e12),
    ("take {} GB. States", PARAMETERS * BYTES / 1e9),
    ("bytes = {} KB a token:", STATE / 1e3),
    ("a token: {} GB for 512 million", 512e6 * STATE / 1e9),
    ("document vectors are {} GB", 1e6 * STATE / 1e9),
    ("bytes = {} KB a token (", 10 * STATE / 1e3),
    ("takes {} million tokens at once", MEMORY / (10 * STATE) / 1e6),
    ("bytes = {} KB a token and layer", 34 * HIDDEN / 1e3),
    ("(Korthikanti et al. 2022), {} MB a token", LAYERS * 34 * HIDDEN / 1e6),
    ("MB a token: {} GB for 32,768", LAYERS * 34 * HIDDEN * 32_768 / 1e9),
    ("{} tokens fill one H200", (MEMORY - 16 * PARAMETERS) / (LAYERS * 34 * HIDDEN)),
    ("q, k and v of {} GB", CLUSTER * 3 * STATE / 1e9),
    ("would be {} TB", HEADS * CLUSTER**2 * BYTES / 1e12),
    ("Anchors of 1,000 documents: {} MB", 1000 * 3 * STATE / 1e6),
    ("and {} MB of scores", HEADS * 1000**2 * BYTES / 1e6),
    ("989 / 4.8 = {}.", PEAK / BANDWIDTH),
    ("{} microseconds for a document of 256", 256 * 4 * STATE / (BANDWIDTH / 2) * 1e6),
    ("of 512 tokens ({})", SPANS),
    ("pooled once are {} MB", SPANS * STATE / 1e6),
    ("bfloat16, {} times what the states take", SPANS / 512),
    ("a document: {} MB for 1,000", 1000 * 2 * STATE / 1e6),
    ("in bfloat16 are {} MB", PARAMETERS * BYTES / 1e6),
    ("that takes {} ms, between", RING / 450e9 * 1e3),
    ("(50 GB/s) {} ms", RING / 50e9 * 1e3),
    ("GFLOP = {} TFLOP", STEP / 1e12),
    ("TFLOP, {} ms at the assumed rate", STEP / RATE * 1e3),
    ("such a step has {} million tokens", 512 * 32_768 / 1e6),
    ("64 GPUs with {} million", 64 * 32_768 / 1e6),
    ("BERT's own {} and", 256 * 512),
    ("RoBERTa's {} million", 8192 * 512 / 1e6),
    ("16 bytes a weight, {} GB", 16 * PARAMETERS / 1e9),
    ("against {} TFLOP of encoding", CLUSTER * TOKEN / 1e12),
    ("its documents: {} %", 4 * HIDDEN * 1e6 / (CLUSTER * TOKEN) * 100),
    ("All tokens cost {} TFLOP", 4 * HIDDEN * CLUSTER**2 / 1e12),
]


@pytest.mark.parametrize(("claim", "value"), CLAIMS)
def test_figure_follows(claim: str, value: float) -> None:
    before, after = map(re.escape, claim.split("{}"))
    found = re.findall(rf"{before}(\d[\d,.e]*\d|\d){after}", PAGE)
    assert len(found) == 1, (claim, found)
    stated = Decimal(found[0].replace(",", "")).normalize()
    last_digit = 10.0 ** int(stated.as_tuple().exponent)
    assert float(stated) == pytest.approx(value, abs=0.51 * last_digit)


@pytest.mark.parametrize(
    ("words", "value", "about"),
    [
        ("a tenth of what the products take", 256 * 4 * STATE / (BANDWIDTH / 2) / (256 * 2 * WEIGHTS / RATE), 0.1),
        ("more than five H200s hold", 512e6 * STATE / MEMORY, 5.5),
        ("below 400 tokens it is bound by", 2 * PEAK / BANDWIDTH, 400),
        ("a thousandth of the assumed rate", 1e7 / 3600 * TOKEN / RATE, 1e-3),
        ("eight times the whole encoder", 4 * HIDDEN * CLUSTER / TOKEN, 8),
    ],
)
def test_words_follow(words: str, value: float, about: float) -> None:
    assert words in PAGE
    assert value == pytest.approx(about, rel=0.12)
