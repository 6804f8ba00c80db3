"""Wrong kinds of arguments: every argument of every module's constructor refuses each, by name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from spanbert_kernels import nn

GOOD: dict[str, dict[str, Any]] = {
    "Biaffine": {"size": 4, "outputs": 2},
    "BidirectionalEndpointSpanExtractor": {"input_dim": 4, "num_width_embeddings": 3, "span_width_embedding_dim": 2},
    "CrossDocumentMixer": {"hidden_size": 8, "num_heads": 2},
    "EndpointSpanExtractor": {"input_dim": 4, "num_width_embeddings": 3, "span_width_embedding_dim": 2},
    "MaxPoolingSpanExtractor": {"input_dim": 4, "num_width_embeddings": 3, "span_width_embedding_dim": 2},
    "SelfAttentiveSpanExtractor": {"input_dim": 4, "num_width_embeddings": 3, "span_width_embedding_dim": 2},
    "SpanBoundaryHead": {"hidden_size": 8, "vocab_size": 5},
}
OTHERS: dict[str, Any] = {
    "a tensor": torch.ones(2),
    "an object": object(),
    "a list": [1],
    "nan": float("nan"),
    "bytes": b"last",
}
SIZE = {**OTHERS, "a fraction": 2.5, "a flag": True, "a string": "2", "negative": -1, "huge": 2**63, "nothing": None}
NUMBER = {**OTHERS, "a flag": True, "a string": "0.1", "infinite": float("inf"), "nothing": None}
SHARE = {**NUMBER, "negative": -0.1, "one": 1.0}
FLAG = {**OTHERS, "an integer": 1, "nothing": None, "a string": "no"}
COMBINATION = {**OTHERS, "a flag": True, "unknown": "everything", "an operation": "x^y", "nothing": None}
CHOICE = {**OTHERS, "unknown": "everything", "nothing": None, "a flag": True}
KINDS: dict[str, dict[str, Any]] = {
    "activation": {**OTHERS, "a string": "gelu", "nothing": None},
    "anchor": CHOICE,
    "attention_dropout": SHARE,
    "backward_combination": COMBINATION,
    "bucket_widths": FLAG,
    "combination": COMBINATION,
    "dropout": SHARE,
    "forward_combination": COMBINATION,
    "hidden_size": SIZE,
    "include_self": FLAG,
    "input_dim": SIZE,
    "keys": CHOICE,
    "layer_norm_eps": NUMBER,
    "max_targets": SIZE,
    "normalize": CHOICE,
    "num_heads": SIZE,
    "num_width_embeddings": {name: value for name, value in SIZE.items() if value is not None},
    "outputs": SIZE,
    "queries": CHOICE,
    "size": SIZE,
    "span_width_embedding_dim": {name: value for name, value in SIZE.items() if value is not None},
    "use_exclusive_start_indices": FLAG,
    "use_sentinels": FLAG,
    "vocab_size": SIZE,
}
MODULES = {name: getattr(nn, name) for name in nn.__all__ if issubclass(getattr(nn, name), torch.nn.Module)}
ARGUMENTS = [(name, argument) for name, module in MODULES.items() for argument in inspect.signature(module).parameters]


@pytest.mark.parametrize(("module", "argument"), ARGUMENTS, ids=".".join)
def test_no_wrong_kind_is_taken(module: str, argument: str) -> None:
    MODULES[module](**GOOD[module])
    for what, value in KINDS[argument].items():
        with pytest.raises((TypeError, ValueError)) as caught:
            MODULES[module](**{**GOOD[module], argument: value})
        assert argument in str(caught.value), what
