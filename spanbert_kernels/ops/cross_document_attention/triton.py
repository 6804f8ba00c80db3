"""cross_document_attention in Triton: the launches beyond the joint softmax, which is `attention`'s."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.aot import AotConfiguration, configurations_of, meta
from spanbert_kernels.ops.attention import triton_joint, triton_launch
from spanbert_kernels.ops.attention.triton_backward import key_backward
from spanbert_kernels.ops.attention.triton_launch import Loops, launch, loop_options, meta_calls, meta_dropout, rows_of
from spanbert_kernels.ops.attention.triton_tiles import NO_TERMS, Statistics
from spanbert_kernels.ops.attention.work import AttentionWork, PairStatistics
from spanbert_kernels.ops.cross_document_attention import triton_sublayer
from spanbert_kernels.ops.cross_document_attention.operators import (
    cross_document_attention_pairwise_backward,
    cross_document_attention_pairwise_forward,
    cross_document_attention_weights,
)
from spanbert_kernels.ops.cross_document_attention.triton_backward import pairwise_backward
from spanbert_kernels.ops.cross_document_attention.triton_forward import pairwise_forward, weights_forward
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.triton_arguments import philox_of, with_registers

WEIGHTS: Loops = {
    (16, 64, False): (64, 64, 8, 1),
    (16, 64, True): (64, 32, 8, 1),
    (32, 64, False): (16, 32, 8, 1),
    (32, 64, True): (16, 32, 8, 1),
}
# Of the weights where a head is taken in parts: the compiler for GPUs of 10.0 takes fewer by itself, and spills.
WEIGHT_REGISTERS = 96
FORWARD: Loops = {
    (16, 64, False): (64, 32, 8, 2),
    (16, 64, True): (64, 32, 8, 1),
    (32, 64, False): (16, 32, 8, 1),
    (32, 32, True): (16, 16, 8, 1),
}
BACKWARD: Loops = {
    (16, 64, False): (32, 32, 8, 1),
    (16, 64, True): (32, 64, 8, 1),
    (32, 32, True): (16, 32, 8, 1),  # of narrower heads, too: all their columns at once spill
}
# Those of the joint softmax but for the first: where slots are looked up as well, registers of four warps would spill.
KEY_BACKWARD: Loops = {**triton_joint.LINKED_BACKWARD.keys, (16, 64, False): (32, 32, 8, 2)}


@cross_document_attention_weights.triton
def weigh(q: Tensor, k: Tensor, lse: Tensor, work: AttentionWork, places: int, scale: float) -> Tensor:
    weights = q.new_zeros(q.shape[0], q.shape[1], places, dtype=torch.float32)
    if weights.numel():
        arguments = {**rows_of(q=q, k=k), "lse": lse, "weights": weights, "places": places, "scale": scale}
        options = loop_options(q, WEIGHTS)
        if options.block.CHUNKED and q.dtype != torch.float32:
            options = with_registers(options, WEIGHT_REGISTERS)
        launch(weights_forward, q, work, options, **arguments, by_document=True, all_columns=False)
    return weights


@cross_document_attention_pairwise_forward.triton
def forward(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, statistics: PairStatistics, scale: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    slots, _, size = statistics
    output = triton_launch.new_rows(q, work.anchor_queries)
    lse = q.new_full((q.shape[1], size), -torch.inf, dtype=torch.float32)
    if output.numel():
        arguments = {**rows_of(q=q, k=k, v=v), "output": output, "lse": lse}
        arguments |= {"dropout": philox_of(dropout), "scale": scale, "size": size}
        launch(pairwise_forward, q, work, loop_options(q, FORWARD), **arguments, slots=slots, by_document=True)
    return output, lse


@cross_document_attention_pairwise_backward.triton
def backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    work: AttentionWork,
    statistics: PairStatistics,
    scale: float,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    slots, back_slots, size = statistics
    grads = grad_q, grad_k, grad_v = triton_launch.new_gradients(q, k, v, work)
    if q.numel() == 0 or k.numel() == 0:
        return grads
    shared: dict[str, Any] = {"dropout": philox_of(dropout), "scale": scale, "size": size}
    shared |= rows_of(grad_output=grad_output, q=q, k=k, v=v)
    shared["statistics"] = Statistics(lse, torch.empty_like(lse), torch.empty_like(lse))
    launch(
        pairwise_backward, q, work, loop_options(q, BACKWARD), **shared, grad_q=grad_q, slots=slots, by_document=True
    )
    options = loop_options(q, KEY_BACKWARD, anchor_keys=work.anchor_keys)
    shared |= {"terms": NO_TERMS, "again": None, "EXACT": False}
    launch(key_backward, q, work, options, **shared, grad_k=grad_k, grad_v=grad_v, slots=back_slots, keys=True)
    if work.anchor_keys:  # a softmax over one key is 1, whatever its score
        grad_q.zero_()
        grad_k.zero_()
    return grads


def _all(q: Tensor, work: AttentionWork) -> None:
    slots = None if work.links is None else meta(len(work.links), dtype=torch.int64)
    statistics = PairStatistics(slots, slots, 20 * len(q))
    output, lse = forward(q, q, q, work, statistics, 1.0, meta_dropout())
    backward(output, q, q, q, lse, work, statistics, 1.0, meta_dropout())
    weigh(q, q, lse, work, 20, 1.0)


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile with everything."""
    calls = triton_sublayer.aot_calls() | {name: partial(_all, q, work) for name, q, work in meta_calls()}
    return configurations_of(calls)
