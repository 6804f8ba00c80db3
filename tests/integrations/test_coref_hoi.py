"""coref-hoi's model without the vectors of its candidates: predictions, losses and gradients as it has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from acceleration.agreement import seeded
from originals.coref_hoi import CONFIG, CorefModel
from torch import Tensor
from transformers import BertConfig, BertModel

import spanbert_kernels as sk
from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.integrations import coref_hoi

SMALL = {**CONFIG, "max_span_width": 5, "feature_emb_size": 4, "ffnn_size": 12, "max_top_antecedents": 4}
# Whole configurations: what is left out, and what is asked for more.
SETTINGS: dict[str, dict[str, Any]] = {
    "everything": {},
    "two looks, hinge": {"coref_depth": 2, "loss_type": "hinge", "mention_loss_coef": 0.5, "use_metadata": False},
    "little": {
        "use_features": False, "use_width_prior": False, "use_distance_prior": False, "model_heads": False,
        "fine_grained": False,
    },
}  # fmt: skip


def built(**settings: Any) -> Any:
    encoder = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return seeded(lambda: CorefModel({**SMALL, **settings}, "cpu", BertModel(encoder, add_pooling_layer=False))).eval()


def document() -> list[Any]:
    """Two segments, the second shorter, of five sentences."""
    generator = torch.Generator().manual_seed(1)
    ids, mask = torch.randint(1, 60, (2, 14), generator=generator), torch.ones(2, 14, dtype=torch.long)
    mask[1, 11:] = 0
    speakers = torch.randint(0, 2, (2, 14), generator=generator)
    sentence_map = torch.tensor([0] * 4 + [1] * 7 + [2] * 1 + [5] * 9 + [6] * 4)
    return [ids, mask, speakers, None, torch.tensor(1), sentence_map, False]


def gold(outputs: Any) -> list[Tensor]:
    """Some of the mentions kept, in two clusters, and one that is not among the candidates."""
    starts, ends = outputs[3][[0, 2, 3, 6]], outputs[4][[0, 2, 3, 6]]
    return [torch.cat([starts, starts[:1]]), torch.cat([ends, starts[:1] + 20]), torch.tensor([1, 2, 1, 2, 2])]


@pytest.mark.parametrize("name", SETTINGS)
def test_predictions_losses_and_gradients_in_float64(name: str) -> None:
    plain, fused = built(**SETTINGS[name]).double(), built(**SETTINGS[name]).double()
    report = sk.accelerate(fused)
    state = list(plain.state_dict())
    given = document()
    expected, found = plain(*given), fused(*given)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    labels = gold(expected)
    for model in (plain, fused):
        outputs, loss = model(*given, *labels)
        (loss + outputs[2].sum()).backward()
    for (place, mine), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        if mine.grad is None or theirs.grad is None:
            assert (mine.grad is None) == (theirs.grad is None), place
            continue
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda text, place=place: f"{place}: {text}")  # type: ignore[misc]
    assert dict(report.span_layers[0].calls) == {"fused": 2}
    assert list(fused.state_dict()) == state


@pytest.mark.parametrize("loss_type", ["marginalized", "hinge"])
def test_losses_of_any_scores(loss_type: str) -> None:
    """Mentions that are wrongly new, wrongly linked and right."""
    model, generator = built(loss_type=loss_type, mention_loss_coef=0.3), torch.Generator().manual_seed(0)
    scores, own = torch.randn(300, 4, generator=generator), torch.randn(300, generator=generator)
    scores[:, 0] = 0
    index = torch.randint(0, 300, (300, 3), generator=generator)
    before = index < torch.arange(300)[:, None]
    clusters = torch.randint(0, 4, (300,), generator=generator)
    nothing = torch.zeros(0)
    found = coref_hoi.ScoredMentions(nothing, nothing, nothing, nothing, nothing, own)
    best = coref_hoi.Antecedents(index, nothing, nothing, before)
    mine = coref_hoi.loss_of(model, found, best, scores, clusters)
    torch.testing.assert_close(mine, model.loss(scores, own, clusters, index, before))


def test_fewer_mentions_than_asked_for_repeat_the_first() -> None:
    plain, fused = built(top_span_ratio=3.0), built(top_span_ratio=3.0)
    sk.accelerate(fused)
    expected, found = plain(*document()), fused(*document())
    assert len(found[3]) == 75 > len(set(zip(*(each.tolist() for each in found[3:5]), strict=True)))
    assert torch.equal(found[3], expected[3])
    assert torch.equal(found[4], expected[4])


def test_dropout_in_training() -> None:
    """The chances are the package's: the mean of a candidate's score over many draws is that of its own path."""
    plain, fused = (built(dropout_rate=0.5, use_width_prior=False).train() for _ in range(2))
    for model in (plain, fused):
        torch.nn.init.normal_(model.emb_span_width.weight, std=3.0)
        model.load_state_dict(plain.state_dict())
    sk.accelerate(fused)
    given = document()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = [torch.stack([model(*given)[2] for _ in range(50)]) for model in (plain, fused)]
    spread = draws[0].std(0) * (2 / 50) ** 0.5
    difference = (draws[1].mean(0) - draws[0].mean(0)).abs() / spread
    assert difference.max() < 5
    ratio = draws[1].std(0) / draws[0].std(0)
    assert 0.85 < ratio.mean() < 1.15
    _, loss = fused(*given, *gold(fused(*given)))
    loss.backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in fused.parameters())


def test_sentences_that_do_not_ascend_take_the_packages_path() -> None:
    model, given = built(), document()
    sk.accelerate(model)
    given[5] = given[5].flip(0)
    with pytest.warns(AccelerationWarning, match="sentences whose numbers do not ascend"):
        model(*given)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"ffnn_depth": 2}, "do not have one hidden layer"),
        ({"higher_order": "cluster_merging"}, "cluster_merging goes through mentions one by one"),
    ],
)
def test_what_stays_as_it_is(settings: dict[str, Any], reason: str) -> None:
    report = sk.accelerate(built(**settings))
    assert any(reason in str(each) for each in report.skipped)


def test_another_model_of_that_name() -> None:
    other = built()
    other.config = None
    assert any("its config is not that of coref-hoi" in str(each) for each in sk.accelerate(other).skipped)
