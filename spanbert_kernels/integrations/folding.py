"""Scores of spans against query vectors, from layers whose last one is folded into the queries.

`q . (W2 x + b2)` is `(q W2) . x + q . b2`: with q W2 in the place of W2 a scorer of two layers gives the score itself,
and no vector of a span is formed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.span_layers import OriginalPath
from spanbert_kernels.acceleration.stand_ins import is_read
from spanbert_kernels.nn.feed_forward import feed_forward
from spanbert_kernels.ops.choices import Part


def check_called(*modules: nn.Module) -> None:
    """These modules are not called although their package's code would call them: raises where that changes anything.

    Raises:
        OriginalPath: a hook or another forward is in the way.
    """
    for module in modules:
        if _is_watched(module):
            raise OriginalPath(f"a {type(module).__name__} inside has hooks or another forward")


def _is_watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in module.__dict__


def check_read(*modules: nn.Module) -> None:
    """Weights of these layers are read instead of calling them: raises where that leaves something out.

    Raises:
        OriginalPath: an adapter, a quantized layer, a hook or another forward is in the way.
    """
    for module in modules:
        if not is_read(module) and type(module) not in (nn.ReLU, nn.GELU, nn.Dropout):
            raise OriginalPath(f"a {type(module).__name__} stands where PyTorch's own layer was")
    check_called(*modules)


def projected(layer: nn.Module, words: Tensor) -> Tensor:
    """`layer(words).relu()`; of two plain linear layers with a relu between, one tensor as wide as that is written."""
    if isinstance(layer, nn.Sequential) and not any(map(_is_watched, (layer, *layer))):
        layers: tuple[Any, ...] = tuple(layer)
        plain = [type(each) for each in layers] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
        if plain and not (layers[2].training and layers[2].p > 0):
            up, _, _, down = layers
            rows = feed_forward(words.flatten(0, -2), up.weight, up.bias, down.weight, down.bias, "relu")
            return rows.relu_().view(*words.shape[:-1], -1)
    result: Tensor = layer(words).relu()
    return result


def layers_of(sequential: nn.Sequential) -> tuple[Any, ...]:
    """The layers of a Sequential that is not called.

    Raises:
        OriginalPath: as `check_read`.
    """
    check_called(sequential)
    check_read(*sequential)
    return tuple(sequential)


def fold(queries: Tensor, layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """`queries [B, C, D]` times a layer's weight `[D, O]` and bias, in float32 at least: `[B, C, O]`, `[B, C]`."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        weight = queries.to(wide) @ layer.weight.to(wide)
        return weight, None if layer.bias is None else queries.to(wide) @ layer.bias.to(wide)


def cells(batch: int, length: int, max_width: int, device: torch.device) -> Tensor:
    """The spans of 1 to `max_width` tokens from each of `length` tokens of each document: `[B * L * K, 2]`.

    Also those that leave the document: packed, each has `max_width - 1` tokens more (`lengthened`).

    Example:
        >>> cells(2, 1, 2, torch.device("cpu")).tolist()
        [[0, 0], [0, 1], [2, 2], [2, 3]]
    """
    first = torch.arange(batch, device=device)[:, None] * (length + max_width - 1)
    starts = (first + torch.arange(length, device=device)).flatten()
    ends = starts[:, None] + torch.arange(max_width, device=device)
    return torch.stack([starts[:, None].expand_as(ends), ends], dim=-1).flatten(0, 1)


def lengthened(tokens: Tensor, max_width: int) -> Tensor:
    """`tokens [B, L, H]` with `max_width - 1` rows of zeros behind each document, packed."""
    return F.pad(tokens, (0, 0, 0, max_width - 1)).flatten(0, 1)


def offsets(batch: int, length: int, device: torch.device) -> Tensor:
    """Where documents of `length` tokens begin, and the last ends."""
    return torch.arange(batch + 1, device=device) * length


@dataclass(frozen=True)
class Layers:
    """`last(dropout(relu(W [part; ...] + b)))` over spans of B documents: what a span layer would return, unformed.

    Attributes:
        tokens: packed, a tensor for each part that reads tokens, or one for all.
        spans: `[M, 2]`, packed.
        cu_seqlens: `[B + 1]`.
        shape: of the vectors, `[B, ..., D]`, or `[M, D]` where texts have different numbers of them.
        dtype: of vectors and scores.
        parts: what is pooled of a span, in the order of W's columns.
        weight: W `[O, columns]`.
        bias: b, `[O]` or one for each document, `[B, O]`.
        widths: the table of the part `width`.
        dropout: behind the activation.
        last: the layer that is folded into the queries; None: the vectors end with the activation.
        cells: which span stands in each place of `shape`; None: every span in its own.
    """

    tokens: Mapping[Part, Tensor] | Tensor
    spans: Tensor
    cu_seqlens: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[Part, ...]
    weight: Tensor
    bias: Tensor | None
    widths: Tensor | None = None
    dropout: nn.Dropout | None = None
    last: nn.Linear | None = None
    cells: Tensor | None = None

    def vectors(self) -> Tensor:
        inner = ops.span_linear(
            self.tokens,
            self.spans,
            self.parts,
            self.weight,
            self.bias,
            width_embedding=self.widths,
            activation="relu",
            cu_seqlens=self.cu_seqlens,
        )
        inner = inner if self.dropout is None else self.dropout(inner)
        return self._laid_out(inner if self.last is None else self.last(inner))

    def scores(self, queries: Tensor) -> Tensor:
        weight, bias = (queries, None) if self.last is None else fold(queries, self.last)
        # Where every text has as many places, its bias is added to all of them: the gradient is then a sum over a
        # dimension, which is closer than that of a bias picked for each span.
        at_once = bias if len(self.shape) > 2 else None
        scores = ops.span_score(
            self.tokens,
            self.spans,
            self.parts,
            self.weight,
            self.bias,
            weight,
            None if at_once is not None else bias,
            width_embedding=self.widths,
            activation="relu",
            dropout_p=self.dropout.p if self.dropout is not None and self.dropout.training else 0.0,
            cu_seqlens=self.cu_seqlens,
        )
        scores = self._laid_out(scores)
        if at_once is None:
            return scores
        return (scores + at_once.view(len(queries), *[1] * (len(self.shape) - 2), -1)).to(self.dtype)

    def _laid_out(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.dtype)
        rows = rows if self.cells is None else F.embedding(self.cells, rows)
        return rows.view(*self.shape[:-1], rows.shape[1])


