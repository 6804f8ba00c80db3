import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
)

from spanbert_kernels.models import (
    SpanBERTConfig,
    SpanBERTForMaskedLM,
    SpanBERTForQuestionAnswering,
    SpanBERTForSequenceClassification,
    SpanBERTForTokenClassification,
)

MakeConfig = Callable[..., SpanBERTConfig]
OpenGates = Callable[[PreTrainedModel], PreTrainedModel]

TOKENS = {"labels": torch.arange(36).view(6, 6) % 2}
DOCUMENTS = {"labels": torch.tensor([0, 1, 2, 0, 1, 2])}
ANSWERS = {"start_positions": torch.tensor([0, 1, 2, 0, 0, 1]), "end_positions": torch.tensor([3, 2, 5, 0, 4, 1])}
HEADS = [
    (SpanBERTForTokenClassification, BertForTokenClassification, TOKENS, "logits"),
    (SpanBERTForSequenceClassification, BertForSequenceClassification, DOCUMENTS, "logits"),
    (SpanBERTForQuestionAnswering, BertForQuestionAnswering, ANSWERS, "end_logits"),
    (SpanBERTForMaskedLM, BertForMaskedLM, TOKENS, "logits"),
]
heads = pytest.mark.parametrize(("head", "bert_head", "targets", "logits"), HEADS, ids=[h[0].__name__ for h in HEADS])


def adapt(config: BertConfig, head: type[PreTrainedModel]) -> BertConfig:
    config.num_labels = 2 if "QuestionAnswering" in head.__name__ else 3
    return config


@heads
def test_equals_berts_head_until_a_gate_is_trained(
    make_config: MakeConfig,
    bert_config: BertConfig,
    batch: Any,
    cluster_ids: Tensor,
    head: Any,
    bert_head: Any,
    targets: Any,
    logits: str,
) -> None:
    bert = bert_head(adapt(bert_config, head)).eval()
    model = head(adapt(make_config(), head)).eval()
    missing, unexpected = model.load_state_dict(bert.state_dict(), strict=False)
    assert not unexpected
    assert all(".cross_document." in name for name in missing)
    expected = bert(**batch, **targets)
    output = model(**batch, **targets, cluster_ids=cluster_ids)
    assert torch.equal(output[logits], expected[logits])
    if head is SpanBERTForQuestionAnswering:  # BERT's loss is over padding too
        assert not torch.equal(output.loss, expected.loss)
        batch = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
        expected, output = bert(**batch, **targets), model(**batch, **targets, cluster_ids=cluster_ids)
    assert torch.equal(output.loss, expected.loss)


@heads
def test_trains_a_step_with_clusters(
    make_config: MakeConfig, batch: Any, cluster_ids: Tensor, head: Any, bert_head: Any, targets: Any, logits: str
) -> None:
    torch.manual_seed(0)
    options = {"cross_document_layers": [0, 1, 2], "cross_document_queries": "tokens", "cross_document_keys": "tokens"}
    model = head(adapt(make_config(**options), head)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gates = [layer.cross_document.gate for layer in model.bert.encoder.layer]
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch, **targets, cluster_ids=cluster_ids).loss.backward()
        optimizer.step()
    assert all(gate.item() != 0 for gate in gates)
    # the pooler of a model reads one token: every other parameter has been reached
    unreached = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert [name for name in unreached if not name.endswith("key.bias")] == []


@heads
def test_other_documents_reach_the_logits(
    make_config: MakeConfig,
    open_gates: OpenGates,
    batch: Any,
    cluster_ids: Tensor,
    head: Any,
    bert_head: Any,
    targets: Any,
    logits: str,
) -> None:
    model = open_gates(head(adapt(make_config(), head))).eval()
    together, alone = model(**batch, cluster_ids=cluster_ids)[logits], model(**batch)[logits]
    assert (together != alone).flatten(1).any(1).tolist() == [True, False, True, False, True, False]
    assert torch.equal(model(**batch, cluster_ids=cluster_ids, return_dict=False)[-1], together)


@heads
def test_signature_is_berts_and_cluster_ids(
    head: Any, bert_head: Any, targets: Any, logits: str
) -> None:  # the Trainer drops the columns that are not named
    names, expected = (list(inspect.signature(c.forward).parameters) for c in (head, bert_head))
    assert names == [*expected[:-1], "cluster_ids", "kwargs"]


@heads
def test_attention_implementation_can_be_set(
    make_config: MakeConfig, head: Any, bert_head: Any, targets: Any, logits: str
) -> None:
    model = head(make_config())
    model.set_attn_implementation("eager")
    assert model.bert.encoder.layer[0].attention.self.config._attn_implementation == "eager"


def test_masked_lm_ties_its_decoder_to_the_embeddings(make_config: MakeConfig) -> None:
    model = SpanBERTForMaskedLM(make_config())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
