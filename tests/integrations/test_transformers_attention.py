"""transformers' own encoders with attn_implementation="spanbert_kernels" give what they give with "eager"."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from acceleration.agreement import (
    LENGTH,
    NO_DROPOUT,
    PADDING,
    TINY,
    assert_agrees,
    assert_all_agree,
    encoder,
    gradients,
    in_float64,
    inputs,
    seeded,
)
from torch import Tensor
from transformers import AutoModel, BertForTokenClassification
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from spanbert_kernels import accelerate, ops, register_attention
from spanbert_kernels.integrations import transformers_attention
from spanbert_kernels.models import SpanBERTConfig, SpanBERTModel
from spanbert_kernels.nn import Packing

FAMILIES = ("bert", "roberta", "electra")
MASK = PADDING["right"]


def two_ways(model: Any) -> tuple[Any, Any]:
    """The same weights with our attention and with transformers' eager one."""
    ours, eager = copy.deepcopy(model), copy.deepcopy(model)
    ours.set_attn_implementation("spanbert_kernels")
    eager.set_attn_implementation("eager")
    return ours, eager


def states(model: Any, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**batch).last_hidden_state


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_eager_at_real_tokens(family: str, dtype: torch.dtype, padding: str) -> None:
    mask = PADDING[padding]
    ours, eager = two_ways(encoder(family).to(dtype))
    batch = inputs(mask)
    reference = states(in_float64(eager), batch)
    with ops.backends.record() as calls:
        result = states(ours, batch)
    assert [operation for operation, _ in calls] == ["document_attention"] * 2
    assert_agrees(result[mask], states(eager, batch)[mask], reference[mask])
    assert result.isfinite().all()


