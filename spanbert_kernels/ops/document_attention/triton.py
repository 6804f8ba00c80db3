"""document_attention in Triton: its kernels are `attention`'s, for any work; here is what they compile."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from spanbert_kernels.ops.aot import AotConfiguration, configurations_of
from spanbert_kernels.ops.attention.triton_joint import WHOLE_FORWARD, backward, forward
from spanbert_kernels.ops.attention.triton_launch import meta_calls, meta_dropout, meta_queries, meta_work
from spanbert_kernels.ops.attention.work import AttentionWork
from spanbert_kernels.ops.philox import Dropout


def _both(q: Tensor, work: AttentionWork, dropout_p: float = 0.1) -> None:
    output, lse = forward(q, q, q, work, 1.0, meta_dropout(dropout_p))
    backward(output, q, q, q, lse, work, 1.0, meta_dropout(dropout_p))


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile with everything, and without dropout where the blocks are others then."""
    calls: dict[str, Any] = {}
    for name, q, work in meta_calls():
        calls[name] = partial(_both, q, work)
        if name.startswith("bf16 64"):
            calls[f"{name}, no dropout"] = partial(forward, q, q, q, work, 1.0, Dropout(0.0, None))
    for columns, rows in WHOLE_FORWARD.items():
        for longest, _, _ in rows:
            work = meta_work("tokens", "tokens", max_seqlen=longest)
            calls[f"bf16 {columns}, whole {longest}"] = partial(_both, meta_queries("bf16", columns), work)
    # One word of the generator is dropped: Triton makes a constant of a 1.
    alone = meta_work("tokens", "tokens", max_seqlen=32)
    calls["bf16 64, whole 32, rarest dropout"] = partial(_both, meta_queries("bf16", 64), alone, 2**-31.5)
    return configurations_of(calls)
