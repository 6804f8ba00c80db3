"""Predictions as spaCy's documents: its own reader finds the same text and the same entities."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanbert_kernels.data.splitting import Located, words_in
from spanbert_kernels.tasks.formats import spacy_document
from spanbert_kernels.tasks.predictions import Mark, Prediction

spacy = pytest.importorskip("spacy")
TEXT = "  Dr. Li didn't\n see  New York. "


def test_documents_come_back(tmp_path: Path) -> None:
    from spacy.tokens import DocBin

    from spanbert_kernels.integrations import spacy_documents

    where = Located(TEXT, words_in(TEXT))
    marks = (Mark(2, 8, "person", "1"), Mark(22, 30, "place", "2"))
    tagged = Prediction(Path("a"), 1, where, marks, "entities", ("O",) * len(where.places))
    heads = (2, 5, 5, 5, 0, 7, 5, 5)
    parsed = Prediction(Path("a"), 1, where, tree=(heads, ["dep"] * 4 + ["root"] + ["dep"] * 3))
    every = [tagged, Prediction(Path("a"), 1, where, marks, "mentions"), parsed]
    spacy_documents.to_disk(map(spacy_document, every), tmp_path / "a.spacy")
    first, second, third = DocBin().from_disk(tmp_path / "a.spacy").get_docs(spacy.vocab.Vocab())
    assert [each.text for each in (first, second, third)] == [TEXT] * 3
    assert [(each.text, each.label_) for each in first.ents] == [("Dr. Li", "person"), ("New York", "place")]
    assert {name: [each.text for each in own] for name, own in second.spans.items()} == {
        "coref_clusters_1": ["Dr. Li"],
        "coref_clusters_2": ["New York"],
    }
    assert [(each.text, each.head.text) for each in third if each.text.strip()][:3] == [
        ("Dr.", "Li"),
        ("Li", "see"),
        ("did", "see"),
    ]
