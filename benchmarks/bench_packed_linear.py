"""packed_linear on BERT-base's widest product, on weights that come from memory: those of twelve layers in turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_agrees

from spanbert_kernels import ops

LAYERS, IN, OUT = 12, 768, 3072


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 6, 24, 64, 256])
@torch.no_grad()
def test_forward(compare: Callable[..., None], rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, IN, generator=generator).to(dtype)
    bias = torch.randn(OUT, generator=generator).to(dtype)
    weights = [torch.randn(OUT, IN, generator=generator).to(dtype) for _ in range(LAYERS)]
    packed = [ops.pack_weight(weight) for weight in weights]
    reference = F.linear(x.double(), weights[0].double(), bias.double())
    baselines: dict[str, Callable[[], object]] = {"F.linear": lambda: [F.linear(x, weight, bias) for weight in weights]}
    try:
        repacked = [torch.ops.mkldnn._reorder_linear_weight(weight) for weight in weights]
        baselines["oneDNN, repacked"] = lambda: [
            torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "") for weight in repacked
        ]
    except RuntimeError:
        pass  # oneDNN does not take the dtype on this processor
    compare(
        lambda: [ops.packed_linear(x, weight, bias) for weight in packed],
        baselines,
        error=assert_agrees(ops.packed_linear(x, packed[0], bias), F.linear(x, weights[0], bias), reference),
    )
