"""Made documents are as long as wanted, records keep the larger measurements, and tables say what they hold."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import readme_tables
from corpus_encoding import recording, tables
from corpus_encoding.documents import LONGEST, MIXES, MOST, SPECIAL, Texts
from corpus_encoding.one_measurement import MemorySamples
from corpus_encoding.plan import planned

from spanbert_kernels.scale.corpus import CorpusProgress
from spanbert_kernels.scale.encoder import Throughput


def texts() -> Texts:
    """Sentences of 1 to 40 words of 1 to 20 letters; a letter is a token."""
    rng = np.random.default_rng(0)
    sentences = [
        " ".join("x" * length for length in rng.integers(1, 21, rng.integers(1, 41)).tolist()) for _ in range(300)
    ]
    return Texts.of(sentences, lambda words: [len(word) for word in words])


@pytest.mark.parametrize("mix", MIXES)
def test_documents_are_as_long_as_their_mix_says(mix: str) -> None:
    made = list(texts().documents(mix, 5000))
    lengths = np.array([sum(map(len, text.split())) + SPECIAL for text in made])
    assert len(made) == 5000
    assert lengths.max() <= MOST
    assert max(len(word) for text in made for word in text.split()) <= LONGEST
    if mix == "all of 128":
        assert lengths.min() > MOST - LONGEST
    assert made == list(texts().documents(mix, 5000))
    assert len(list(itertools.islice(texts().documents(mix, 10**12), 10))) == 10  # as they are asked for


def measurement(**more: Any) -> dict[str, Any]:
    about = {"what": "encode", "mix": "log-normal", "documents": 100, "engine": "local", "workers": 1, "model": "small"}
    figures = {"documents/s": 50.0, "tokens/s": 950, "padding": 0.5, "empty": 0.01}
    return {**about, **figures, "commit": "abc", "plan": 100, "memory": [[0, 0.0, 500.0, 600.0]], **more}


def test_a_larger_plan_takes_the_place_of_a_smaller_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for each in (measurement(), measurement(workers=2), measurement(workers=2, **{"tokens/s": 5})):
        recording.add(path, each)
    found = recording.load(path)["measurements"]
    assert [each["tokens/s"] for each in found] == [950, 5]
    recording.add(path, measurement(documents=1000, plan=1000))
    assert [each["plan"] for each in recording.load(path)["measurements"]] == [1000]
    assert recording.largest(recording.load(path)) == 1000


def test_no_two_of_a_plan_are_the_same() -> None:
    found = [tuple(vars(each).values()) for each in planned(100_000)]
    assert len(set(found)) == len(found)
    assert {each.mix for each in planned(100_000) if each.what == "encode"} == set(MIXES)


def test_the_table_has_the_bare_model_beside_each_encoding(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    other = measurement(what="bare", mix="all of 16", **{"tokens/s": 7})
    for each in (other, measurement(), measurement(workers=2), measurement(what="bare", **{"tokens/s": 1000})):
        recording.add(path, each)
    page = tables.section(recording.load(path), "record.json", readme_tables.table)
    assert "| log-normal | 100 | local | 1 | 50 | 950 | 50 % | 1.0 % | 1,000 | 95 % |" in page
    assert "| log-normal | 100 | local | 2 | 50 | 950 | 50 % | 1.0 % | 1,000 | 95 % |" in page
    assert "| 0 | 0 | 500 | 600 |" in page
    assert tables.section({"measurements": []}, "", readme_tables.table) == "Not measured yet.\n"


def test_memory_is_looked_at_at_each_tenth() -> None:
    samples, progress = MemorySamples(1000), CorpusProgress(1)
    for done in range(0, 1001, 7):
        progress.heard(0, Throughput(documents=done))
        samples.hear(progress)
    assert [done * 10 // 1000 for done, *_ in samples.samples] == list(range(10))
    assert all(0 < own <= every for _, _, own, every in samples.samples)
