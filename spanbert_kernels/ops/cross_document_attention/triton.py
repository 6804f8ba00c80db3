"""cross_document_attention in Triton, beyond the joint softmax, which is document_attention's: its launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.aot import AotConfiguration
from spanbert_kernels.ops.attention.work import AttentionWork, PairStatistics
from spanbert_kernels.ops.cross_document_attention.operators import (
    cross_document_attention_pairwise_backward,
    cross_document_attention_pairwise_forward,
    cross_document_attention_weights,
)
from spanbert_kernels.ops.cross_document_attention.triton_backward import pairwise_backward
from spanbert_kernels.ops.cross_document_attention.triton_forward import pairwise_forward, weights_forward
from spanbert_kernels.ops.document_attention.triton import (
    KEY_BACKWARD_OF_PAIRS,
    Loops,
    aot_loops,
    loop_options,
    new_rows,
    shared_arguments,
    strided,
    tiled,
    towards_keys,
    towards_queries,
)
from spanbert_kernels.ops.document_attention.triton_kernels import key_backward
from spanbert_kernels.ops.philox import Dropout

# As in document_attention.
WEIGHTS: Loops = {
    (16, 64, False): (64, 64, 8, 1),
    (16, 64, True): (64, 32, 8, 1),
    (32, 64, False): (16, 32, 8, 1),
    (32, 64, True): (16, 32, 8, 1),
}
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


def _towards_documents(work: AttentionWork) -> dict[str, Any]:
    return {name: value for name, value in towards_keys(work).items() if name != "anchors"}


@cross_document_attention_weights.triton
def weigh(q: Tensor, k: Tensor, lse: Tensor, work: AttentionWork, places: int, scale: float) -> Tensor:
    weights = q.new_zeros(q.shape[0], q.shape[1], places, dtype=torch.float32)
    if weights.numel() == 0:
        return weights
    options = loop_options(q, WEIGHTS)
    tiles, (programs, _) = tiled(q, work.query_tiles, work.anchor_queries, options["Q"], options["C"])
    shared = shared_arguments(q, work, 0.0, None)
    with torch.cuda.device_of(q):
        weights_forward[(programs,)](
            **strided(q=q, k=k),
            lse=lse,
            weights=weights,
            **{name: shared[name] for name in ("work", "query_rows", "documents", "heads", "head_dim")},
            **_towards_documents(work),
            **tiles,
            places=places,
            scale=scale,
            **options,
        )
    return weights


@cross_document_attention_pairwise_forward.triton
def forward(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, statistics: PairStatistics, scale: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    (slots, _, size), (dropout_p, seed) = statistics, dropout
    output = new_rows(q, work.anchor_queries)
    lse = q.new_full((q.shape[1], size), -torch.inf, dtype=torch.float32)
    if output.numel() == 0:
        return output, lse
    options = loop_options(q, FORWARD)
    tiles, grid = tiled(q, work.query_tiles, work.anchor_queries, options["Q"], options["C"])
    with torch.cuda.device_of(q):
        pairwise_forward[grid](
            **strided(q=q, k=k, v=v),
            output=output,
            lse=lse,
            **shared_arguments(q, work, dropout_p, seed),
            **_towards_documents(work),
            **tiles,
            slots=slots,
            size=size,
            scale=scale,
            **options,
        )
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
    (slots, back_slots, size), (dropout_p, seed) = statistics, dropout
    grad_q, grad_k, grad_v = (
        new_rows(tensor, anchors)
        for tensor, anchors in ((q, work.anchor_queries), (k, work.anchor_keys), (v, work.anchor_keys))
    )
    if q.numel() == 0 or k.numel() == 0:
        return grad_q.zero_(), grad_k.zero_(), grad_v.zero_()
    shared = {
        **strided(grad_output=grad_output, q=q, k=k, v=v),
        **shared_arguments(q, work, dropout_p, seed),
        "scale": scale,
        "size": size,
    }
    delta, share = (torch.empty_like(lse) for _ in range(2))
    with torch.cuda.device_of(q):
        options = loop_options(q, BACKWARD)
        tiles, grid = tiled(q, work.query_tiles, work.anchor_queries, options["Q"], options["C"])
        pairwise_backward[grid](
            **shared,
            lse=lse,
            delta=delta,
            share=share,
            grad_q=grad_q,
            slots=slots,
            **_towards_documents(work),
            **tiles,
            **options,
        )
        options = loop_options(q, KEY_BACKWARD_OF_PAIRS, anchor_keys=work.anchor_keys)
        tiles, grid = tiled(q, work.key_tiles, work.anchor_keys, options["K"], options["C"])
        key_backward[grid](
            **shared,
            lse=lse,
            delta=delta,
            share=share,
            grad_k=grad_k,
            grad_v=grad_v,
            slots=back_slots,
            **towards_queries(work),
            **tiles,
            **options,
        )
    if work.anchor_keys:  # a softmax over one key is 1, whatever its score
        grad_q.zero_()
        grad_k.zero_()
    return grad_q, grad_k, grad_v


def aot_configurations() -> list[AotConfiguration]:
    """Every class of configuration that a launch can choose, with all that its kernel may be given."""
    return [
        *aot_loops("weights", weights_forward, WEIGHTS),
        *aot_loops("pairwise forward", pairwise_forward, FORWARD, linked=(" of linked pairs",)),
        *aot_loops("pairwise backward", pairwise_backward, BACKWARD, linked=(" of linked pairs",)),
        *aot_loops("key backward", key_backward, KEY_BACKWARD_OF_PAIRS, "anchor_keys", linked=(" of linked pairs",)),
    ]
