"""Fused span pooling and cross-document attention for SpanBERT-family encoders.

Names are resolved on first use, so that importing the package loads neither a kernel nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spanbert_kernels import auto_classes

if TYPE_CHECKING:
    from spanbert_kernels import nn, ops
    from spanbert_kernels.acceleration import accelerate, restore
    from spanbert_kernels.integrations import register_attention
    from spanbert_kernels.models import (
        SpanBERTConfig,
        SpanBERTForCoreference,
        SpanBERTForDependencyParsing,
        SpanBERTForExtraction,
        SpanBERTForMaskedLM,
        SpanBERTForPreTraining,
        SpanBERTForQuestionAnswering,
        SpanBERTForRelations,
        SpanBERTForSequenceClassification,
        SpanBERTForSpanClassification,
        SpanBERTForTokenClassification,
        SpanBERTModel,
        SpanBERTTokenizer,
    )
    from spanbert_kernels.ops import RelativeTerms

__version__ = "0.1.0"

_HOMES = {
    "accelerate": "acceleration",
    "restore": "acceleration",
    "register_attention": "integrations",
    "RelativeTerms": "ops",
    "SpanBERTConfig": "models",
    "SpanBERTModel": "models",
    "SpanBERTForDependencyParsing": "models",
    "SpanBERTForExtraction": "models",
    "SpanBERTForMaskedLM": "models",
    "SpanBERTForPreTraining": "models",
    "SpanBERTForQuestionAnswering": "models",
    "SpanBERTForRelations": "models",
    "SpanBERTForSequenceClassification": "models",
    "SpanBERTForCoreference": "models",
    "SpanBERTForSpanClassification": "models",
    "SpanBERTForTokenClassification": "models",
    "SpanBERTTokenizer": "models",
}

__all__ = [
    "RelativeTerms",
    "SpanBERTConfig",
    "SpanBERTForCoreference",
    "SpanBERTForDependencyParsing",
    "SpanBERTForExtraction",
    "SpanBERTForMaskedLM",
    "SpanBERTForPreTraining",
    "SpanBERTForQuestionAnswering",
    "SpanBERTForRelations",
    "SpanBERTForSequenceClassification",
    "SpanBERTForSpanClassification",
    "SpanBERTForTokenClassification",
    "SpanBERTModel",
    "SpanBERTTokenizer",
    "accelerate",
    "nn",
    "ops",
    "register_attention",
    "restore",
]


def __getattr__(name: str) -> Any:
    if name in ("nn", "ops"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


auto_classes.announce()


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
