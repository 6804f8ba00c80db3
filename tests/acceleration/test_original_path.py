"""What the packed path cannot do runs as before, with one warning, and the report shows it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from agreement import PADDING, TINY, assert_agrees, assert_original, encoder, head, in_float64, inputs
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DynamicCache,
    ElectraForMultipleChoice,
    ElectraForSequenceClassification,
    PreTrainedModel,
    RemBertForTokenClassification,
    RobertaForSequenceClassification,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from spanbert_kernels import accelerate
from spanbert_kernels.acceleration import AccelerationWarning

MASK = PADDING["right"]


class Call(NamedTuple):
    """Arguments that only transformers can answer, on top of a batch, and the reason given."""

    reason: str
    batch: dict[str, Any]
    config: dict[str, Any] | None = None


ATTENTIONS = "attention matrices were asked for (output_attentions)"
SQUARE = (MASK[:, None, :] & MASK[:, :, None])[:, None]
CALLS = {
    "output_attentions": Call(ATTENTIONS, {"output_attentions": True}, {"attn_implementation": "eager"}),
    "output_attentions in the configuration": Call(
        ATTENTIONS, {}, {"attn_implementation": "eager", "output_attentions": True}
    ),
    "mask of pairs": Call("an attention mask that is not [batch, length]", {"attention_mask": SQUARE}),
    "mask of another length": Call(
        "an attention mask that is not [batch, length]", {"attention_mask": torch.ones(4, 13, dtype=torch.long)}
    ),
    "is_causal": Call("causal attention", {"is_causal": True}),
    "head_mask": Call(
        "the argument head_mask goes to transformers' attention functions", {"head_mask": torch.ones(2, 4)}
    ),
    "cluster_ids": Call("the argument cluster_ids", {"cluster_ids": torch.zeros(4, dtype=torch.long)}),
    "cross-attention": Call("belongs to a decoder", {"encoder_hidden_states": torch.zeros(4, 2, 32)}),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    call = CALLS[name]
    output = assert_original(encoder(**call.config or {}), call.reason, **{**inputs(MASK), **call.batch})
    if call.reason == ATTENTIONS:
        assert output[-1].shape == (4, 4, 11, 11)


def test_a_head_that_hands_down_none_has_asked_for_what_its_configuration_says() -> None:
    model = head(RemBertForTokenClassification, attn_implementation="eager", output_attentions=True)
    assert assert_original(model, ATTENTIONS, **inputs(MASK))[-1].shape == (4, 4, 11, 11)


def test_a_loss_that_looks_at_padding_is_said_once() -> None:
    model, batch = head(BertForQuestionAnswering, num_labels=2), inputs(MASK)
    report = accelerate(model)
    answers = {"start_positions": torch.zeros(4).long(), "end_positions": torch.zeros(4).long()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch)  # in evaluation, and in training without padding, nothing differs
        model.train()(**inputs(PADDING["none"]), **answers)
    with pytest.warns(AccelerationWarning, match="the loss of its head looks at padding"):
        model(**batch, **answers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch, **answers)
    assert not [path for path in report.calls if path.startswith("original")]


def test_arguments_that_are_none_or_false_mean_nothing() -> None:
    model = encoder()
    report = accelerate(model)
    nothing = {
        "head_mask": None,
        "past_key_values": None,
        "encoder_hidden_states": None,
        "output_attentions": False,
        "output_hidden_states": None,
        "use_cache": False,
        "is_causal": False,
        "num_items_in_batch": torch.tensor(3),
        "shift_labels": torch.zeros(4, 11),
        "anything": None,
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs(MASK), **nothing)
    assert report.calls == {"packed-inference": 1}


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.filterwarnings("ignore:.*past_key_values")
def test_a_cache_belongs_to_a_decoder(name: str) -> None:
    model = encoder()
    report = accelerate(model)
    with torch.no_grad(), pytest.warns(AccelerationWarning, match=f"{name} was given, which belongs to a decoder"):
        model(**inputs(MASK), **{name: DynamicCache()})
    assert report.last_path == f"original: {name} was given, which belongs to a decoder"


POOLED = [
    lambda: encoder(),
    lambda: encoder("roberta"),
    lambda: head(BertForSequenceClassification),
    lambda: head(RobertaForSequenceClassification),
    lambda: head(ElectraForSequenceClassification),
]


@pytest.mark.parametrize("build", POOLED)
@pytest.mark.parametrize("padding", ["left", "empty row"])
def test_a_token_that_is_read_is_padding(build: Callable[[], Any], padding: str) -> None:
    reason = "the token that the pooler or the head reads is padding in some row"
    assert_original(build(), reason, **inputs(PADDING[padding]))


@pytest.mark.parametrize(("summary", "packed"), [("first", True), ("last", False), ("mean", False)])
def test_heads_that_summarise(summary: str, packed: bool) -> None:
    """ELECTRA's multiple choice reads the first token, the last column, or the mean over padding too."""
    model = head(ElectraForMultipleChoice, summary_type=summary)
    batch = {name: value[None] for name, value in inputs(MASK).items()}
    if packed:
        report = accelerate(model)
        with torch.no_grad():
            model(**batch)
        assert report.last_path == "packed-inference"
    else:
        assert_original(model, "the head reads padding", **batch)


def test_one_call_on_the_original_path_does_not_change_the_next() -> None:
    model = encoder()
    report = accelerate(model)
    with torch.no_grad():
        first = model(**inputs(MASK)).last_hidden_state
        with pytest.warns(AccelerationWarning, match="is padding"):
            model(**inputs(PADDING["left"]))
        assert torch.equal(model(**inputs(MASK)).last_hidden_state, first)
    assert report.calls["packed-inference"] == 2
    assert report.calls.total() == 3


