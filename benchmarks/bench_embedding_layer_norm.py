"""embedding_layer_norm at the sizes of BERT-base, against PyTorch's operators one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from registry import BOTH, FORWARD, Inputs, Prepared, Provider, Suite, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

SIZE, EPS, TABLES = 768, 1e-12, (30522, 512, 2)
# Tensors of [T, H] that are read or written at least.
PASSES = {FORWARD: 2, BOTH: 5}


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    shapes = (*((rows, SIZE) for rows in TABLES), (SIZE,), (SIZE,))
    made = [torch.randn(shape, generator=generator).to(workload.dtype).to(dtype) for shape in shapes]
    ids = [torch.randint(rows, (workload.options["rows"],), generator=generator) for rows in TABLES]
    return Inputs(tuple(made), {"ids": ids})


def work(workload: Workload, inputs: Inputs) -> Work:
    rows = workload.options["rows"]
    return Work({"rows": rows}, PASSES[workload.direction] * rows * SIZE * workload.dtype.itemsize)


def ours(workload: Workload, inputs: Inputs) -> Prepared:
    ids: list[Tensor] = inputs.arguments["ids"]

    def run(tokens: Tensor, positions: Tensor, types: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        more = {"position_ids": ids[1], "position_table": positions, "type_ids": ids[2], "type_table": types}
        return ops.embedding_layer_norm(ids[0], tokens, weight, bias, **more, eps=EPS)

    return Prepared(run, inputs.leaves)


def operators(workload: Workload, inputs: Inputs) -> Prepared:
    ids: list[Tensor] = inputs.arguments["ids"]

    def run(tokens: Tensor, positions: Tensor, types: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        total = F.embedding(ids[0], tokens) + F.embedding(ids[2], types) + F.embedding(ids[1], positions)
        return F.layer_norm(total, (SIZE,), weight, bias, EPS)

    return Prepared(run, inputs.leaves)


SUITE = register(
    Suite(
        "embedding_layer_norm",
        tuple(
            Workload("732 rows", direction, dtype=dtype, options={"rows": 732}, seconds=1.0,
                     quick=direction == FORWARD and dtype == torch.float32)
            for dtype in (torch.float32, torch.bfloat16)
            for direction in (FORWARD, BOTH)
        ),
        {"ours": Provider(ours, "ours"), "six operators": Provider(operators, "eager")},
        inputs,
        work,
        reference="six operators",
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
