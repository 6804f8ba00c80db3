from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from spanbert_kernels.models import SpanBERTConfig, SpanBERTModel
from spanbert_kernels.nn import Packing

MakeConfig = Callable[..., SpanBERTConfig]
OpenGates = Callable[[SpanBERTModel], SpanBERTModel]
MODES = [("anchors", "anchors"), ("anchors", "tokens"), ("tokens", "anchors"), ("tokens", "tokens")]


def packing_of(batch: dict[str, Tensor]) -> Packing:
    mask = batch["attention_mask"]
    return Packing.from_mask(mask, *mask.shape, mask.device)


@pytest.mark.parametrize("queries", ["anchors", "tokens"])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_bert_until_a_gate_is_trained(
    make_config: MakeConfig, bert_config: BertConfig, batch: Any, cluster_ids: Tensor, queries: str, masked: bool
) -> None:
    bert = BertModel(bert_config).eval()
    model = SpanBERTModel(make_config(cross_document_queries=queries)).eval()
    missing, unexpected = model.load_state_dict(bert.state_dict(), strict=False)
    assert not unexpected
    assert all(".cross_document." in name for name in missing)
    if not masked:
        del batch["attention_mask"]
    expected = bert(**batch)
    for ids in (None, cluster_ids):
        output = model(**batch, cluster_ids=ids)
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(output.pooler_output, expected.pooler_output)


def test_has_berts_parameter_names(make_config: MakeConfig, bert_config: BertConfig) -> None:
    bert, model = BertModel(bert_config), SpanBERTModel(make_config(cross_document_layers=[]))
    assert {n: p.shape for n, p in model.state_dict().items()} == {n: p.shape for n, p in bert.state_dict().items()}


@pytest.mark.parametrize(("queries", "keys"), MODES)
@pytest.mark.parametrize("anchor", ["last", "first"])
def test_packed_path_gives_what_the_padded_path_gives(
    make_config: MakeConfig,
    open_gates: OpenGates,
    batch: Any,
    cluster_ids: Tensor,
    queries: str,
    keys: str,
    anchor: str,
) -> None:
    config = make_config(cross_document_queries=queries, cross_document_keys=keys, cross_document_anchor=anchor)
    model = open_gates(SpanBERTModel(config)).eval().double()
    packing = packing_of(batch)
    context = model.cross_document_context(cluster_ids, packing)
    inputs = {}
    model.encoder.layer[1].cross_document.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.update(hidden=args[0]), with_kwargs=True
    )
    states = model(**batch, cluster_ids=cluster_ids, output_hidden_states=True).hidden_states
    before = inputs["hidden"].view_as(states[2])
    mixed = model.mix_documents(1, packing.pack(before), packing, context)
    torch.testing.assert_close(mixed, packing.pack(states[2]))
    padding = ~batch["attention_mask"].bool()
    assert torch.equal(states[2][padding], before[padding])
    assert not torch.equal(states[2], before)


def test_mix_documents_returns_its_input_where_there_is_nothing_to_mix(
    make_config: MakeConfig, batch: Any, cluster_ids: Tensor
) -> None:
    model, packing = SpanBERTModel(make_config()), packing_of(batch)
    hidden = torch.randn(packing.num_tokens, 16)
    assert model.mix_documents(0, hidden, packing, None) is hidden
    assert model.mix_documents(2, hidden, packing, model.cross_document_context(cluster_ids, packing)) is hidden
    with pytest.raises(ValueError, match=f"{packing.num_tokens} rows.*got 36"):
        model.mix_documents(0, torch.randn(36, 16), packing, model.cross_document_context(cluster_ids, packing))


@pytest.mark.parametrize(("queries", "keys"), MODES)
def test_no_cluster_and_clusters_of_one_change_nothing(
    make_config: MakeConfig, open_gates: OpenGates, batch: Any, queries: str, keys: str
) -> None:
    config = make_config(cross_document_queries=queries, cross_document_keys=keys)
    model = open_gates(SpanBERTModel(config)).eval()
    alone = model(**batch).last_hidden_state
    assert torch.equal(model(**batch, cluster_ids=torch.tensor([5, 3, 1, -1, 2, 4])).last_hidden_state, alone)
    plain = SpanBERTModel(make_config(cross_document_layers=[])).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(plain(**batch).last_hidden_state, alone)


