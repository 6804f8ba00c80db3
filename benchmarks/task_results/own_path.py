"""Transformers' own path as someone would write it in PyTorch.

Our eager definitions draw dropout by the counters that the kernels draw by, so that every backend drops the same;
attention across documents keeps what those return; and spans are pooled so that nothing of a token outside reaches
them, be it NaN. No model without us would pay for that: here dropout is PyTorch's own, attention across documents its
fused one, a call and a mask for each cluster, and spans are pooled by products, as coref-hoi does it where a text is
short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.choices import Part
from spanbert_kernels.ops.cross_document_attention import reference as across
from spanbert_kernels.ops.span_pool import reference as pooling
from spanbert_kernels.ops.span_score import reference as heads

DROPOUT, ATTENTION, POOLING = "dropout of spans, by PyTorch", "attention, by PyTorch", "pooling, by PyTorch"
DENSE = 50  # times the width of the widest span, up to which a product with all tokens costs less than to gather


def attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    cu_clusters: Tensor,
    queries: str,
    keys: str,
    include_self: bool,
    links: tuple[Tensor, Tensor] | None,
    normalize: str,
    scale: float,
    dropout_p: float,
    weighed: bool,
) -> tuple[Tensor, Tensor, None]:
    """What `cross_document_attention` gives by PyTorch's fused attention; a log-sum-exp of zeros.

    Raises:
        NotImplementedError: links, a softmax a document or the documents' weights are asked for.
    """
    if links is not None or normalize != "joint" or weighed:
        raise NotImplementedError(f"links {links is not None}, normalize {normalize!r}, weights {weighed}")
    q_first, q_count, q_document = across.rows_of_clusters(queries, cu_seqlens, cu_clusters, q.shape[0])
    k_first, k_count, k_document = across.rows_of_clusters(keys, cu_seqlens, cu_clusters, k.shape[0])
    filled = cu_seqlens.diff() > 0
    rows = zip(*(found.tolist() for found in (q_first, q_count, k_first, k_count)), strict=True)
    outputs = []
    for first, count, first_key, keys_of_it in rows:
        mine, others = slice(first, first + count), slice(first_key, first_key + keys_of_it)
        of_query, of_key = q_document[mine, None], k_document[others]
        visible = filled[of_query] & filled[of_key]
        if not include_self:
            visible = visible & (of_query != of_key)
        parts = (x.transpose(0, 1)[None] for x in (q[mine], k[others], v[others]))
        found = F.scaled_dot_product_attention(*parts, attn_mask=visible, dropout_p=dropout_p, scale=scale)
        outputs.append(found[0].transpose(0, 1))  # 0 of one that sees nothing
    return torch.cat(outputs), q.new_zeros(q.shape[1], q.shape[0]), None


def pooled(
    hidden: Tensor,
    start: Tensor,
    end: Tensor,
    parts: tuple[Part, ...],
    scores: Tensor | None,
    width_embedding: Tensor | None,
    width_index: Tensor | None,
) -> Tensor:
    """What `span_pool` gives, where tokens are finite and no span is empty; for the mean alone one may be.

    Raises:
        NotImplementedError: another part than ends, mean, attention and width.
    """
    widths = end - start
    within: Tensor | None = None  # `[N, T]` or `[N, W]`
    if {"mean", "attention"} & set(parts):
        widest = int(widths.max()) if len(widths) else 1
        if len(hidden) <= DENSE * widest:
            place, rows = torch.arange(len(hidden), device=hidden.device), None
            within = (place >= start[:, None]) & (place < end[:, None])
        else:
            offsets = torch.arange(widest, device=hidden.device)
            rows = (start[:, None] + offsets).clamp(max=len(hidden) - 1)
            within = offsets < widths[:, None]
            tokens = F.embedding(rows, hidden)  # [N, W, H]

    def weighed(weights: Tensor) -> Tensor:
        return weights @ hidden if rows is None else torch.bmm(weights[:, None], tokens)[:, 0]

    def attention_part() -> Tensor:
        assert scores is not None
        assert within is not None
        own = scores[:, 0].expand_as(within) if rows is None else F.embedding(rows, scores)[..., 0]
        return weighed(own.masked_fill(~within, -torch.inf).softmax(1))

    def mean_part() -> Tensor:
        assert within is not None
        return weighed(within / widths.clamp(min=1)[:, None])

    def width_part() -> Tensor:
        assert width_embedding is not None
        assert width_index is not None
        return F.embedding(width_index, width_embedding)

    makers: dict[str, Callable[[], Tensor]] = {
        "start": lambda: F.embedding(start, hidden),
        "end": lambda: F.embedding(end - 1, hidden),
        "mean": mean_part,
        "attention": attention_part,
        "width": width_part,
    }
    if not makers.keys() >= set(parts) or (scores is not None and scores.shape[1] != 1):
        raise NotImplementedError(f"parts {parts}")
    return torch.cat([makers[part]() for part in parts], 1)


@contextmanager
def on_pytorchs_own() -> Iterator[Counter[str]]:
    """Within it the eager backend computes so; counts the calls.

    Raises:
        AssertionError: something draws by counters all the same.
    """
    calls: Counter[str] = Counter()

    def drop(values: Tensor, rows: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
        calls[DROPOUT] += 1
        return F.dropout(values, dropout_p)

    def attend(*given: Any) -> tuple[Tensor, Tensor, None]:
        *sides, dropout_p, _seed, weighed = given
        calls[ATTENTION] += 1
        return attended(*sides, dropout_p, weighed)

    def pool(*given: Any) -> Tensor:
        calls[POOLING] += 1
        return pooled(*given)

    def refuse(*given: Any) -> Tensor:
        raise AssertionError("transformers' own path draws by counters")

    replaced: tuple[tuple[ModuleType, str, Any], ...] = (
        (heads, "drop", drop),
        (across, "cross_document_attention", attend),
        (pooling, "span_pool", pool),
        (philox, "philox", refuse),
    )
    with ExitStack() as stack:
        for module, name, new in replaced:
            stack.enter_context(mock.patch.object(module, name, new))
        yield calls
