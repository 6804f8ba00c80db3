"""GLiNER's span layer, as version 0.2.29 computes it: every mode, each span's vector formed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def projection(size: int, dropout: float, out: int | None = None) -> nn.Sequential:
    """Two layers, the one between them four times as wide as the result."""
    out = size if out is None else out
    return nn.Sequential(nn.Linear(size, 4 * out), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4 * out, out))


def rows(tokens: Tensor, index: Tensor) -> Tensor:
    """`tokens [B, L, D]` at `index [B, N]`: `[B, N, D]`."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


class _Endpoints(nn.Module):
    """What the markers share: projections of the first and the last word, side by side."""

    project_start: nn.Module
    project_end: nn.Module
    out_project: nn.Module

    def joined(self, h: Tensor, span_idx: Tensor, *more: Tensor) -> Tensor:
        start, end = rows(self.project_start(h), span_idx[..., 0]), rows(self.project_end(h), span_idx[..., 1])
        context = [each[:, None].expand(-1, start.shape[1], -1) for each in more]
        joined: Tensor = self.out_project(torch.cat([start, end, *context], dim=-1).relu())
        return joined

    def laid_out(self, vectors: Tensor) -> Tensor:
        batch, count, size = vectors.shape
        return vectors.view(batch, count // self.max_width, self.max_width, size)


class SpanMarker(_Endpoints):
    def __init__(self, hidden_size: int, max_width: int, dropout: float = 0.4) -> None:
        super().__init__()
        self.max_width = max_width
        self.project_start, self.project_end = (
            nn.Sequential(
                nn.Linear(hidden_size, 2 * hidden_size),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(2 * hidden_size, hidden_size),
            )
            for _ in range(2)
        )
        self.out_project = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, h: Tensor, span_idx: Tensor) -> Tensor:
        return self.laid_out(self.joined(h, span_idx))


class TokenMarker(_Endpoints):
    context: str | None = None  # the name of a third projection

    def __init__(self, hidden_size: int, dropout: float = 0.4) -> None:
        super().__init__()
        names = ["project_start", "project_end", *([] if self.context is None else [self.context])]
        for name in names:
            self.add_module(name, projection(hidden_size, dropout))
        self.out_project = projection(len(names) * hidden_size, dropout, hidden_size)

    def forward(self, h: Tensor, span_idx: Tensor) -> Tensor:
        return self.joined(h, span_idx)


class SpanMarkerV0(TokenMarker):
    def __init__(self, hidden_size: int, max_width: int, dropout: float = 0.4) -> None:
        super().__init__(hidden_size, dropout)
        self.max_width = max_width

    def forward(self, h: Tensor, span_idx: Tensor) -> Tensor:
        return self.laid_out(self.joined(h, span_idx))


class SpanMarkerV1(SpanMarkerV0):
    """With the mean over all words and padding; its `project_first` is never called."""

    context = "project_first"

    def forward(self, h: Tensor, span_idx: Tensor) -> Tensor:
        return self.laid_out(self.joined(h, span_idx, h.mean(dim=1)))


class SpanMarkerV2(SpanMarkerV0):
    """With a projection of the last word that is there."""

    context = "project_context"
    project_context: nn.Module

    def forward(self, h: Tensor, span_idx: Tensor, word_mask: Tensor) -> Tensor:
        last = (word_mask.long().sum(1) - 1).clamp(min=0)
        context = rows(self.project_context(h), last[:, None])[:, 0] * word_mask.any(1)[:, None]
        return self.laid_out(self.joined(h, span_idx, context))


class SpanQuery(nn.Module):
    """A learned vector per width, times the first word."""

    def __init__(self, hidden_size: int, max_width: int) -> None:
        super().__init__()
        self.query_seg = nn.Parameter(torch.rand(hidden_size, max_width) * 2 - 1)
        self.project = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU())

    def forward(self, h: Tensor, *_: Any) -> Tensor:
        vectors: Tensor = self.project(h[:, :, None] * self.query_seg.T)
        return vectors


class SpanMLP(nn.Module):
    def __init__(self, hidden_size: int, max_width: int) -> None:
        super().__init__()
        self.max_width = max_width
        self.mlp = nn.Linear(hidden_size, hidden_size * max_width)

    def forward(self, h: Tensor, *_: Any) -> Tensor:
        return self.mlp(h).unflatten(-1, (self.max_width, -1)).relu()


class SpanCAT(nn.Module):
    """A learned vector per width beside the first word; the table is read as if it lay the other way round."""

    def __init__(self, hidden_size: int, max_width: int) -> None:
        super().__init__()
        self.max_width = max_width
        self.query_seg = nn.Parameter(torch.randn(128, max_width))
        self.project = nn.Sequential(nn.Linear(hidden_size + 128, hidden_size), nn.ReLU())

    def forward(self, h: Tensor, *_: Any) -> Tensor:
        word = h[:, :, None].expand(-1, -1, self.max_width, -1)
        width = self.query_seg.view(self.max_width, -1).expand(*word.shape[:3], -1)
        vectors: Tensor = self.project(torch.cat([word, width], dim=-1))
        return vectors


