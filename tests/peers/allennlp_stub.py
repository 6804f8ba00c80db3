"""A pytest plugin under whose `allennlp` AllenNLP's own tests of its span extractors test ours.

It has what these tests import, no more: the extractors, made from parameters by their registered names, and the
function that gathers by index.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels import nn

REGISTERED: dict[str, type[torch.nn.Module]] = {
    "endpoint": nn.EndpointSpanExtractor,
    "bidirectional_endpoint": nn.BidirectionalEndpointSpanExtractor,
    "self_attentive": nn.SelfAttentiveSpanExtractor,
    "max_pooling": nn.MaxPoolingSpanExtractor,
}


class SpanExtractor:
    """What makes a registered extractor."""

    @staticmethod
    def from_params(params: dict[str, Any]) -> torch.nn.Module:
        """Of the name and the arguments in `params`."""
        arguments = dict(params)
        return REGISTERED[arguments.pop("type")](**arguments)


def batched_index_select(target: Tensor, indices: Tensor) -> Tensor:
    """`target [B, L, H]` at `indices [B, S]`."""
    return target.gather(1, indices[..., None].expand(-1, -1, target.shape[-1]))


EXTRACTORS = {module.__name__: module for module in REGISTERED.values()}
MODULES: dict[str, dict[str, Any]] = {
    "allennlp": {},
    "allennlp.common": {},
    "allennlp.common.checks": {"ConfigurationError": ValueError},
    "allennlp.common.params": {"Params": dict},
    "allennlp.modules": {},
    "allennlp.modules.span_extractors": {"SpanExtractor": SpanExtractor, **EXTRACTORS},
    "allennlp.modules.span_extractors.max_pooling_span_extractor": EXTRACTORS,
    "allennlp.nn": {},
    "allennlp.nn.util": {"batched_index_select": batched_index_select},
}


def pytest_configure() -> None:
    """Before the tests import it."""
    for name, contents in MODULES.items():
        module = ModuleType(name)
        vars(module).update(contents)
        sys.modules[name] = module
