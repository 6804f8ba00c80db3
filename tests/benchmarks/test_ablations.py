"""Parts with and without: what was found document by document, the bootstrap over these, and the tables."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from task_results import ablations, embeddings, paired
from task_results.rows import ROWS

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.conllu import read_sentences
from spanbert_kernels.tasks import coreference, relations
from spanbert_kernels.tasks.base import Judged
from spanbert_kernels.tasks.cross_document_coreference import joined

CLUSTER = (
    MarkedDocument(
        "a", ("w",) * 4, (Mention(0, 0, "", "1"), Mention(1, 2, "", "1"), Mention(3, 3, "", "2")), Path("a"), ()
    ),
    MarkedDocument("b", ("w",) * 3, (Mention(0, 0, "", "1"), Mention(2, 2, "", "3")), Path("b"), ()),
)


def test_documents_sums_are_the_scores() -> None:
    """Of entities across documents, and of relations; each stands where it was found."""
    found = {frozenset({(0, 0), (4, 4)}), frozenset({(1, 2), (3, 3)}), frozenset({(5, 5)})}
    scores = coreference.score([joined(CLUSTER)], [found])
    sums = paired.of_mentions(Judged([CLUSTER], [found], scores))
    assert paired.f1(sum(sums.values())) == pytest.approx(scores["B3"])
    assert {name: own.tolist() for name, own in sums.items()} == {
        "a": pytest.approx([1 + 0.5 + 0.5, 3, 2 / 3 + 1 / 3 + 1, 3]),
        "b": pytest.approx([1, 2, 2 / 3, 2]),
    }
    wanted = frozenset({("1", "2", "x"), ("3", "1", "x")})
    both = [relations.RelatedCluster(CLUSTER, wanted)], [{("1", "2", "x"): 0.9, ("2", "1", "x"): 0.6}]
    sums = paired.of_relations(Judged(*both, {}))
    assert {name: own.tolist() for name, own in sums.items()} == {"a": [1, 2, 1, 1], "b": [0, 0, 0, 1]}
    assert paired.f1(sum(sums.values())) == pytest.approx(relations.score(*both)["F1"])
    posts = [SimpleNamespace(line=line, label="good", cluster=cluster) for line, cluster in enumerate("xxy")]
    sums = paired.of_labels(Judged(posts, [("good", 0.9), ("bad", 0.5), ("good", 0.6)], {}))
    assert {name: own.tolist() for name, own in sums.items()} == {"x": [1, 2, 1, 2], "y": [1, 1, 1, 1]}


def test_chance_is_told_from_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What wins in every document, what wins in one of many, and what is the same."""
    monkeypatch.setattr(paired, "DRAWS", 1000)
    names = [f"d{number}" for number in range(20)]
    worse = {name: np.array([1.0, 2, 1, 2]) for name in names}
    better = {name: np.array([2.0, 2, 2, 2]) for name in names}
    always = paired.difference([better, better], [worse, worse])
    assert (always.mean, always.low, always.high) == pytest.approx((0.5, 0.5, 0.5))
    assert always.p < 0.01
    once = paired.difference([{**worse, "d3": better["d3"], "d4": np.array([0.0, 2, 0, 2])}], [worse])
    assert once.low < 0 < once.high
    assert once.p > 0.2
    assert paired.difference([worse], [worse]).p == 1.0
    assert paired.difference([worse], [better]).mean == pytest.approx(-0.5)


def test_the_table_of_a_record() -> None:
    """A line an arm, compared with the first one over the seeds of both; what was not measured says so."""

    def run(arm: str, seed: int, score: float, right: int) -> dict[str, Any]:
        documents = paired.written({name: np.array([right, 4, right, 4]) for name in "abc"})
        scores = {ROWS["cross-document-coreference"].measure: score}
        return {
            "row": f"coreference: {arm}",
            "backend": "auto",
            "seed": seed,
            "scores": scores,
            "documents": documents,
            "seconds": 90,
        }

    runs = [run("without", 0, 0.2, 1), run("without", 1, 0.4, 1), run("tokens x tokens", 0, 0.5, 2)]
    found = [line[2:] for line in ablations.lines({"runs": runs})]
    assert found[0] == ["without", "CoNLL F1", "0.300", "0.200, 0.400", "", "", "", "1.5"]
    assert found[1][2:] == ["0.500", "0.500", "+0.250 B3", "+0.250 to +0.250", "0.0002", "1.5"]
    assert {line[2] for line in found[2:]} == {"not measured"}
    assert len(found) == sum(len(ablation.arms) for ablation in ablations.ABLATIONS.values())
    before = len({arm.pretrained for each in ablations.ABLATIONS.values() for arm in each.arms.values()} - {None})
    assert len(ablations.planned(tuple(ablations.ABLATIONS))) + before <= 30


def test_sentence_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs stay within documents; without the package nothing is recorded, and the row and the command say so."""
    file = tmp_path / embeddings.FILE
    file.parent.mkdir()
    texts = ("# newdoc id = a", "One"), ("", "Two"), ("", "Three"), ("# newdoc id = b", "Four")
    comments = (f"{mark}\n" if mark else "" for mark, _ in texts)
    words = (f"# text = {text}\n1\t{text}\t_\t_\t_\t_\t0\troot\t_\t_\n\n" for _, text in texts)
    file.write_text("".join(a + b for a, b in zip(comments, words, strict=True)))
    assert embeddings.pairs_of(list(read_sentences(file))) == [("One", "Two"), ("Two", "Three")]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setenv("SPANBERT_KERNELS_DATA", str(tmp_path))
    path = tmp_path / "record.json"
    with pytest.raises(click.ClickException, match=r"not measured, it needs sentence-transformers"):
        embeddings.main(["--output", str(path), "--model", "minilm"], standalone_mode=False)
    assert not path.exists()
    (line,) = embeddings.lines({"runs": []})
    assert line[3] == "not measured: it needs sentence-transformers"
    scores, theirs = {embeddings.APART: 2.4e-7, embeddings.NEAREST: 0.5}, {embeddings.NEAREST: 0.5}
    seconds = {"theirs": [2.0, 6.0, 4.5], "ours": [1.0, 2.0, 2.0]}
    run = {
        "row": embeddings.ROW,
        "backend": "auto",
        "seed": 0,
        "scores": scores,
        "baseline": theirs,
        "encode seconds": seconds,
    }
    first, second = embeddings.lines({"runs": [{**run, "seconds": 30, "peak MB": 1234}]})
    assert first[3:] == ["2e-07", "", "1e-05", "", "", "2.25 (encode)", embeddings.ASKED, "0.5", "1,234"]
    assert second[2:6] == [embeddings.NEAREST, "0.500", "", ""]
