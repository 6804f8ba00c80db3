"""What the tests of encoders share."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.deberta import modeling_deberta
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
    """ModernBERT turns queries and keys in single precision, whatever their own, and DeBERTa normalizes so."""
    own, widest = modeling_modernbert.apply_rotary_pos_emb, modeling_nomic_bert.apply_rotary_pos_emb

    def apply(q: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        turn = widest if q.dtype == torch.float64 else own
        turned: tuple[Tensor, Tensor] = turn(q, *given, **named)
        return turned

    monkeypatch.setattr(modeling_modernbert, "apply_rotary_pos_emb", apply)
    norm = modeling_deberta.DebertaLayerNorm.forward

    def normalize(self: Any, hidden: Tensor) -> Tensor:
        if hidden.dtype == torch.float64:
            return F.layer_norm(hidden, hidden.shape[-1:], self.weight, self.bias, self.variance_epsilon)
        normalized: Tensor = norm(self, hidden)
        return normalized

    monkeypatch.setattr(modeling_deberta.DebertaLayerNorm, "forward", normalize)
