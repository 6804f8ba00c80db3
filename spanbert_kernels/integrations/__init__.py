"""The operations behind the interfaces of other libraries.

Names are resolved on first use: what spaCy takes from here needs neither PyTorch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanbert_kernels.integrations.transformers_attention import register_attention

_HOMES = {
    "register_attention": "transformers_attention",
}

__all__ = ["register_attention"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
