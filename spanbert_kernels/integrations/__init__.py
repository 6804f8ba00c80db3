"""The operations behind the interfaces of other libraries.

Names are resolved on first use: what spaCy takes from here needs neither PyTorch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanbert_kernels.integrations.question_answering import decode_spans, select_starts_ends
    from spanbert_kernels.integrations.transformers_attention import register_attention

_HOMES = {
    "decode_spans": "question_answering",
    "register_attention": "transformers_attention",
    "select_starts_ends": "question_answering",
}

__all__ = ["decode_spans", "register_attention", "select_starts_ends"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
