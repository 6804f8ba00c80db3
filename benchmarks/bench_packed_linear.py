"""packed_linear on BERT-base's widest product, on weights that come from memory: those of twelve layers in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from registry import Inputs, Provider, Suite, Unavailable, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

LAYERS, IN, OUT = 12, 768, 3072


@cache
def weights(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(OUT, IN, generator=generator).to(dtype) for _ in range(LAYERS)]


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    """Weights in the workload's dtype, widened for the reference."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(workload.options["rows"], IN, generator=generator).to(workload.dtype).to(dtype)
    bias = torch.randn(OUT, generator=generator).to(workload.dtype).to(dtype)
    made = weights(workload.dtype)
    layers = made if dtype == workload.dtype else made[-1:]
    return Inputs((x, bias), {"weights": [weight.to(dtype) for weight in layers]})


def work(workload: Workload, inputs: Inputs) -> Work:
    rows, size = workload.options["rows"], workload.dtype.itemsize
    return Work({"rows": rows}, LAYERS * (OUT * IN + rows * (IN + OUT)) * size, LAYERS * 2 * rows * IN * OUT)


def ours(workload: Workload, inputs: Inputs) -> Way:
    packed = [ops.pack_weight(weight) for weight in inputs.given["weights"]]
    return lambda x, bias: [ops.packed_linear(x, weight, bias) for weight in packed][-1]


def linear(workload: Workload, inputs: Inputs) -> Way:
    return lambda x, bias: [F.linear(x, weight, bias) for weight in inputs.given["weights"]][-1]


def repacked(workload: Workload, inputs: Inputs) -> Way:
    try:
        made = [torch.ops.mkldnn._reorder_linear_weight(weight) for weight in inputs.given["weights"]]
    except RuntimeError:
        raise Unavailable("oneDNN does not take the dtype on this processor") from None
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x, bias: [multiply(x, weight, bias, "none", [], "") for weight in made][-1]


SUITE = register(
    Suite(
        "packed_linear",
        tuple(
            Workload(f"{rows} rows, 12 layers", dtype=dtype, options={"rows": rows}, seconds=1.0, curve="rows",
                     scaling="rows", quick=rows == 24 and dtype == torch.float32)
            for dtype in (torch.float32, torch.bfloat16)
            for rows in (1, 6, 24, 64, 256)
        ),
        {
            "ours": Provider(ours, "ours"),
            "F.linear": Provider(linear, "eager"),
            "oneDNN, repacked": Provider(repacked),
        },
        inputs,
        work,
        reference="F.linear",
        yardsticks=("oneDNN, repacked",),
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
