"""GLiNER and GLiNER2 as they are installed, on a trained encoder: entities, losses and gradients with spans fused.

`make test-integrations` installs them; without them, or without the encoder, what is missing is skipped by name.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from acceleration.agreement import seeded
from originals import gliner as definition
from originals import gliner2 as definition2
from torch import Tensor, nn

import spanbert_kernels as sk

pytestmark = pytest.mark.filterwarnings("ignore")

DATA = os.environ.get("SPANBERT_KERNELS_DATA")
ENCODER = Path(DATA or "data").parent / "models" / "minilm"
TEXTS = [
    "Anna Smith of Acme wrote about dogs , while the cat sat on a mat in Paris and slept .",
    "the cat sat on a mat in Paris .",
    "Dogs .",
]
LABELS = ["person", "place", "company"]
FUSED = [mode for mode in definition.MODES if mode not in ("query", "mlp", "token_level")]


def spans_of(report: Any) -> dict[str, int]:
    return dict(sum((each.calls for each in report.span_layers), type(report.calls)()))


@pytest.mark.parametrize("mode", definition.MODES)
def test_the_definition_is_the_package(mode: str) -> None:
    span_rep = pytest.importorskip("gliner.modeling.span_rep")
    real = seeded(lambda: span_rep.SpanRepLayer(8, 3, mode, dropout=0.0))
    defined = definition.SpanRepLayer(8, 3, mode, dropout=0.0)
    assert list(defined.state_dict()) == list(real.state_dict())
    defined.load_state_dict(real.state_dict())
    words, mask = torch.randn(2, 5, 8), torch.arange(5) < torch.tensor([[5], [2]])
    spans, _ = definition.spans_of(mask.sum(1), 3)
    torch.testing.assert_close(defined(words, spans, mask), real(words, spans, mask))
    report = sk.accelerate(nn.ModuleDict({"layer": real, "other": definition.SpanRepLayer(8, 3, "cat")}))
    assert [each.name for each in report.skipped] == ([] if mode in (*FUSED, "token_level") else ["layer"])


def test_the_definition_is_the_other_package() -> None:
    real = seeded(lambda: pytest.importorskip("gliner2.layers").SpanMarkerV0(8, 3, 0.0))
    defined = definition2.QueryMarker(8, 3, 0.0)
    defined.load_state_dict(real.state_dict())
    words, queries, lengths = torch.randn(2, 5, 8), torch.randn(2, 4, 8), torch.tensor([5, 2])
    for given in ((), (lengths,)):
        torch.testing.assert_close(
            defined.score_queries(words, queries, *given), real.score_queries(words, queries, *given)
        )
    expected = real.score_queries(words, queries, lengths)
    assert len(sk.accelerate(real).span_layers) == 2
    torch.testing.assert_close(real.score_queries(words, queries, lengths), expected)


def built(**settings: Any) -> Any:
    gliner = pytest.importorskip("gliner")
    if not ENCODER.is_dir():
        pytest.skip(f"no trained encoder: {ENCODER.name} beside SPANBERT_KERNELS_DATA")
    config = gliner.GLiNERConfig(model_name=str(ENCODER), hidden_size=384, max_width=6, dropout=0.0, **settings)
    return seeded(lambda: gliner.GLiNER.from_config(config, backbone_from_pretrained=True)).eval()


def entities(model: Any, **options: Any) -> list[Any]:
    return model.inference(TEXTS, LABELS, threshold=0.45, flat_ner=False, multi_label=True, batch_size=4, **options)


def one_by_one(model: Any) -> list[Any]:
    """A model of tokens cannot take texts of several lengths, which is its own matter."""
    return [model.inference([text], LABELS, threshold=0.05, flat_ner=False, multi_label=True)[0] for text in TEXTS]


def with_relations(model: Any) -> list[Any]:
    found, relations = entities(model, relations=["works for", "in"], relation_threshold=0.3)
    return [*found, *([{"text": str(each), "score": 1.0}] for each in map(len, relations))]


def named(found: list[Any]) -> list[list[tuple[Any, ...]]]:
    """Entities without what rounding changes, in one order."""
    return [
        sorted((each.get("start"), each.get("end"), each["text"], each.get("label")) for each in text) for text in found
    ]


KINDS: dict[str, tuple[dict[str, Any], Callable[[Any], list[Any]]]] = {
    **{mode: ({"span_mode": mode}, entities) for mode in FUSED},
    "with vectors": ({}, lambda model: entities(model, return_vectors=True)),
    "two encoders": ({"labels_encoder": str(ENCODER)}, entities),
    "relations": ({"relations_layer": "dot"}, with_relations),
    "tokens": ({"span_mode": "token_level", "represent_spans": True}, one_by_one),
}


@pytest.mark.parametrize("kind", KINDS)
def test_entities(kind: str) -> None:
    settings, find = KINDS[kind]
    model = built(**settings)
    state = copy.deepcopy(model.model.state_dict())
    expected = find(model)
    assert sum(map(len, expected)) > 20, "hardly an entity was found"
    report = sk.accelerate(model)
    found = find(model)
    assert set(spans_of(report)) == {"fused"}
    assert named(found) == named(expected)
    scores = [[each["score"] for text in texts for each in text] for texts in (found, expected)]
    torch.testing.assert_close(sorted(scores[0]), sorted(scores[1]), rtol=1e-3, atol=1e-4)
    model.model.load_state_dict(state)
    sk.restore(model)
    assert named(find(model)) == named(expected)


def test_entities_of_a_compiled_model() -> None:
    model = built()
    expected = entities(model)
    report = sk.accelerate(model)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):  # as GLiNER.compile sets it, which takes a minute
        model.model = torch.compile(model.model, dynamic=True, backend="eager")
        assert named(entities(model)) == named(expected)
    assert spans_of(report) == {"fused": 1}


def loss(model: Any) -> Tensor:
    examples = [
        {"tokenized_text": text.split(), "ner": [[0, 1, "person"], [2, 2, "company"]][: len(text.split()) - 1]}
        for text in TEXTS
    ]
    collator = model.data_collator_class(model.config, data_processor=model.data_processor, prepare_labels=True)
    random.seed(1)  # it draws labels that no text has
    value: Tensor = model.model(**collator(examples)).loss
    return value


@pytest.mark.parametrize("mode", FUSED)
def test_a_training_step(mode: str) -> None:
    """In float64, where the encoder's own dropout is off."""
    steps = []
    for fused in (False, True):
        model = built(span_mode=mode)
        model.model.double()
        report = sk.accelerate(model) if fused else None
        value = loss(model)
        value.backward()
        steps.append([value.detach(), *(p.grad for p in model.model.parameters())])
    assert report is not None
    assert set(spans_of(report)) == {"fused"}
    for mine, theirs in zip(*steps, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_a_training_step_under_autocast() -> None:
    values = []
    for fused in (False, True):
        model = built()
        if fused:
            sk.accelerate(model)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model)
        value.backward()
        values.append(value.item())
    assert values[0] == pytest.approx(values[1], rel=0.02)
