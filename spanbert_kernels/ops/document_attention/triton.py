"""document_attention in Triton: its kernels are `attention`'s, for any work; here is what they compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.aot import AotConfiguration, configurations_of, meta
from spanbert_kernels.ops.attention import triton_lists
from spanbert_kernels.ops.attention.operators import new_words
from spanbert_kernels.ops.attention.relative import DistanceTerms
from spanbert_kernels.ops.attention.triton_by_distance import by_distance_backward, by_distance_forward
from spanbert_kernels.ops.attention.triton_joint import (
    WARP_GROUPS,
    WHOLE_FORWARD,
    backward,
    forward,
    words_backward,
    words_forward,
)
from spanbert_kernels.ops.attention.triton_launch import meta_calls, meta_dropout, meta_queries, meta_work
from spanbert_kernels.ops.attention.work import AttentionWork
from spanbert_kernels.ops.philox import Dropout


def _both(q: Tensor, work: AttentionWork, dropout_p: float = 0.1) -> None:
    dropout = meta_dropout(dropout_p) if dropout_p else Dropout(0.0, None)
    output, lse = forward(q, q, q, work, 1.0, dropout)
    backward(output, q, q, q, lse, work, 1.0, dropout)


def _in_both_ways(backwards: Callable[[], object], name: str) -> dict[str, Any]:
    """A backward that has other blocks without warp groups."""

    def call(has_warp_groups: bool) -> None:
        token = WARP_GROUPS.set(has_warp_groups)
        try:
            backwards()
        finally:
            WARP_GROUPS.reset(token)

    return {f"{name}, warp groups": partial(call, True), f"{name}, no warp groups": partial(call, False)}


def _named_by_ways(found: list[AotConfiguration], calls: dict[str, Any]) -> list[AotConfiguration]:
    """Configurations of calls, those that are the same in both ways named after neither."""
    without = configurations_of({name: call for name, call in calls.items() if name.endswith(", no warp groups")})
    alike = [replace(each, name="") for each in without]
    ways = [each.name.endswith(", warp groups") and replace(each, name="") in alike for each in found]
    return [
        replace(each, name=each.name.removesuffix(", warp groups")) if in_both else each
        for each, in_both in zip(found, ways, strict=True)
    ]


NOTHING_DROPPED = Dropout(0.0, None)


def _backwards(q: Tensor, work: AttentionWork) -> Callable[[], object]:
    return partial(backward, q, q, q, q, meta(q.shape[1], q.shape[0]), work, 1.0, NOTHING_DROPPED)


def _no_dropout(q: Tensor, work: AttentionWork) -> dict[str, Any]:
    call = partial(forward, q, q, q, work, 1.0, NOTHING_DROPPED)
    return {"no dropout": call, **_in_both_ways(_backwards(q, work), "no dropout")}


def _with_words(q: Tensor, work: AttentionWork) -> dict[str, Any]:
    dropout, lse = meta_dropout(), meta(q.shape[1], q.shape[0])
    backwards = partial(words_backward, q, q, q, q, lse, new_words(q, work), work, 1.0, dropout)
    return {"words": partial(words_forward, q, q, q, work, 1.0, dropout), **_in_both_ways(backwards, "words")}


def _by_distance(q: Tensor, work: AttentionWork, terms: DistanceTerms, dropout: Dropout) -> None:
    output, lse = by_distance_forward(q, q, q, work, terms, 1.0, dropout)
    by_distance_backward(output, q, q, q, lse, work, terms, 1.0, dropout)


def _meta_terms(q: Tensor, *, window: bool, tables: bool) -> DistanceTerms:
    """Terms without values."""
    (heads, head_dim), width = q.shape[1:], 64 if window else -1
    if not tables:
        return DistanceTerms(width, None, None, None, None)
    bias, table = (meta(512, heads, *columns, dtype=q.dtype) for columns in ((), (head_dim,)))
    return DistanceTerms(width, meta(1025, dtype=torch.int32), bias, table, table)


def _calls_by_distance() -> dict[str, Any]:
    """Of every width that blocks differ for; those named after roles are left to the slow tests."""
    calls: dict[str, Any] = {}
    work = meta_work("tokens", "tokens")
    for dtype, columns in (("bf16", 64), ("bf16", 128), ("bf16", 256), ("fp32", 64), ("fp32", 256)):
        q = meta_queries(dtype, columns)
        for name, window, tables in (("window", True, False), ("tables", False, True), ("both", True, True)):
            terms = _meta_terms(q, window=window, tables=tables)
            role = "" if (dtype, columns, name) == ("bf16", 64, "tables") else ", tokens to tokens"
            calls[f"{dtype} {columns}, {name}{role}"] = partial(_by_distance, q, work, terms, meta_dropout())
            if name == "tables":
                alone = partial(_by_distance, q, work, terms._replace(keys=None, queries=None), meta_dropout())
                calls[f"{dtype} {columns}, bias, tokens to tokens"] = alone
            if (dtype, columns, name) == ("bf16", 64, "window"):
                without = partial(_by_distance, q, work, terms, Dropout(0.0, None))
                calls[f"{dtype} {columns}, {name}, no dropout{role}"] = without
    return calls


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile with everything, and without dropout where the blocks are others then."""
    calls = _calls_by_distance() | triton_lists.aot_calls()
    for name, q, work in meta_calls():
        calls[name] = partial(_both, q, work)
        if name.startswith("bf16 64") or name.endswith("anchors to anchors"):
            between_tokens = name == "bf16 64, tokens to tokens"
            more = _no_dropout(q, work) if between_tokens else {"no dropout": partial(_both, q, work, 0.0)}
            calls |= {f"{name}, {end}": call for end, call in more.items()}
    for columns, rows in WHOLE_FORWARD.items():
        for longest, _, _ in rows:
            work = meta_work("tokens", "tokens", max_seqlen=longest)
            calls[f"bf16 {columns}, whole {longest}"] = partial(_both, meta_queries("bf16", columns), work)
    for name, longest in (("whole 128", 128), ("long", 512)):
        work = meta_work("tokens", "tokens", max_seqlen=longest)
        more = _no_dropout(meta_queries("bf16", 64), work)
        if name == "long":
            more |= _with_words(meta_queries("bf16", 64), work)
        calls |= {f"bf16 64, {name}, {end}": call for end, call in more.items()}
    said = _in_both_ways(_backwards(meta_queries("bf16", 64), meta_work("tokens", "tokens", max_seqlen=-128)), "said")
    calls["bf16 64, said, warp groups"] = said["said, warp groups"]
    # One word of the generator is dropped: Triton makes a constant of a 1.
    alone = meta_work("tokens", "tokens", max_seqlen=32)
    calls["bf16 64, whole 32, rarest dropout"] = partial(_both, meta_queries("bf16", 64), alone, 2**-31.5)
    return _named_by_ways(configurations_of(calls), calls)