class SpanConvBlock(nn.Module):
    """Windows of one width, zeros behind the last word."""

    def __init__(self, hidden_size: int, kernel_size: int, span_mode: str) -> None:
        super().__init__()
        self.span_mode, self.pad = span_mode, kernel_size - 1
        self.conv: nn.Module = {
            "conv_conv": lambda: nn.Conv1d(hidden_size, hidden_size, kernel_size),
            "conv_max": lambda: nn.MaxPool1d(kernel_size, stride=1),
            "conv_mean": lambda: nn.AvgPool1d(kernel_size, stride=1),
            "conv_sum": lambda: nn.AvgPool1d(kernel_size, stride=1),
        }[span_mode]()

    def forward(self, x: Tensor) -> Tensor:
        windows: Tensor = self.conv(F.pad(x.mT, (0, self.pad)))
        return (windows * (self.pad + 1) if self.span_mode == "conv_sum" else windows).mT


class SpanConv(nn.Module):
    def __init__(self, hidden_size: int, max_width: int, span_mode: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(SpanConvBlock(hidden_size, width, span_mode) for width in range(2, max_width + 1))
        self.project = nn.Sequential(nn.ReLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        vectors: Tensor = self.project(torch.stack([x, *(conv(x) for conv in self.convs)], dim=2))
        return vectors


class ConvShare(nn.Module):
    """Convolutions whose kernels are the beginning of one."""

    def __init__(self, hidden_size: int, max_width: int) -> None:
        super().__init__()
        self.max_width = max_width
        self.conv_weigth = nn.Parameter(torch.randn(hidden_size, hidden_size, max_width) * hidden_size**-0.5)
        self.project = nn.Sequential(nn.ReLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        windows = [
            F.conv1d(F.pad(x.mT, (0, width - 1)), self.conv_weigth[:, :, :width]).mT
            for width in range(1, self.max_width + 1)
        ]
        vectors: Tensor = self.project(torch.stack(windows, dim=2))
        return vectors


class IdentityContextEncoder(nn.Module):
    """No encoder over words: padding becomes zeros."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        return hidden_states.masked_fill(~attention_mask.bool()[..., None], 0)


MODES: dict[str, type[nn.Module]] = {
    "marker": SpanMarker,
    "markerV0": SpanMarkerV0,
    "markerV1": SpanMarkerV1,
    "markerV2": SpanMarkerV2,
    "query": SpanQuery,
    "mlp": SpanMLP,
    "cat": SpanCAT,
    "conv_conv": SpanConv,
    "conv_max": SpanConv,
    "conv_mean": SpanConv,
    "conv_sum": SpanConv,
    "conv_share": ConvShare,
    "token_level": TokenMarker,
}


class SpanRepLayer(nn.Module):
    """The layer that models have: a mode, and an encoder over words in front of it, here none."""

    __module__ = "gliner.modeling.span_rep"

    def __init__(self, hidden_size: int, max_width: int, span_mode: str, dropout: float = 0.4) -> None:
        super().__init__()
        self.context_encoder = IdentityContextEncoder()
        options: dict[str, Any] = {"max_width": max_width, "dropout": dropout, "span_mode": span_mode}
        taken = {
            SpanConv: ("max_width", "span_mode"),
            TokenMarker: ("dropout",),
            **dict.fromkeys((SpanMarker, SpanMarkerV0, SpanMarkerV1, SpanMarkerV2), ("max_width", "dropout")),
        }.get(MODES[span_mode], ("max_width",))
        self.span_rep_layer = MODES[span_mode](hidden_size, **{name: options[name] for name in taken})

    def forward(
        self,
        x: Tensor,
        span_idx: Tensor,
        word_mask: Tensor | None = None,
        return_words: bool = False,
        compact_words: bool = False,
    ) -> Any:
        if word_mask is None:
            word_mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        words = x if compact_words else self.context_encoder(x, word_mask)
        masks = (word_mask,) if isinstance(self.span_rep_layer, SpanMarkerV2) else ()
        vectors = self.span_rep_layer(words, span_idx, *masks)
        return (vectors, words) if return_words else vectors


def spans_of(lengths: Tensor, max_width: int) -> tuple[Tensor, Tensor]:
    """What GLiNER gives its layer for texts of `lengths` words: spans `[B, L * K, 2]`, (0, 0) for those that are none,
    and the mask of those that are, `[B, L, K]`.
    """
    longest = int(lengths.max())
    start = torch.arange(longest)[:, None].expand(-1, max_width)
    end = start + torch.arange(max_width)
    mask = end < lengths[:, None, None]
    return torch.stack([start, end], -1).expand(len(lengths), -1, -1, -1).flatten(1, 2) * mask.flatten(1)[
        ..., None
    ], mask


def label_scores(
    layer: nn.Module, words: Tensor, span_idx: Tensor, labels: Tensor, equation: str = "BLKD,BCD->BLKC"
) -> Tensor:
    """The scores of spans for `labels [B, C, D]`, as GLiNER's models take them."""
    return torch.einsum(equation, layer(words, span_idx), labels)
