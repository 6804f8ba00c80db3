"""The real fastcoref, from a text to its clusters, on small random models: the same clusters accelerated and not.

`make test-integrations` installs it; without it these tests are skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from acceleration.agreement import seeded
from transformers import BertConfig, BertTokenizerFast, PreTrainedModel

import spanbert_kernels as sk

spacy = pytest.importorskip("spacy")
fastcoref = pytest.importorskip("fastcoref")
pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = (
    "Anna Smith met Bob in Paris . She told him that the city was hers , and he believed her . "
    "Bob 's mother , a doctor , laughed at them . The doctor said it was late . "
)
PIECES = [*sorted(set(TEXT.lower().split())), *"abcdefghijklmnopqrstuvwxyz'.,"]


def init_weights(model: PreTrainedModel) -> None:
    """With transformers 5 a constructor ends with post_init(), where the package calls this."""
    if hasattr(model, "all_tied_weights_keys"):
        PreTrainedModel.init_weights(model)
    else:
        model.post_init()


@pytest.fixture(params=["FCoref", "LingMessCoref"])
def coref(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from fastcoref.coref_models.modeling_fcoref import FCorefModel
    from fastcoref.coref_models.modeling_lingmess import LingMessModel

    kind = FCorefModel if request.param == "FCoref" else LingMessModel
    monkeypatch.setattr(kind, "init_weights", init_weights)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES, *(f"##{piece}" for piece in PIECES)]
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)), encoding="utf-8")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    head = {"max_span_length": 30, "top_lambda": 0.4, "ffnn_size": 48, "dropout_prob": 0.3}
    config = BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
        coref_head={**head, "max_segment_len": 64, "max_doc_len": 4096},
    )
    seeded(lambda: kind(config)).save_pretrained(tmp_path)
    logging.disable(logging.INFO)
    made = getattr(fastcoref, request.param)(
        str(tmp_path), device="cpu", nlp=spacy.blank("en"), enable_progress_bar=False
    )
    yield made
    logging.disable(logging.NOTSET)


def clusters(coref: Any, texts: list[str]) -> list[Any]:
    return [found.get_clusters(as_strings=False) for found in coref.predict(texts)]


def test_the_same_clusters(coref: Any) -> None:
    texts = [TEXT * 3, TEXT]
    alone, together = [clusters(coref, [text]) for text in texts], clusters(coref, texts)
    assert any(found for (found,) in alone)
    report = sk.accelerate(coref.model)
    assert [clusters(coref, [text]) for text in texts] == alone
    assert set(report.span_layers[0].calls) == {"fused"}
    # What the encoder gives at padding is zeros now, and the packages look at it: with its own the batch is the same.
    sk.restore(coref.model.base_model)
    assert clusters(coref, texts) == together


def test_loss_and_gradients(coref: Any) -> None:
    model = coref.model.double().eval()
    ids = torch.randint(5, 80, (1, 60), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    words = TEXT.split() * 2
    batch |= {"tokens": [words], "subtoken_map": [list(range(60))], "new_token_map": [list(range(60))]}
    if isinstance(coref, fastcoref.FCoref):
        nothing: dict[str, list[int]] = {"input_ids": [], "attention_mask": []}
        batch |= {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], "leftovers": nothing}
    with torch.no_grad():
        starts, ends, *_ = model(batch, return_all_outputs=True)
    gold = torch.stack([starts[0, :6], ends[0, :6]], -1).view(1, 2, 3, 2)

    def step() -> list[torch.Tensor]:
        model.zero_grad()
        loss, *_ = model(batch, gold_clusters=gold)
        loss.backward()
        return [loss.detach(), *(each.grad for each in model.parameters() if each.grad is not None)]

    expected = step()
    sk.accelerate(model)
    for mine, theirs in zip(step(), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