@pytest.mark.parametrize(("queries", "keys"), MODES)
def test_only_documents_with_company_change(
    make_config: MakeConfig, open_gates: OpenGates, batch: Any, cluster_ids: Tensor, queries: str, keys: str
) -> None:
    config = make_config(cross_document_queries=queries, cross_document_keys=keys)
    model = open_gates(SpanBERTModel(config)).eval()
    alone = model(**batch).last_hidden_state
    together = model(**batch, cluster_ids=cluster_ids).last_hidden_state
    assert (together != alone).flatten(1).any(1).tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize(("queries", "keys"), MODES)
def test_order_of_documents_and_values_of_ids_do_not_matter(
    make_config: MakeConfig, open_gates: OpenGates, batch: Any, cluster_ids: Tensor, queries: str, keys: str
) -> None:
    config = make_config(cross_document_queries=queries, cross_document_keys=keys, pooler_token="anchor")
    model = open_gates(SpanBERTModel(config)).eval().double()
    expected = model(**batch, cluster_ids=cluster_ids)
    order = torch.tensor([4, 1, 0, 5, 3, 2])
    permuted = {name: value[order] for name, value in batch.items()}
    for ids in (cluster_ids[order], -1000 * cluster_ids[order].to(torch.int32)):
        output = model(**permuted, cluster_ids=ids)
        torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state[order])
        torch.testing.assert_close(output.pooler_output, expected.pooler_output[order])


def test_a_clusters_result_does_not_depend_on_the_rest_of_the_batch(
    make_config: MakeConfig, open_gates: OpenGates, batch: Any, cluster_ids: Tensor
) -> None:
    model = open_gates(SpanBERTModel(make_config())).eval().double()
    cluster = cluster_ids == 7
    output = model(**batch, cluster_ids=cluster_ids).last_hidden_state[cluster]
    by_itself = {name: value[cluster] for name, value in batch.items()}
    torch.testing.assert_close(output, model(**by_itself, cluster_ids=cluster_ids[cluster]).last_hidden_state)


@pytest.mark.parametrize("anchor", ["last", "first"])
def test_pooler_reads_the_anchor(make_config: MakeConfig, batch: Any, anchor: str) -> None:
    config = make_config(pooler_token="anchor", cross_document_anchor=anchor)
    model = SpanBERTModel(config).eval()
    columns = {"last": [5, 2, 5, 0, 4, 1], "first": [0, 0, 2, 0, 0, 0]}[anchor]
    assert model.pooled_positions(packing_of(batch)).tolist() == [6 * row + c for row, c in enumerate(columns)]
    output = model(**batch)
    read = output.last_hidden_state[torch.arange(6), columns]
    torch.testing.assert_close(output.pooler_output, torch.tanh(model.pooler.dense(read)))


def test_pooler_reads_the_first_column_by_default(make_config: MakeConfig, batch: Any) -> None:
    model = SpanBERTModel(make_config()).eval()
    assert model.pooled_positions(packing_of(batch)).tolist() == [0, 6, 12, 18, 24, 30]
    output = model(**batch)
    assert torch.equal(model.pool(output.last_hidden_state, packing_of(batch)), output.pooler_output)


def test_nothing_real_at_all(make_config: MakeConfig, open_gates: OpenGates, batch: Any) -> None:
    model = open_gates(SpanBERTModel(make_config(pooler_token="anchor"))).eval()
    batch["attention_mask"].zero_()
    alone = model(**batch)
    together = model(**batch, cluster_ids=torch.zeros(6, dtype=torch.int64))
    assert torch.equal(together.last_hidden_state, alone.last_hidden_state)
    assert torch.equal(together.pooler_output, alone.pooler_output)


def test_hidden_states_are_those_after_mixing(
    make_config: MakeConfig, open_gates: OpenGates, batch: Any, cluster_ids: Tensor
) -> None:
    config = make_config(cross_document_layers=[2], pooler_token="anchor")
    model = open_gates(SpanBERTModel(config)).eval()
    alone = model(**batch, output_hidden_states=True)
    together = model(**batch, cluster_ids=cluster_ids, output_hidden_states=True)
    assert len(together.hidden_states) == 4
    assert all(torch.equal(a, b) for a, b in zip(together.hidden_states[:3], alone.hidden_states[:3], strict=True))
    assert torch.equal(together.hidden_states[3], together.last_hidden_state)
    assert not torch.equal(together.last_hidden_state, alone.last_hidden_state)


