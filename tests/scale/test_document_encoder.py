"""Vectors are those of the model called alone, whatever batch a document came into."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spanbert_kernels import SpanBERTModel
from spanbert_kernels.models.tokenization import load_tokenizer
from spanbert_kernels.scale import DocumentEncoder, Wanted

TEXTS = ["it rains in the harbour of paris .", "we go", "a storm", "the storm rains home . it rains .", "home"]


def alone(model: str, text: str, **more: Any) -> torch.Tensor:
    """The last hidden states of a text, special tokens among them."""
    ids = load_tokenizer(model)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return SpanBERTModel.from_pretrained(model, add_pooling_layer=False).eval()(ids, **more).last_hidden_state[0]


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_documents_have_the_vectors_that_they_have_alone(model: str, backend: str) -> None:
    encoder = DocumentEncoder(model, Wanted(parts=("mean", "start")), batch_tokens=16, backend=backend)
    found = encoder({"text": TEXTS, "number": [7, 8, 9, 10, 11]})
    expected = [torch.cat([(states := alone(model, text)).mean(0), states[0]]) for text in TEXTS]
    np.testing.assert_allclose(found["vector"], torch.stack(expected).numpy(), atol=2e-6)
    assert found["number"] == [7, 8, 9, 10, 11]
    assert encoder.report is None or encoder.report.last_path == "packed-inference"


def test_spans_and_sentences(model: str) -> None:
    text = "It rains in Parisian harbour . We go home ."
    states = alone(model, text)[1:-1]
    spans = DocumentEncoder(model, rows="spans")({"text": [text], "spans": [[(12, 20), (3, 8)]]})
    assert spans["text"] == ["Parisian", "rains"]
    np.testing.assert_allclose(spans["vector"], torch.stack([states[3:5].mean(0), states[1]]).numpy(), atol=2e-6)
    sentences = DocumentEncoder(model, rows="sentences")({"text": [text], "id": ["weather"]})
    assert sentences["text"] == ["It rains in Parisian harbour .", "We go home ."]
    assert sentences["id"] == ["weather"] * 2
    np.testing.assert_allclose(
        sentences["vector"], torch.stack([states[:7].mean(0), states[7:].mean(0)]).numpy(), atol=2e-6
    )


def test_long_documents_are_windows_or_cut(model: str) -> None:
    text = " ".join(["it rains in the harbour"] * 10)  # 50 tokens, where the model holds 32
    whole = DocumentEncoder(model)({"text": [text]})["vector"][0]
    windows = [alone(model, " ".join(text.split()[start : start + 25])) for start in (0, 25)]
    np.testing.assert_allclose(whole, torch.cat(windows).mean(0).numpy(), atol=2e-6)
    cut = DocumentEncoder(model, cut=True)({"text": [text]})["vector"][0]
    np.testing.assert_allclose(cut, alone(model, " ".join(text.split()[:30])).mean(0).numpy(), atol=2e-6)


def test_documents_of_a_cluster_see_each_other(model: str) -> None:
    encoder = DocumentEncoder(model, clusters="topic")
    found = encoder({"text": TEXTS[:3], "topic": ["a", "a", "b"]})["vector"]
    apart = encoder({"text": [TEXTS[0], TEXTS[2], TEXTS[1]], "topic": ["a", "b", "a"]})["vector"]
    np.testing.assert_allclose(apart[[0, 2, 1]], found, atol=2e-6)
    tokenizer = load_tokenizer(model)
    batch = tokenizer(TEXTS[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        encoder = SpanBERTModel.from_pretrained(model, add_pooling_layer=False).eval()
        states = encoder(
            batch["input_ids"], batch["attention_mask"], cluster_ids=torch.tensor([0, 0, 1])
        ).last_hidden_state
    expected = [own[: int(mask.sum())].mean(0) for own, mask in zip(states, batch["attention_mask"], strict=True)]
    np.testing.assert_allclose(found, torch.stack(expected).numpy(), atol=2e-6)
    assert np.abs(found[0] - alone(model, TEXTS[0]).mean(0).numpy()).max() > 1e-3


def test_datasets_map_with_it(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    encoder = DocumentEncoder(model)
    mapped = datasets.Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3, 4, 5]}).map(encoder, batched=True, batch_size=2)
    np.testing.assert_allclose(np.array(mapped["vector"]), encoder({"text": TEXTS})["vector"], atol=2e-6)


def test_frames_give_frames(model: str) -> None:
    pandas = pytest.importorskip("pandas")
    encoder = DocumentEncoder(model)
    frame = encoder(pandas.DataFrame({"id": [7, 8], "text": TEXTS[:2]}))
    assert list(frame.columns) == ["id", "text", "vector"]
    np.testing.assert_allclose(np.stack(frame["vector"]), encoder({"text": TEXTS[:2]})["vector"], atol=2e-6)


def test_it_is_sent_as_its_arguments(model: str) -> None:
    encoder = DocumentEncoder(model, normalize=True, half=True)
    data = pickle.dumps(encoder)
    assert len(data) < 2000
    found = pickle.loads(data)({"text": ["we go"]})["vector"]
    assert found.dtype == np.float16
    assert float((found.astype(np.float32) ** 2).sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["we go", None]}, "row 1: no field 'text' that holds text"),
        ({"text": ["we go", " "]}, "row 1: the text has no token"),
        ({"text": ["we go"], "spans": [[[3, 9]]]}, r"row 0: span \[3, 9\] is outside of the text of 5 characters"),
    ],
)
def test_a_row_without_a_vector_is_named(model: str, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DocumentEncoder(model, rows="spans" if "spans" in columns else "documents")(columns)
