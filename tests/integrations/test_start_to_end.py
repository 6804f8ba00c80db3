"""fastcoref's and s2e-coref's models with mentions out of a band: their mentions, scores, losses and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from acceleration.agreement import seeded
from originals.fastcoref import FCorefModel, LingMessModel
from originals.start_to_end import S2E
from torch import Tensor
from transformers import BertConfig

import spanbert_kernels as sk
from spanbert_kernels import ops
from spanbert_kernels.acceleration import AccelerationWarning

KINDS = (FCorefModel, LingMessModel, S2E)
SEGMENT, LENGTH, WIDTH = 8, 21, 5
WORDS = [
    word + "s" * (place % 5 == 3) for place, word in enumerate(["The", "dog", "saw", "her", "she", "it", "of"] * 3)
]


def built(kind: type, **head: Any) -> Any:
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        coref_head={"max_span_length": WIDTH, "top_lambda": 0.4, "ffnn_size": 12, "dropout_prob": 0.0, **head},
    )
    return seeded(lambda: kind(config)).eval()


def arguments(kind: type, lengths: tuple[int, ...] = (LENGTH, 17)) -> dict[str, Any]:
    """Documents, the shorter ones padded; for fastcoref in segments, and what is left."""
    ids = torch.randint(1, 60, (len(lengths), LENGTH), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    if kind is S2E:
        return {"input_ids": ids, "attention_mask": mask}
    whole = LENGTH // SEGMENT * SEGMENT
    segments = (len(lengths), -1, SEGMENT)
    word_of = [None, *range(LENGTH - 2), None]
    return {
        "batch": {
            "input_ids": ids[:, :whole].reshape(segments).contiguous(),
            "attention_mask": mask[:, :whole].reshape(segments).contiguous(),
            "leftovers": {"input_ids": ids[:, whole:], "attention_mask": mask[:, whole:]},
            "tokens": [WORDS] * len(lengths),
            "subtoken_map": [word_of[:length] for length in lengths],
            "new_token_map": [[None, *range(1, LENGTH)]] * len(lengths),
        }
    }


def clusters_of(starts: Tensor, ends: Tensor) -> Tensor:
    """Two clusters of mentions that are kept, and the filling of a third."""
    spans = torch.stack([starts, ends], -1)[:, :6]
    none = torch.full((len(spans), 1, 3, 2), -1)
    return torch.cat([torch.stack([spans[:, ::2], spans[:, 1::2]], 1), none], 1)


def named(kind: type, outputs: tuple[Any, ...]) -> dict[str, Any]:
    """The outputs of a call with everything, by their places."""
    places = {"mentions": 3, "logits": 4} if kind is not S2E else {"mentions": 4, "logits": 3}
    return {"loss": outputs[0], "starts": outputs[1], "ends": outputs[2], "rest": outputs[5:]} | {
        name: outputs[place] for name, place in places.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_in_float64(kind: type) -> None:
    """Where a score has a meaning it is the same; elsewhere it is -10000, where the packages leave some more."""
    plain, fused = built(kind).double(), built(kind).double()
    state = plain.state_dict()
    given = arguments(kind)
    # The encoder's padded rows would be zeros: here the heads are compared.
    report = sk.accelerate(fused)
    sk.restore(fused.get_submodule(S2E.encoder_name if kind is S2E else "bert"))
    gold = clusters_of(*plain(**given, return_all_outputs=True)[:2])
    expected, found = (
        named(kind, model(**given, gold_clusters=gold, return_all_outputs=True)) for model in (plain, fused)
    )
    assert dict(report.span_layers[0].calls) == {"fused": 1}
    assert torch.equal(found["starts"], expected["starts"])
    assert torch.equal(found["ends"], expected["ends"])
    band = torch.ones(LENGTH, LENGTH).triu().tril(WIDTH - 1).bool()
    torch.testing.assert_close(found["mentions"][:, band], expected["mentions"][:, band])
    assert found["mentions"][:, ~band].unique().tolist() == [-10000]
    allowed = expected["logits"] > -9000
    torch.testing.assert_close(found["logits"][allowed], expected["logits"][allowed])
    assert found["logits"][~allowed].unique().tolist() == [-10000]
    assert allowed.sum() > 20
    torch.testing.assert_close(found["loss"], expected["loss"])
    if kind is LingMessModel:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found["rest"], expected["rest"], strict=True))
    # Without the scores of all spans only those kept take part in the backward.
    for model in (plain, fused):
        model(**given, gold_clusters=gold)[0].backward()
    for (name, mine), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]
    assert set(fused.state_dict()) == set(state)
    sk.restore(fused)
    assert "forward" not in vars(fused)


@pytest.mark.parametrize("kind", KINDS)
def test_alone_in_a_batch_with_its_encoder(kind: type) -> None:
    model, given = built(kind), arguments(kind, (LENGTH,))
    with torch.no_grad():
        expected = named(kind, (None, *model(**given, return_all_outputs=True)))
        report = sk.accelerate(model)
        found = named(kind, (None, *model(**given, return_all_outputs=True)))
    assert report.replaced
    for name in ("starts", "ends"):
        assert torch.equal(found[name], expected[name])
    assert torch.equal(found["logits"].argmax(-1), expected["logits"].argmax(-1))


def test_categories_of_pairs() -> None:
    """Of all spans, in two texts of their own lengths: every category is met, and words that stand nowhere."""
    plain, fused = built(LingMessModel), built(LingMessModel)
    sk.accelerate(fused)
    maps = [arguments(LingMessModel)["batch"][name] for name in ("tokens", "subtoken_map", "new_token_map")]
    starts, ends = ops.enumerate_spans(torch.tensor([0, LENGTH]), 3).pairs().T
    starts, ends = starts.expand(2, -1), ends.expand(2, -1)
    expected = plain._get_categories_labels(*maps, starts, ends)
    for mine, theirs in zip(fused._get_categories_labels(*maps, starts, ends), expected, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    assert set(expected[0].unique().tolist()) == {-1, 0, 1, 2, 3, 4, 5}


def test_mentions_that_are_given_take_the_packages_path() -> None:
    model, given = built(FCorefModel), arguments(FCorefModel)
    report = sk.accelerate(model)
    with pytest.warns(AccelerationWarning, match="the mentions to keep are given"):
        span_mask, *_ = model(**given, topk_1d_indices=torch.arange(8).expand(2, -1), return_all_outputs=True)
    assert span_mask.tolist() == [[1] * 8, [1] * 6 + [0] * 2]
    assert report.span_layers[0].last_path == "original: the mentions to keep are given (topk_1d_indices)"


def test_more_mentions_than_tokens_take_the_packages_path() -> None:
    model = built(S2E, top_lambda=1.5)
    sk.accelerate(model)
    with pytest.warns(AccelerationWarning, match="31 spans of 21 tokens are kept"):
        model(**arguments(S2E), return_all_outputs=True)


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_16_bits_and_under_autocast(kind: type) -> None:
    half = built(kind, dropout_prob=0.3).bfloat16().train()
    given = arguments(kind)
    sk.accelerate(half)
    starts, ends = half(**given, return_all_outputs=True)[:2]
    half(**given, gold_clusters=clusters_of(starts, ends))[0].backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in half.parameters())
    model = built(kind).train()
    sk.accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(**given, gold_clusters=clusters_of(starts, ends))[0].backward()
    assert model.mention_s2e_classifier.weight.grad.abs().sum() > 0


def test_a_text_too_short_for_a_mention() -> None:
    model = built(S2E, top_lambda=0.04)
    given = arguments(S2E)
    expected = model(**given, return_all_outputs=True)
    sk.accelerate(model)
    found = model(**given, return_all_outputs=True)
    assert [each.shape for each in found] == [each.shape for each in expected]
    assert found[0].shape == (2, 0)
