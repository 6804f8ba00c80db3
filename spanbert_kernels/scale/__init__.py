"""Corpora of any size through an encoder: on this machine, through Ray Data, and inside of people's own pipelines.

Names are resolved on first use: processes that only tokenise load no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanbert_kernels.scale.corpus import encode
    from spanbert_kernels.scale.encoder import DocumentEncoder
    from spanbert_kernels.scale.wanted import Wanted

__all__ = ["DocumentEncoder", "Wanted", "encode"]

_HOMES = {"DocumentEncoder": "encoder", "Wanted": "wanted", "encode": "corpus"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
