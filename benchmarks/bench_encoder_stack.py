"""encoder_stack: two layers of BERT-base's size in one call, beside the same layers product by product."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from registry import Inputs, Provider, Suite, Unavailable, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.ops.encoder_stack import (
    Attend,
    EncoderStack,
    FeedForward,
    Merge,
    Normalize,
    Precision,
    Project,
    Step,
    encoder_stack_refusal,
)

LAYERS, SIZE, HEADS, WIDE = 2, 768, 12, 3072
LENGTHS = {
    "one sentence of 24": (24,),
    "8 documents of 30 to 58": (30, 34, 38, 42, 46, 50, 54, 58),
    "16 x 128": (128,) * 16,
}


@cache
def steps(dtype: torch.dtype) -> tuple[Step, ...]:
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).to(dtype)

    layer = lambda: (  # noqa: E731
        Project(made(3 * SIZE, SIZE), made(3 * SIZE)),
        Attend(HEADS, SIZE // HEADS, (SIZE // HEADS) ** -0.5),
        Merge(made(SIZE, SIZE), made(SIZE)),
        Normalize(made(SIZE) + 1, made(SIZE), 1e-12),
        FeedForward(made(WIDE, SIZE), made(WIDE), made(SIZE, WIDE), made(SIZE), "gelu"),
        Normalize(made(SIZE) + 1, made(SIZE), 1e-12),
    )
    return tuple(step for _ in range(LAYERS) for step in layer())


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    lengths = LENGTHS[workload.options["batch"]]
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(sum(lengths), SIZE, generator=generator).to(workload.dtype).to(dtype)
    offsets = torch.tensor(list(itertools.accumulate(lengths, initial=0)))
    return Inputs((hidden,), {"cu_seqlens": offsets})


def work(workload: Workload, inputs: Inputs) -> Work:
    rows, weights = inputs.leaves[0].shape[0], LAYERS * (4 * SIZE * SIZE + 2 * SIZE * WIDE)
    return Work({"tokens": rows}, weights * workload.dtype.itemsize, 2 * rows * weights)


def fused(precision: Precision | None) -> Callable[[Workload, Inputs], Way]:
    """In a precision, or in that of the workload."""

    def prepare(workload: Workload, inputs: Inputs) -> Way:
        own: Precision = "bfloat16" if workload.dtype == torch.bfloat16 else "float32"
        chosen = precision or own
        reason = encoder_stack_refusal(chosen)
        if reason is not None:
            raise Unavailable(reason)
        stack = EncoderStack(steps(workload.dtype), SIZE, chosen)
        return lambda hidden: ops.encoder_stack(hidden, inputs.given["cu_seqlens"], stack, backend="cpu")

    return prepare


def eager(workload: Workload, inputs: Inputs) -> Way:
    """Layer by layer as PyTorch has it: rows without padding, but for attention, which is one call a batch."""
    offsets = inputs.given["cu_seqlens"]
    lengths = offsets.diff()
    real = torch.arange(int(lengths.max())) < lengths[:, None]  # [B, L]
    visible = None if bool(real.all()) else real[:, None, None, :]
    dtype = inputs.leaves[0].dtype
    own = [step._make(x.to(dtype) if isinstance(x, Tensor) else x for x in step) for step in steps(workload.dtype)]

    def attend(hidden: Tensor, step: Attend) -> Tensor:
        padded = hidden.new_zeros(*real.shape, 3, step.heads, step.head_dim)
        padded[real] = hidden.view(len(hidden), 3, step.heads, step.head_dim)
        q, k, v = padded.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible).transpose(1, 2)[real].flatten(1)

    def way(hidden: Tensor) -> Tensor:
        stream = residual = hidden
        for step in own:
            match step:
                case Project():
                    residual, stream = stream, F.linear(stream, step.weight, step.bias)
                case Attend():
                    stream = attend(stream, step)
                case Merge():
                    stream = F.linear(stream, step.weight, step.bias) + residual
                case Normalize():
                    stream = F.layer_norm(stream, (SIZE,), step.weight, step.bias, step.eps)
                case FeedForward():
                    inner = F.gelu(F.linear(stream, step.up, step.up_bias))
                    stream = F.linear(inner, step.down, step.down_bias) + stream
        return stream

    return way


SUITE = register(
    Suite(
        "encoder_stack",
        tuple(
            Workload(batch, dtype=dtype, options={"batch": batch}, seconds=1.0,
                     quick=batch.startswith("one") and dtype == torch.float32)
            for dtype in (torch.float32, torch.bfloat16)
            for batch in LENGTHS
        ),
        {
            "ours": Provider(fused(None), "ours"),
            "ours, float32 products": Provider(fused("float32")),
            "eager": Provider(eager, "eager"),
        },
        inputs,
        work,
        reference="eager",
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> Any:
    record(workload)
