"""Models still take the former names of their arguments."""

from __future__ import annotations

import pytest
import torch
from transformers import BertPreTrainedModel

from spanbert_kernels.models import SpanBERTConfig, coreference, parsing, relations, spans
from spanbert_kernels.models.renamed import renamed_argument

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    "model",
    [
        coreference.SpanBERTForCoreference,
        parsing.SpanBERTForDependencyParsing,
        relations.SpanBERTForRelations,
        spans.SpanBERTForSpanClassification,
    ],
)
def test_word_starts_were_called_columns(model: type[BertPreTrainedModel]) -> None:
    config = SpanBERTConfig(vocab_size=30, max_span_width=3, **SHAPE)
    others = {}
    if model is relations.SpanBERTForRelations:
        ones = torch.tensor([0, 1])
        others = {"mentions": torch.tensor([[0, 0, 0], [0, 1, 1]]), "entities": ones, "clusters": torch.zeros(2).long()}
    built, ids, starts = model(config).eval(), torch.randint(30, (1, 5)), torch.tensor([[1, 2]])
    wanted = built(ids, word_starts=starts, **others)
    with pytest.warns(FutureWarning, match="the argument columns is called word_starts"):
        found = built(ids, columns=starts, **others)
    tensors = [each for each in wanted.to_tuple() if isinstance(each, torch.Tensor)]
    assert tensors
    for one, other in zip(tensors, (each for each in found.to_tuple() if isinstance(each, torch.Tensor)), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(TypeError, match="now and before, its former name, are both given"):
        renamed_argument("before", "now")(lambda now: now)(before=1, now=2)
