"""bias_gelu at the width of BERT-base's feed-forward blocks, against PyTorch's two operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from registry import BOTH, FORWARD, Inputs, Prepared, Provider, Suite, Way, Work, Workload, register

from spanbert_kernels import ops

SIZE = 3072
# Tensors of [T, I] that are read or written at least.
PASSES = {FORWARD: 2, BOTH: 5}


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    shapes = ((workload.options["rows"], SIZE), (SIZE,))
    made = [torch.randn(shape, generator=generator).to(workload.dtype).to(dtype) for shape in shapes]
    return Inputs(tuple(made), {})


def work(workload: Workload, inputs: Inputs) -> Work:
    rows = workload.options["rows"]
    return Work({"rows": rows}, PASSES[workload.direction] * rows * SIZE * workload.dtype.itemsize)


def provider(way: Way) -> Callable[[Workload, Inputs], Prepared]:
    return lambda workload, inputs: Prepared(way, inputs.leaves)


SUITE = register(
    Suite(
        "bias_gelu",
        tuple(
            Workload(f"{rows} rows", direction, dtype=dtype, options={"rows": rows}, seconds=1.0,
                     quick=direction == BOTH and dtype == torch.float32)
            for rows in (732,)
            for dtype in (torch.float32, torch.bfloat16)
            for direction in (FORWARD, BOTH)
        ),
        {
            "ours": Provider(provider(lambda x, bias: ops.bias_gelu(x, bias)), "ours"),
            "two operators": Provider(provider(lambda x, bias: F.gelu(x + bias)), "eager"),
        },
        inputs,
        work,
        reference="two operators",
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
