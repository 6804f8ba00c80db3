"""Every row of the table of families: accelerated equals transformers' own at real tokens, values and gradients."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from importlib import import_module
from typing import Any

import hypothesis
import pytest
import torch
from agreement import (
    BATCH,
    ENCODERS,
    NO_DROPOUT,
    PADDING,
    ROWS,
    assert_agrees,
    assert_equal,
    assert_same_training,
    drawn_again,
    encoder,
    exact,
    head,
    in_double_precision,
    in_float64,
    inputs_of,
    with_softmax_in_double_precision,
    without_pooler,
)
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DPRReader, PreTrainedModel

from spanbert_kernels import accelerate, ops

pytestmark = pytest.mark.filterwarnings("ignore::spanbert_kernels.acceleration.AccelerationWarning")
SMALL = {"num_hidden_layers": 3}


@pytest.mark.parametrize("name", ENCODERS)
def test_training_in_double_precision(name: str) -> None:
    model = in_double_precision(name, **SMALL)
    assert_same_training(copy.deepcopy(model), inputs_of(model, PADDING["right"]), PADDING["right"])
    mask = PADDING["left"] & (torch.arange(BATCH) != 2)[:, None]  # and a row of padding alone
    if can_do_without_pooler(name):
        assert_same_training(without_pooler(model), inputs_of(model, mask), mask)
    else:
        with torch.no_grad():
            exact(model, "original: the token that the pooler", **inputs_of(model, mask))


def can_do_without_pooler(name: str) -> bool:
    return name != "layoutlm"  # calls it without asking


@pytest.mark.parametrize("name", ENCODERS)
def test_dropout_acts_where_transformers_has_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one dropout at a time everything is dropped, which needs no random numbers."""
    attend, layout = ops.document_attention, ROWS[name].layout

    def attend_or_drop_all(q: Tensor, *given: Any, dropout_p: float, **named: Any) -> Tensor:
        return torch.zeros_like(q) if dropout_p == 1.0 else attend(q, *given, dropout_p=dropout_p, **named)

    monkeypatch.setattr(ops, "document_attention", attend_or_drop_all)
    model = in_double_precision(name, num_hidden_layers=1)
    mask = PADDING["right"][:2, :5]
    batch, layer = inputs_of(model, mask), ROWS[name].layers_of(model)[0]
    places = [(each, "p") for each in layer.modules() if isinstance(each, nn.Dropout)]
    if layout.attention_dropout_p is not None:
        places.append((layer.get_submodule(layout.attention), layout.attention_dropout_p))
    switched = layout.attention_dropout is not None and layer.get_submodule(layout.attention_dropout)
    for module, attribute in places:
        setattr(module, attribute, 1.0)
        # Some attentions hand down a probability while they train, others call a dropout that may train without them.
        modes = ((True, True), (False, True), (True, False)) if module is switched else ((True, True),)
        for model_trains, dropout_trains in modes:
            model.train(model_trains)
            for each in model.modules():
                if isinstance(each, nn.Dropout):
                    each.train(dropout_trains)
            with torch.no_grad():
                (result, _), (expected, _) = exact(copy.deepcopy(model), "packed", **batch)
            assert_equal(result.last_hidden_state[mask], expected.last_hidden_state[mask])
        setattr(module, attribute, 0.0)