def packed(spans: Tensor, words: Tensor, max_width: int | None, last: nn.Linear) -> tuple[Tensor, tuple[int, ...]]:
    """`spans [B, N, 2]` as packed positions `[B * N, 2]`, and the vectors' shape, `[B, N / K, K, D]` for K widths.

    Raises:
        OriginalPath: they are not spans of these words.
    """
    (batch, length), count = words.shape[:2], spans.shape[1] if spans.dim() == 3 else 0
    if spans.shape != (batch, count, 2) or count == 0 or spans.dtype not in (torch.int32, torch.int64):
        raise OriginalPath(f"span_idx is not a list of spans for each text, but {list(spans.shape)} of {spans.dtype}")
    if max_width is not None and count % max_width:
        raise OriginalPath(f"{count} spans are no multiple of {max_width} widths")
    on_host = spans.device.type == "cpu"  # elsewhere looking at them would wait for the device
    if on_host and not bool((spans[..., 0] >= 0).logical_and(spans[..., 0] <= spans[..., 1]).all()):
        raise OriginalPath("a span ends before it starts")
    if on_host and int(spans.max()) >= length:
        raise OriginalPath("a span reaches beyond the words")
    grid = (count,) if max_width is None else (count // max_width, max_width)
    first = (torch.arange(batch, device=spans.device) * length)[:, None, None]
    return (spans + first).flatten(0, 1), (batch, *grid, last.out_features)


def without_padding(words: Tensor, spans: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`words [B, L, H]` and packed `spans [B * N, 2]` without what padding adds, if that is worth it.

    In the place of a span that its text is too short for stands the text's first span once more.

    Returns:
        `[1, T, H]`, the words at the ends of spans, or all words as they came; `[M, 2]`, different spans of those,
        packed; where documents begin; and which of these spans stands in the place of each given one, or None.
    """
    batch, length = words.shape[:2]
    grid = spans.view(batch, -1, 2)
    kept = (grid != grid[:, :1]).any(-1)
    kept[:, 0] = True
    if not is_few(kept):
        return words, spans, offsets(batch, length, words.device), None
    row = kept.flatten().cumsum(0).view_as(kept) - 1
    cells = torch.where(kept, row, row[:, :1]).flatten()
    return *words_of(words, spans[kept.flatten()]), cells


def is_few(kept: Tensor) -> bool:
    """Whether leaving the others out is worth it. Elsewhere than on a CPU counting would wait for the device."""
    return kept.device.type == "cpu" and int(kept.sum()) <= 7 / 8 * kept.numel()


def words_of(words: Tensor, spans: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The words `[1, T, H]` that packed `spans [M, 2]` begin or end with, these spans of them, and their offsets."""
    batch, length = words.shape[:2]
    used = torch.zeros(batch * length, dtype=torch.bool)
    used[spans.flatten()] = True
    cu_seqlens = F.pad(used.view(batch, length).sum(1).cumsum(0), (1, 0))
    return words.flatten(0, 1)[used][None], (used.cumsum(0) - 1)[spans], cu_seqlens


def endpoints(layer: Any, words: Tensor, spans: Tensor, context: Tensor | None = None) -> Layers:
    """The layers of a span layer that has `project_start`, `project_end` and `out_project`.

    Args:
        layer: the span layer; a `max_width` it has says how the spans are laid out.
        words: `[B, L, H]`.
        spans: `[B, N, 2]`.
        context: `[B, H']` beside the words of every span of a document.
    """
    first, _, dropout, last = layers_of(layer.out_project)
    positions, shape = packed(spans, words, getattr(layer, "max_width", None), last)
    words, positions, cu_seqlens, cells = without_padding(words, positions)
    start, end = projected(layer.project_start, words), projected(layer.project_end, words)
    columns, bias = start.shape[-1] + end.shape[-1], first.bias
    if context is not None:
        bias = F.linear(context.relu(), first.weight[:, columns:], bias)
    tokens: dict[Part, Tensor] = {"start": start.flatten(0, 1), "end": end.flatten(0, 1)}
    return Layers(
        tokens, positions, cu_seqlens, shape, start.dtype, ("start", "end"), first.weight[:, :columns], bias,
        dropout=dropout, last=last, cells=cells,
    )  # fmt: skip
