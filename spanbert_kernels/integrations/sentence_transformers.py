"""sentence-transformers' pooling over the packed tokens that an accelerated encoder has, not over its padded output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.acceleration.span_layers import OriginalPath, Replacement
from spanbert_kernels.nn.packing import Packing, recall
from spanbert_kernels.ops.choices import Part

# What a mode pools; a mean over the root of the length begins as a sum.
PARTS: dict[str, Part] = {
    "cls": "start",
    "lasttoken": "end",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "sum",
}
_HALF = (torch.bfloat16, torch.float16)


def make_pooling(module: Any) -> Callable[..., dict[str, Any]]:
    """What stands for the forward of `Pooling`."""

    def forward(features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        modes = (module.pooling_mode,) if isinstance(module.pooling_mode, str) else module.pooling_mode
        prompt = 0 if module.include_prompt else _prompt_length(features)
        for name, where in (("token_weights_sum", True), ("cls_token_embeddings", "cls" in modes)):
            if where and name in features:
                raise OriginalPath(f"{name} of another module")
        if prompt and "cls" in modes:
            raise OriginalPath("the first token behind a prompt")
        hidden, packing = _packed(features)
        features["sentence_embedding"] = pooled(hidden, packing, modes, prompt)
        return features

    return forward


def _prompt_length(features: dict[str, Any]) -> int:
    given = features.get("prompt_length", 0)
    return int(given[0].item()) if isinstance(given, Tensor) else int(given)


def _packed(features: dict[str, Any]) -> tuple[Tensor, Packing]:
    """The tokens without padding, and where they stand in the batch."""
    tokens = features["token_embeddings"]
    if "cu_seq_lens_q" in features:
        return tokens.squeeze(0), Packing.from_offsets(features["cu_seq_lens_q"], None, tokens.shape[1])
    mask = features.get("attention_mask")
    if mask is not None and mask.shape[-1] != tokens.shape[1]:
        raise OriginalPath("a mask of another length than the tokens'")
    known = recall(tokens, mask)
    if known is None:
        raise OriginalPath("token embeddings that no accelerated encoder returned with this mask")
    return known


def pooled(hidden: Tensor, packing: Packing, modes: tuple[str, ...], prompt: int) -> Tensor:
    """The documents' vectors `[B, modes * H]`, of all their tokens but those of a prompt.

    Args:
        hidden: `[T, H]`, packed.
        packing: where the documents are.
        modes: names of sentence-transformers' pooling modes.
        prompt: how many columns of each row hold a prompt, from its first token on.

    Example:
        >>> packing = Packing.from_mask(torch.tensor([[1, 1], [1, 0]]), 2, 2, "cpu")
        >>> pooled(torch.tensor([[1.0], [3.0], [5.0]]), packing, ("mean", "lasttoken"), 0).tolist()
        [[2.0, 3.0], [5.0, 5.0]]
    """
    spans = torch.stack([packing.cu_seqlens[:-1], packing.cu_seqlens[1:]], 1)  # [B, 2]
    columns = _columns(packing) if prompt or "weightedmean" in modes else None
    if prompt and columns is not None:
        left_out = torch.nn.functional.pad((columns < prompt).cumsum(0, dtype=spans.dtype), (1, 0))
        spans[:, 0] += left_out.index_select(0, spans[:, 1]) - left_out.index_select(0, spans[:, 0])
    widths = spans[:, 1:] - spans[:, :1]
    exact = hidden.float() if hidden.dtype in _HALF else hidden
    found = []
    for mode in modes:
        if mode == "weightedmean":
            assert columns is not None
            weights = (columns + 1).to(exact.dtype)[:, None]
            total, weight = (_pool(each, spans, "sum") for each in (exact * weights, weights))
            vectors = total / weight.clamp(min=1e-9)
        elif mode == "mean_sqrt_len_tokens":
            vectors = _pool(exact, spans, PARTS[mode]) / widths.to(exact.dtype).clamp(min=1e-9).sqrt()
        else:
            vectors = _pool(hidden, spans, PARTS[mode])
        found.append((vectors.masked_fill(widths == 0, -torch.inf) if mode == "max" else vectors).to(hidden.dtype))
    return torch.cat(found, -1)


def _pool(hidden: Tensor, spans: Tensor, part: Part) -> Tensor:
    return ops.span_pool(hidden, spans, [part], end_inclusive=False)


def _columns(packing: Packing) -> Tensor:
    """int64 `[T]`: how many columns behind the first token of its row each token stands."""
    lengths, columns = packing.cu_seqlens.diff().long(), packing.positions()
    if not packing.by_row:
        return packing.places()
    first = columns.index_select(0, packing.cu_seqlens[:-1].clamp(max=max(len(columns) - 1, 0)))
    return columns - first.repeat_interleave(lengths, output_size=len(columns))


REPLACEMENTS = (
    Replacement(
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "pooled over packed tokens",
        make_pooling,
        covers=("_forward_padded", "_forward_flattened", "_exclude_prompt_from_mask"),
    ),
)