@pytest.mark.parametrize("padding", PADDING)
def test_without_kernels_it_is_pytorchs_own(padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours would be the eager one, slower than what transformers has; asked for, it comes."""
    monkeypatch.delenv("SPANBERT_KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(ops.backends, "_forced", None)
    monkeypatch.setitem(ops.backends._LOADERS, "cpu", lambda: "not built")
    mask = PADDING[padding]
    ours, eager = two_ways(encoder())
    batch = inputs(mask)
    reference = states(in_float64(eager), batch)
    with ops.backends.record() as calls:
        result = states(ours, batch)
        assert calls == []
        with ops.backends.use("eager"):
            states(ours, batch)
    assert calls == [("document_attention", "eager")] * 2
    assert_agrees(result[mask], states(eager, batch)[mask], reference[mask])
    assert result.isfinite().all()
    parts = torch.randn(3, len(mask), 4, LENGTH, 8)
    layer = ours.encoder.layer[0].attention.self
    attended, _ = transformers_attention.packed_attention(
        layer, *parts, transformers_attention.PaddingMask(mask, *mask.shape)
    )
    assert (attended[~mask] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_eagers(family: str) -> None:
    ours, eager = two_ways(encoder(family, **NO_DROPOUT).train())
    batch = inputs(MASK)

    def of(model: Any) -> dict[str, Tensor]:
        hidden = model(**batch).last_hidden_state[MASK]
        return gradients(model, (hidden * torch.linspace(-1, 1, hidden.shape[1])).square().sum())

    reference = of(in_float64(eager))
    results = {name: gradient for name, gradient in of(ours).items() if name in reference}
    assert results.keys() == reference.keys()
    used = {name for name, gradient in reference.items() if gradient.abs().max() > 0}
    assert_all_agree(*({n: way[n] for n in used} for way in (results, of(eager), reference)))


# Models whose attention layers do not say that they are not causal; LayoutLM makes its mask itself.
SAY_NOTHING = {
    "splinter": ("SplinterConfig", "SplinterModel"),
    "layoutlm": ("LayoutLMConfig", "LayoutLMModel"),
    "align": ("AlignTextConfig", "AlignTextModel"),
    "clap": ("ClapTextConfig", "ClapTextModel"),
}


@pytest.mark.parametrize("names", SAY_NOTHING.values(), ids=SAY_NOTHING)
def test_layers_that_do_not_say_that_they_are_not_causal(names: tuple[str, str]) -> None:
    config_class, model_class = (getattr(transformers, name) for name in names)
    ours, eager = two_ways(seeded(lambda: model_class(config_class(**TINY))).eval())
    for mask in (MASK, PADDING["none"]):
        batch = inputs(mask)
        if mask is not MASK:
            del batch["attention_mask"]
        with ops.backends.record() as calls:
            result = states(ours, batch)
        assert [operation for operation, _ in calls] == ["document_attention"] * 2
        assert_agrees(result[mask], states(eager, batch)[mask], states(in_float64(eager), batch)[mask])


def layer_of(model: Any) -> Any:
    return model.encoder.layer[0].attention.self


def test_what_the_layer_returns_is_zero_at_padding_and_has_no_matrices() -> None:
    layer = layer_of(two_ways(encoder())[0])
    output, weights = layer(torch.randn(*MASK.shape, TINY["hidden_size"]), attention_mask=MASK)
    assert weights is None
    assert (output[~MASK] == 0).all()
    assert (output[MASK] != 0).all()


def test_dropout_is_drawn_in_training_alone_and_keeps_the_mean() -> None:
    model, _ = two_ways(encoder(**{**NO_DROPOUT, "attention_probs_dropout_prob": 0.3}))
    layer, hidden = layer_of(model), torch.randn(*MASK.shape, TINY["hidden_size"])
    with torch.no_grad():
        exact = layer(hidden, attention_mask=MASK)[0]
        assert torch.equal(layer(hidden, attention_mask=MASK)[0], exact)
        layer.train()
        torch.manual_seed(0)
        drawn = torch.stack([layer(hidden, attention_mask=MASK)[0] for _ in range(1500)])
        torch.manual_seed(0)
        assert torch.equal(layer(hidden, attention_mask=MASK)[0], drawn[0])
    assert not torch.equal(drawn[0], drawn[1])
    # Row 3 has one token, whose only weight is 1: v / 0.7, or 0. All heads: 1500 * 4 draws.
    kept = (drawn[:, 3, 0].view(-1, 4, 8) != 0).all(-1).double().mean()
    assert abs(kept - 0.7) < 5 * (0.3 * 0.7 / 6000) ** 0.5
    error = (drawn.mean(0) - exact) / (drawn.std(0) / 1500**0.5).clamp(min=1e-9)
    assert error[MASK].abs().max() < 6


def test_save_and_load(tmp_path: Path) -> None:
    model, eager = two_ways(encoder())
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation="spanbert_kernels").eval()
    batch = inputs(MASK)
    with ops.backends.record() as calls:
        assert torch.equal(states(loaded, batch), states(model, batch))
    assert len(calls) == 4
    # The name is not written down: the folder loads where this package is not.
    assert "spanbert_kernels" not in (tmp_path / "config.json").read_text()
    torch.testing.assert_close(
        states(AutoModel.from_pretrained(tmp_path).eval(), batch)[MASK], states(eager, batch)[MASK]
    )


def test_there_and_back() -> None:
    model, batch = encoder(), inputs(MASK)
    model.set_attn_implementation("eager")
    before = states(model, batch)
    for name, count in (("spanbert_kernels", 2), ("eager", 0), ("spanbert_kernels", 2), ("sdpa", 0)):
        model.set_attn_implementation(name)
        with ops.backends.record() as calls:
            torch.testing.assert_close(states(model, batch)[MASK], before[MASK])
        assert len(calls) == count


def test_a_head_of_transformers_trains_with_checkpointing_and_autocast() -> None:
    torch.manual_seed(0)
    config = BertForTokenClassification.config_class(**TINY, **NO_DROPOUT)
    ours, eager = two_ways(BertForTokenClassification(config).train())
    batch = {**inputs(MASK), "labels": torch.where(MASK, torch.arange(LENGTH) % 3, -100)}
    expected = gradients(eager, eager(**batch).loss)
    ours.gradient_checkpointing_enable()
    found = gradients(ours, ours(**batch).loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(**batch).loss
    torch.testing.assert_close(loss, eager(**batch).loss, rtol=2e-2, atol=0)


def test_the_mask_is_read_once_a_pass_and_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, eager = two_ways(encoder())
    read: list[Any] = []
    from_mask = Packing.from_mask
    monkeypatch.setattr(Packing, "from_mask", lambda mask, *rest: read.append(mask) or from_mask(mask, *rest))
    batch = inputs(MASK)
    batch["attention_mask"] = batch["attention_mask"].bool()  # transformers hands a mask of this dtype down as it is
    states(model, batch)
    assert len(read) == 1
    batch["attention_mask"][:, 2:] = False  # the same tensor, changed in place
    real = batch["attention_mask"]
    torch.testing.assert_close(states(model, batch)[real], states(eager, batch)[real])
    assert len(read) == 2


def test_inference_mode_leaves_nothing_behind() -> None:
    model, batch = two_ways(encoder(**NO_DROPOUT))[0], inputs(MASK)
    with torch.inference_mode():
        expected = model(**batch).last_hidden_state.clone()
    result = model(**batch).last_hidden_state
    result.sum().backward()
    assert torch.equal(result, expected)


def test_an_accelerated_model_stays_accelerated() -> None:
    model, eager = two_ways(encoder())
    report = accelerate(model)
    batch = inputs(MASK)
    torch.testing.assert_close(states(model, batch)[MASK], states(eager, batch)[MASK])
    assert report.last_path == "packed-inference"


def test_the_reference_model_takes_it() -> None:
    torch.manual_seed(0)
    options = {**TINY, "cross_document_layers": [0], "pooler_token": "anchor"}
    model = SpanBERTModel(SpanBERTConfig(**options)).eval()
    torch.nn.init.ones_(model.encoder.layer[0].cross_document.gate)
    ours, eager = two_ways(model)
    batch = {**inputs(MASK), "cluster_ids": torch.tensor([0, 1, 0, 0])}
    torch.testing.assert_close(states(ours, batch)[MASK], states(eager, batch)[MASK])


def test_registering_twice_changes_nothing_and_takes_no_name_from_others() -> None:
    before = AttentionInterface()["spanbert_kernels"]
    register_attention()
    assert AttentionInterface()["spanbert_kernels"] is before is transformers_attention.packed_attention
    for name in ("sdpa", "eager", "flash_attention_2"):
        with pytest.raises(ValueError, match=f"'{name}' is the name of another attention implementation"):
            register_attention(name)
    register_attention("spanbert_kernels_again")
    model = encoder(attn_implementation="spanbert_kernels_again")
    assert torch.equal(states(model, inputs(MASK)), states(two_ways(model)[0], inputs(MASK)))
    for interface in (AttentionInterface, AttentionMaskInterface):  # trap 1: never one without the other
        assert "spanbert_kernels_again" in interface()
        interface._global_mapping.pop("spanbert_kernels_again")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph(backend: str) -> None:
    ours, eager = two_ways(encoder(**NO_DROPOUT))
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("right", "middle", "empty row"):
            real, batch = PADDING[name], inputs(PADDING[name])
            found = compiled(**batch).last_hidden_state
            torch.testing.assert_close(found[real], states(eager, batch)[real], rtol=1e-4, atol=1e-5)
        expected = gradients(eager, eager(**batch).last_hidden_state[real].square().sum())
        found_gradients = gradients(ours, found[real].square().sum())
    for name, gradient in expected.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-3)


def test_a_graph_reads_the_mask_without_sizes_that_depend_on_it() -> None:
    """What the compiled model does, with "eager" as the compiler: no kernel of it, only the same steps."""
    ours, eager = two_ways(encoder())
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for mask in (MASK, PADDING["middle"]):
        with torch.no_grad():
            found = compiled(**inputs(mask)).last_hidden_state
        torch.testing.assert_close(found[mask], states(eager, inputs(mask))[mask])
