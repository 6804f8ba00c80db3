"""GLiNER2's span layer, as version 2.1.0 computes it: tokens projected once, the layer between formed for all spans."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from originals.gliner import SpanMarkerV0


class QueryMarker(SpanMarkerV0):
    """The package's SpanMarkerV0: GLiNER's, which scores queries as well."""

    __module__, __qualname__ = "gliner2.layers", "SpanMarkerV0"

    def score_queries(
        self, h: Tensor, queries: Tensor, text_lengths: Tensor | None = None, *, mask_invalid: bool = True
    ) -> Tensor:
        """`[B, L, H]` and `[B, Q, H]` -> `[B, Q, L, max_width]`, -inf where a span leaves the text, if asked for."""
        (batch, length, size), widths = h.shape, self.max_width
        if queries.dim() != 3 or queries.shape[::2] != (batch, size):
            raise ValueError("queries must have shape [batch, num_queries, hidden_size]")
        first, relu, dropout, last = self.out_project
        start = F.linear(self.project_start(h).relu(), first.weight[:, :size])
        end = F.linear(self.project_end(h).relu(), first.weight[:, size:])
        windows = F.pad(end, (0, 0, 0, widths - 1)).unfold(1, widths, 1).mT
        inner = dropout(relu(start[:, :, None] + windows + first.bias).reshape(batch, length * widths, -1))
        scores = torch.baddbmm((queries @ last.bias)[:, None], inner, (queries @ last.weight).mT)
        scores = scores.mT.reshape(batch, -1, length, widths)
        if not mask_invalid:
            return scores
        end_of = torch.arange(length)[:, None] + torch.arange(widths)
        valid = (end_of < length).expand(batch, -1, -1)
        if text_lengths is not None:
            valid = valid & (end_of < text_lengths[:, None, None])
        return scores.masked_fill(~valid[:, None], float("-inf"))