@pytest.mark.parametrize("name", ENCODERS)
def test_inference_and_hidden_states(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, mask = encoder(name, **SMALL), PADDING["right"]
    batch = inputs_of(model, mask)
    asked = {**batch, "output_hidden_states": True}
    with torch.no_grad():
        eager, reference = model(**asked), in_float64(model)(**asked)
        again = drawn_again(lambda: model(**asked))
        for way in ("fused", "separate"):
            monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", way)
            ours = copy.deepcopy(model)
            report = accelerate(ours)
            result = ours(**asked)
            assert report.last_path == "packed-inference"
            assert type(result) is type(eager)
            assert list(result) == list(eager)
            assert len(result.hidden_states) == len(eager.hidden_states)
            draws = (result, eager, reference, *again)
            given = [each.last_hidden_state for each in draws]
            for states in (given, *zip(*(each.hidden_states for each in draws), strict=True)):
                assert_agrees(*(each[mask] for each in states))
            if result.get("pooler_output") is not None:
                assert_agrees(*(each.pooler_output for each in draws))
            assert_same_form(ours(**asked, return_dict=False), model(**asked, return_dict=False))
            # All layers in one call.
            assert_agrees(ours(**batch).last_hidden_state[mask], *(each[mask] for each in given[1:]))
            if ROWS[name].captures:
                chosen, own = (each(**batch, output_hidden_states=[0, -1]) for each in (ours, model))
                assert_same_form(chosen.hidden_states, own.hidden_states)
                first = [each.hidden_states[0][mask] for each in (chosen, own, reference)]
                assert_agrees(*first)
        if can_do_without_pooler(name):
            assert_same_form(*(without_pooler(each)(**asked, return_dict=False) for each in (ours, model)))


def assert_same_form(result: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert len(result) == len(expected)
        for ours, own in zip(result, expected, strict=True):
            assert_same_form(ours, own)
    else:
        assert type(result) is type(expected)


def assert_head_agrees(kind: type[PreTrainedModel], padding: str, path: str) -> None:
    """What a head returns, at real tokens where it returns something for each token."""
    name, mask = kind.__name__, PADDING[padding]
    labels = 2 if name.endswith("QuestionAnswering") else 3
    model = head(kind, **NO_DROPOUT, num_labels=labels, question_token_id=5, summary_type="first").double()
    batch = inputs_of(model, mask)
    if name.startswith("Splinter"):
        model = with_softmax_in_double_precision(model)
        batch["attention_mask"] = batch["attention_mask"].double()  # of integers its head makes NaN
        if name.endswith("PreTraining"):
            batch["input_ids"][:, mask.all(0)] = 5  # there must be a question in each row
    if name.endswith("MultipleChoice"):
        # Task types are not flattened as the others are.
        batch = {key: value[None] for key, value in batch.items() if key != "task_type_ids"}
    with torch.no_grad():
        (result, _), (expected, _) = exact(model, path, **batch)
    for key, own in expected.items():
        by_token = own.shape[:2] == mask.shape
        assert_equal(result[key][mask] if by_token else result[key], own[mask] if by_token else own)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.first_token_heads])
def test_heads_that_read_the_first_token(name: str) -> None:
    for each in ROWS[name].first_token_heads:
        kind = getattr(import_module(ROWS[name].module), each)
        assert_head_agrees(kind, "right", "packed")
        assert_head_agrees(kind, "left", "original: the token that the pooler or the head reads")


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_every_head(name: str) -> None:
    """A head that reads a token by its place, and is not in the table, would be found."""
    module = import_module(ROWS[name].module)
    for each in (each for each in module.__all__ if re.search("For[A-Z]", each) and "CausalLM" not in each):
        assert_head_agrees(getattr(module, each), "right", "packed")
        assert_head_agrees(getattr(module, each), "left", "")


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A family and sizes that it may have."""
    heads = draw(st.integers(1, 4))
    size = heads * draw(st.sampled_from([4, 6, 8]))
    groups = draw(st.integers(1, 2))
    name = draw(st.sampled_from(sorted(filter(can_do_without_pooler, ENCODERS))))
    return name, {
        "num_attention_heads": heads,
        "hidden_size": size,
        "intermediate_size": draw(st.integers(3, 20)),
        "num_hidden_layers": groups * draw(st.integers(1, 2)),
        "embedding_size": draw(st.sampled_from([size, 10])),
        "input_embedding_size": draw(st.sampled_from([size, 10])),
        "num_hidden_groups": groups,
        "inner_group_num": draw(st.integers(1, 2)),
        "hidden_act": draw(st.sampled_from(["gelu", "gelu_new", "relu", "silu"])),
        "chunk_size_feed_forward": draw(st.integers(0, 1)),
        "type_vocab_size": draw(st.integers(2, 3)),
        "use_task_id": draw(st.booleans()),
        "local_attention": draw(st.integers(0, 3)) * 2,
        "global_attn_every_n_layers": draw(st.integers(1, 3)),
        **(draw(disentangled()) if name.startswith("deberta") else {}),
    }


@st.composite
def disentangled(draw: st.DrawFn) -> dict[str, Any]:
    """What DeBERTa's configurations have beside."""
    return {
        "relative_attention": draw(st.booleans()),
        "pos_att_type": draw(st.sampled_from([["c2p"], ["p2c"], ["p2c", "c2p"], [], ["c2p", "p2p"]])),
        "share_att_key": draw(st.booleans()),
        "position_buckets": draw(st.sampled_from([-1, 4])),
        "max_relative_positions": draw(st.sampled_from([-1, 4, 6])),
        "norm_rel_ebd": draw(st.sampled_from(["none", "layer_norm"])),
        "position_biased_input": draw(st.booleans()),
        "conv_kernel_size": draw(st.sampled_from([0, 1, 5])),
        "type_vocab_size": draw(st.sampled_from([0, 2])),
    }


