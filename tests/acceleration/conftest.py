"""What the tests of encoders share."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.modernbert import modeling_modernbert
from transformers.models.nomic_bert import modeling_nomic_bert

from spanbert_kernels import ops


@pytest.fixture(autouse=True)
def our_attention() -> Iterator[None]:
    """Where kernels were not built, the definition stands in for them: PyTorch's attention has tests of its own."""
    if ops.backends.without_kernels("document_attention", "cpu", torch.float32) is None:
        yield
        return
    with ops.backends.use("eager"):
        yield


@pytest.fixture(autouse=True)
def references_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """ModernBERT turns queries and keys in single precision, whatever their own."""
    own, widest = modeling_modernbert.apply_rotary_pos_emb, modeling_nomic_bert.apply_rotary_pos_emb

    def apply(q: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        turn = widest if q.dtype == torch.float64 else own
        turned: tuple[Tensor, Tensor] = turn(q, *given, **named)
        return turned

    monkeypatch.setattr(modeling_modernbert, "apply_rotary_pos_emb", apply)
