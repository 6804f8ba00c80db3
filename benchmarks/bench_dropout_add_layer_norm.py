"""dropout_add_layer_norm at BERT-base's width, against PyTorch's three operators one after the other.

With dropout the masks differ, so that results are compared at a rate of 0, and what is timed drops.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from registry import BOTH, FORWARD, Inputs, Prepared, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

SIZE, EPS = 768, 1e-12
# Tensors of [T, H] that are read or written at least.
PASSES = {FORWARD: 3, BOTH: 8}


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    shapes = ((workload.options["rows"], SIZE), (workload.options["rows"], SIZE), (SIZE,), (SIZE,))
    made = [torch.randn(shape, generator=generator).to(workload.dtype).to(dtype) for shape in shapes]
    return Inputs(tuple(made), {})


def work(workload: Workload, inputs: Inputs) -> Work:
    rows = workload.options["rows"]
    return Work({"rows": rows}, PASSES[workload.direction] * rows * SIZE * workload.dtype.itemsize)


def prepared(workload: Workload, inputs: Inputs, step: Callable[[float], Way]) -> Prepared:
    return Prepared(step(0.0), inputs.leaves, timed=step(workload.options["dropout"]))


def ours(workload: Workload, inputs: Inputs) -> Prepared:
    return prepared(
        workload,
        inputs,
        lambda p: (
            lambda x, residual, weight, bias: ops.dropout_add_layer_norm(
                x, residual, weight, bias, dropout_p=p, eps=EPS
            )
        ),
    )


def three_operators(workload: Workload, inputs: Inputs) -> Prepared:
    def step(p: float) -> Way:
        def run(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.layer_norm(F.dropout(x, p) + residual, (SIZE,), weight, bias, EPS)

        return run

    return prepared(workload, inputs, step)


SUITE = register(
    Suite(
        "dropout_add_layer_norm",
        tuple(
            Workload(f"732 rows, dropout {p:g}", direction, dtype=dtype, options={"rows": 732, "dropout": p},
                     seconds=1.0, quick=direction == BOTH and dtype == torch.float32 and p > 0)
            for dtype in (torch.float32, torch.bfloat16)
            for direction in (FORWARD, BOTH)
            for p in (0.0, 0.1)
        ),
        {"ours": Provider(ours, "ours"), "three operators": Provider(three_operators, "eager")},
        inputs,
        work,
        reference="three operators",
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