@pytest.mark.parametrize("pooler_token", ["first", "anchor"])
def test_tuples_and_embeddings_as_input(
    make_config: MakeConfig, open_gates: OpenGates, batch: Any, cluster_ids: Tensor, pooler_token: str
) -> None:
    model = open_gates(SpanBERTModel(make_config(pooler_token=pooler_token))).eval()
    expected = model(**batch, cluster_ids=cluster_ids)
    output = model(**batch, cluster_ids=cluster_ids, return_dict=False)
    assert isinstance(output, tuple)
    assert torch.equal(output[0], expected.last_hidden_state)
    assert torch.equal(output[1], expected.pooler_output)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    output = model(inputs_embeds=embeds, **batch, cluster_ids=cluster_ids)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    make_config: MakeConfig, open_gates: OpenGates, batch: Any, cluster_ids: Tensor, use_reentrant: bool
) -> None:
    model = open_gates(SpanBERTModel(make_config(pooler_token="anchor"))).train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(0)  # the dropout of a layer and of its mixer are drawn again in the backward
        model(**batch, cluster_ids=cluster_ids).pooler_output.square().sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    expected = gradients()
    calls: list[bool] = []
    model.encoder.layer[0].cross_document.register_forward_pre_hook(lambda *_: calls.append(True))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for gradient, reference in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(gradient, reference)
    assert len(calls) == 2


def test_attention_implementation_can_be_set(
    make_config: MakeConfig, open_gates: OpenGates, batch: Any, cluster_ids: Tensor
) -> None:
    model = open_gates(SpanBERTModel(make_config())).eval()
    expected = model(**batch, cluster_ids=cluster_ids)
    model.set_attn_implementation("eager")
    assert model.encoder.layer[0].attention.self.config._attn_implementation == "eager"
    output = model(**batch, cluster_ids=cluster_ids, output_attentions=True)
    assert [a.shape for a in output.attentions] == [(6, 4, 6, 6)] * 3
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(output.last_hidden_state[real], expected.last_hidden_state[real])


def test_clusters_without_a_layer_to_use_them_are_accepted(make_config: MakeConfig, batch: Any) -> None:
    model = SpanBERTModel(make_config(cross_document_layers=[])).eval()
    output = model(**batch, cluster_ids=torch.zeros(6, dtype=torch.int64))
    assert torch.equal(output.last_hidden_state, model(**batch).last_hidden_state)


@pytest.mark.parametrize("layers", [[0], []])
@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, 0, 1, 1, 2, 2], TypeError, "integer tensor.*got list"),
        (torch.zeros(6), TypeError, "integers, got torch.float32"),
        (torch.zeros(6, dtype=torch.bool), TypeError, "integers, got torch.bool"),
        (torch.zeros(5, dtype=torch.int64), ValueError, r"\[6\].*got \[5\]"),
        (torch.zeros(6, 1, dtype=torch.int64), ValueError, r"\[6\].*got \[6, 1\]"),
        (torch.zeros(6, dtype=torch.int64, device="meta"), TypeError, "on meta.*on cpu"),
    ],
)
def test_bad_cluster_ids_are_named(
    make_config: MakeConfig, batch: Any, layers: list[int], ids: Any, error: type[Exception], message: str
) -> None:
    model = SpanBERTModel(make_config(cross_document_layers=layers))
    with pytest.raises(error, match=message):
        model(**batch, cluster_ids=ids)


def test_a_mask_that_does_not_tell_documents_from_padding_is_named(make_config: MakeConfig, batch: Any) -> None:
    model = SpanBERTModel(make_config())
    batch["attention_mask"] = torch.ones(6, 1, 6, 6, dtype=torch.bool)
    model(**batch)
    with pytest.raises(ValueError, match=r"\[6, 6\], got \[6, 1, 6, 6\]"):
        model(**batch, cluster_ids=torch.zeros(6, dtype=torch.int64))
