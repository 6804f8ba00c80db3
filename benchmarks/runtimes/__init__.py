"""What else runs the same encoder: other runtimes, each with its own converter, and PyTorch's compiler.

A runtime is a function of the model, a precision and a batch that gives a call without arguments: the batch's states,
`[B, L, H]`. Converted models are kept for the process, the compiled ones of a precision until the next one's come.
To add a runtime, write such a function and name it in `bench_encoder.py`.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from registry import Unavailable
from torch import Tensor, nn

from spanbert_kernels.extras import advice

Batch = dict[str, Tensor]  # input_ids and attention_mask, [B, L]
Runtime = Callable[[Any, torch.dtype, Batch], Callable[[], Tensor]]


class States(nn.Module):
    """The model as converters want it: two tensors in, one out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def need(*modules: str) -> None:
    """Raises `Unavailable` with what to install where a module is missing."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise Unavailable(advice(module, "peers"))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def folder(name: str) -> Path:
    """A folder for converted models, which vanishes with the process."""
    path = Path(_folder().name) / name
    path.mkdir(exist_ok=True)
    return path


def warm(runtime: Runtime, model: Any, precision: torch.dtype, batch: Batch) -> Callable[[], Tensor]:
    """A runtime's call, made ready and called once; whatever stops it here is a reason that its row gives.

    In the mode in which it is timed: PyTorch's compiler compiles for each, and freezes no weights that want a gradient.
    """
    try:
        with torch.inference_mode():
            call = runtime(model, precision, batch)
            call()
    except Unavailable:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        raise Unavailable(f"fails here: {type(error).__name__}: {reason[0][:200]}") from error
    return call
