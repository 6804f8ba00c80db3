from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BertConfig, PreTrainedModel

from spanbert_kernels.models import SpanBERTConfig

TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "num_labels": 3,
}


@pytest.fixture
def bert_config() -> BertConfig:
    return BertConfig(**TINY)


@pytest.fixture
def make_config() -> Callable[..., SpanBERTConfig]:
    """A tiny SpanBERT whose first two layers let documents see each other."""
    return lambda **options: SpanBERTConfig(**{**TINY, "cross_document_layers": [0, 1], **options})


@pytest.fixture
def open_gates() -> Callable[[PreTrainedModel], PreTrainedModel]:
    def open_gates(model: PreTrainedModel) -> PreTrainedModel:
        for name, parameter in model.named_parameters():
            if "cross_document" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        return model

    return open_gates


@pytest.fixture
def batch() -> dict[str, Any]:
    """Six documents of three clusters: padding right, left and in the middle, one row without a token."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor(
        [
            [1, 1, 1, 1, 1, 1],
            [1, 1, 1, 0, 0, 0],
            [0, 0, 1, 1, 1, 1],
            [0, 0, 0, 0, 0, 0],
            [1, 0, 0, 1, 1, 0],
            [1, 1, 0, 0, 0, 0],
        ]
    )
    return {
        "input_ids": torch.randint(40, mask.shape, generator=generator),
        "token_type_ids": torch.randint(2, mask.shape, generator=generator),
        "attention_mask": mask,
    }


@pytest.fixture
def cluster_ids() -> torch.Tensor:
    """Documents 0, 2, 3 and 4 form a cluster (3 is empty), 1 and 5 are alone."""
    return torch.tensor([7, -3, 7, 7, 7, 0])