def check_a_configuration(drawn: tuple[str, dict[str, Any]], rows: list[list[bool]]) -> None:
    name, options = drawn
    model, mask = in_double_precision(name, **options), torch.tensor(rows)
    assert_same_training(without_pooler(model), inputs_of(model, mask), mask)


# Runs of real tokens anywhere in a row, some rows empty.
MASKS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda ends: [min(ends) <= c < max(ends) for c in range(5)]),
    min_size=1,
    max_size=4,
).filter(lambda rows: any(map(any, rows)))


@hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
@hypothesis.given(configurations(), MASKS)
def test_drawn_configurations(drawn: tuple[str, dict[str, Any]], rows: list[list[bool]]) -> None:
    check_a_configuration(drawn, rows)


@pytest.mark.slow
@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(configurations(), MASKS)
def test_many_drawn_configurations(drawn: tuple[str, dict[str, Any]], rows: list[list[bool]]) -> None:
    check_a_configuration(drawn, rows)


@pytest.mark.parametrize(("padding", "path"), [("right", "packed-inference"), ("left", "original: the token that")])
def test_an_encoder_inside_a_wrapper(padding: str, path: str) -> None:
    """DPR's encoders hold BERT without a pooler, and read its first token."""
    model, mask = head(DPRReader), PADDING[padding]
    batch = {name: value for name, value in inputs_of(model, mask).items() if name != "token_type_ids"}
    with torch.no_grad():
        expected, reference = model(**batch), in_float64(model)(**batch)
        report = accelerate(model)
        result = model(**batch)
    assert str(report.replaced[0]) == "BertModel at 'span_predictor.encoder.bert_model', 2 layers"
    assert report.last_path is not None
    assert report.last_path.startswith(path)
    assert_agrees(*(each.relevance_logits for each in (result, expected, reference)))
    assert_agrees(*(each.start_logits[mask] for each in (result, expected, reference)))


def test_holes_where_distances_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing would bring tokens together that stand apart."""
    model = encoder()
    model.pooler = None
    report = accelerate(model)
    monkeypatch.setattr(model.forward, "family", replace(ROWS["bert"], distances=True))
    reason = "padding between real tokens, which counts in the distances that attention looks at"
    for padding, path in (
        ("right", "packed-inference"),
        ("left", "packed-inference"),
        ("middle", f"original: {reason}"),
    ):
        with torch.no_grad():
            model(**inputs_of(model, PADDING[padding]))
        assert report.last_path == path


def test_layers_that_are_shared_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for way in ("fused", "separate"):
        monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", way)
        for count in (2, 6):
            model = encoder("albert", num_hidden_layers=count)
            accelerate(model)
            with torch.no_grad():
                model(**inputs_of(model, PADDING["right"]))
            sizes[way, count] = model.forward._packed_layers.layers.num_bytes
    assert sizes["fused", 2] == sizes["fused", 6]
    assert sizes["separate", 2] == sizes["separate", 6]


def test_a_changed_number_of_layers_is_followed() -> None:
    model, mask = encoder("albert", num_hidden_layers=4), PADDING["right"]
    accelerate(model)
    with torch.no_grad():
        model(**inputs_of(model, mask))
        model.config.num_hidden_layers = 2
        result = model(**inputs_of(model, mask)).last_hidden_state
        expected = encoder("albert", num_hidden_layers=2)
        reference = in_float64(expected)
        eager, exact_states = (each(**inputs_of(each, mask)).last_hidden_state for each in (expected, reference))
    assert_agrees(result[mask], eager[mask], exact_states[mask])


def test_hidden_states_by_one_index() -> None:
    model, mask = encoder(), PADDING["right"]
    own = copy.deepcopy(model)
    accelerate(model)
    for asked in (0, 1, -1, -2, [1, 7], []):
        with torch.no_grad():
            result, expected = (each(**inputs_of(own, mask), output_hidden_states=asked) for each in (model, own))
        assert_same_form(result.get("hidden_states"), expected.get("hidden_states"))


@pytest.mark.parametrize("name", ["bert", "rembert"])
@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_an_output_of_which_a_call_says_none(name: str, option: str) -> None:
    """Older forwards then follow the configuration, and heads hand None down; others give none."""
    model = encoder(name, attn_implementation="eager", **{option: True})
    own = copy.deepcopy(model)
    report = accelerate(model)
    batch = inputs_of(model, PADDING["right"])
    for given in ({}, {option: None}):
        with torch.no_grad():
            result, expected = (each(**batch, **given) for each in (model, own))
        assert list(result) == list(expected)
    original = sum(count for path, count in report.calls.items() if path.startswith("original"))
    assert original == {"bert": 1, "rembert": 2}[name] * (option == "output_attentions")