def test_every_reason_is_said_once() -> None:
    model = encoder()
    accelerate(model)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model(**inputs(PADDING["left"]))
            model(**inputs(MASK), head_mask=torch.ones(2, 4))
    messages = [str(each.message) for each in caught if each.category is AccelerationWarning]
    assert len(messages) == len(set(messages)) == 2


def test_an_attention_function_of_the_users_own() -> None:
    calls: list[int] = []

    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("mine", attention)
    model = encoder(attn_implementation="mine")
    assert_original(model, "the attention implementation 'mine' is not one of transformers' own", **inputs(MASK))
    assert len(calls) == 3 * 2


@pytest.mark.parametrize("real", [TINY["max_position_embeddings"] + 1, 3])
@pytest.mark.parametrize("model_class", [BertModel, BertForTokenClassification])
def test_sequences_that_are_too_long_raise_what_transformers_raises(
    model_class: type[PreTrainedModel], real: int
) -> None:
    """Also where the columns that are too many hold padding alone."""
    columns = torch.arange(TINY["max_position_embeddings"] + 1)
    model, batch = head(model_class), inputs((columns < real).expand(2, -1))
    with pytest.raises((RuntimeError, IndexError)) as expected:
        model(**batch)
    report = accelerate(model)
    with pytest.raises(type(expected.value)) as caught:
        model(**batch)
    assert str(caught.value) == str(expected.value)
    assert report.calls == {}


@pytest.mark.parametrize(
    "call",
    [
        lambda model, ids: model(),
        lambda model, ids: model(ids, inputs_embeds=torch.zeros(4, 11, 32)),
        lambda model, ids: model(ids, input_ids=ids),
        lambda model, ids: model(*[ids] * 20),
        lambda model, ids: model(ids[0]),
        lambda model, ids: model(ids[:0]),
        lambda model, ids: model(ids[:, :0]),
        lambda model, ids: model(ids.tolist()),
        lambda model, ids: model(ids + 100),
        lambda model, ids: model(ids, token_type_ids=torch.ones(3, 7, dtype=torch.long)),
    ],
)
def test_bad_calls_raise_what_transformers_raises(call: Callable[[Any, Tensor], Any]) -> None:
    model, ids = encoder(), inputs(MASK)["input_ids"]
    with pytest.raises(Exception) as expected:  # noqa: PT011  (whatever it is)
        call(model, ids)
    accelerate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(type(expected.value)) as caught:
            call(model, ids)
    assert str(caught.value) == str(expected.value)


def test_nothing_real_at_all() -> None:
    model = head(BertForTokenClassification)
    report = accelerate(model)
    batch = inputs(torch.zeros(2, 5, dtype=torch.bool))
    with torch.no_grad():
        logits = model(**batch).logits
    assert torch.equal(logits, model.classifier.bias.expand(2, 5, -1))
    model(**batch).logits.sum().backward()
    assert report.calls == {"packed-inference": 1, "packed-training (gradients are on)": 1}


def test_tensors_without_data() -> None:
    model = encoder()
    accelerate(model)
    model.to("meta")
    with pytest.warns(AccelerationWarning, match="meta device"):
        output = model(torch.zeros(2, 5, dtype=torch.long, device="meta"))
    assert output.last_hidden_state.shape == (2, 5, 32)


def test_function_transforms() -> None:
    """The kernels have a backward for autograd, and none for torch.func: transformers' path gives the gradient."""
    model, expected, batch = encoder(), encoder(), inputs(MASK)
    report = accelerate(model)

    def gradient(model: Any) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(model, parameters, (), batch).last_hidden_state[MASK].square().mean()

        return torch.func.grad(loss)({name: parameter.detach() for name, parameter in model.named_parameters()})

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = gradient(model)
    assert [each for each in caught if "torch.func" in str(each.message)]
    assert all(torch.equal(value, found[name]) for name, value in gradient(expected).items())
    assert report.calls.total() == 1
    # Without a transform the parameters given are used, and the packed path takes them.
    other = {name: 2 * parameter.detach() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        result, eager = (torch.func.functional_call(each, other, (), batch)[0] for each in (model, expected))
        doubles = {name: value.double() for name, value in other.items()}
        reference = torch.func.functional_call(in_float64(expected), doubles, (), batch)[0]
    assert report.last_path == "packed-inference"
    assert_agrees(result[MASK], eager[MASK], reference[MASK])


def test_forward_mode_derivatives() -> None:
    model = encoder(attn_implementation="eager")
    expected = copy.deepcopy(model)
    accelerate(model)
    embeds = model.embeddings.word_embeddings(inputs(MASK)["input_ids"]).detach()
    mask, tangents = inputs(MASK)["attention_mask"], []
    for each in (model, expected):
        with torch.autograd.forward_ad.dual_level(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dual = torch.autograd.forward_ad.make_dual(embeds, embeds.sin())
            output = each(inputs_embeds=dual, attention_mask=mask).last_hidden_state
            tangents.append(torch.autograd.forward_ad.unpack_dual(output).tangent)
    assert tangents[0].abs().max() > 0
    assert torch.equal(*tangents)


def test_a_decoder_in_the_configuration_only() -> None:
    model = BertModel(BertConfig(**TINY, is_decoder=True)).eval()
    with pytest.raises(ValueError, match="it is a decoder"):
        accelerate(model)
