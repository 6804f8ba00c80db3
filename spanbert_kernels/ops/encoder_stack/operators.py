"""encoder_stack's raw operators."""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.operators import raw

OPERATION = Operation(
    "encoder_stack",
    ("cpu", "eager"),
    summary="layers of an encoder on packed documents in one call, inference",
    instead=("eager", "it is about the caches of a CPU, and what its threads wait for"),
)

torch.library.define(
    "spanbert_kernels::encoder_stack_matrix_bytes", "(int precision, int out_features, int in_features) -> int"
)
torch.library.define("spanbert_kernels::encoder_stack_pack", "(Tensor weight, Tensor(a!) to, int precision) -> ()")
torch.library.define(
    "spanbert_kernels::encoder_stack_arena_bytes",
    "(Tensor hidden, Tensor cu_seqlens, Tensor region, Tensor rows, Tensor constants, int precision) -> int",
)


@raw(OPERATION)
def encoder_stack_forward(
    hidden: Tensor,
    cu_seqlens: Tensor,
    region: Tensor,
    rows: Tensor,
    constants: Tensor,
    arena: Tensor | None,
    precision: int,
    first: int,
    last: int,
) -> Tensor:
    # The arena is memory to work in: what is in it before and after means nothing.
    return hidden.new_empty(hidden.shape)
