"""What span_pool means, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_kernels.ops.choices import PARTS, Part
from spanbert_kernels.ops.span_gather.reference import gather_padded, rows

# Without gradients the eager backend works in chunks of this many gathered elements, to stay small in memory.
EAGER_CHUNK = 2**26


def span_pool(
    hidden: Tensor,
    start: Tensor,
    end: Tensor,
    parts: tuple[Part, ...],
    scores: Tensor | None,
    width_embedding: Tensor | None,
    width_index: Tensor | None,
) -> Tensor:
    """`hidden [T, H]`, `start`, `end` (half-open) int64 `[N]`, `scores [T, K]`, `width_embedding [R, E]`."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    # Widened before it is gathered: a token's gradient is then summed over its spans in float32, too.
    tokens, mask = gather_padded(hidden.to(dtype), start, end, min_width=1)  # [N, W, H], [N, W]
    size = tokens.shape[2]
    full = mask.any(1)  # [N]
    widths = mask.sum(1)  # [N]

    def start_part() -> Tensor:
        return tokens[:, 0]

    def end_part() -> Tensor:
        last = (widths - 1).clamp(min=0)
        return tokens.gather(1, last[:, None, None].expand(-1, 1, size)).squeeze(1)

    def sum_part() -> Tensor:
        return tokens.sum(1)

    def mean_part() -> Tensor:
        return tokens.sum(1) / widths.clamp(min=1)[:, None]

    def max_part() -> Tensor:
        values = tokens.masked_fill(~mask[..., None], -torch.inf)
        largest = values.detach().amax(1, keepdim=True)  # NaN where a token is NaN
        found = (values.detach() == largest) | values.detach().isnan()
        position = torch.arange(mask.shape[1], device=mask.device)[:, None]
        first = torch.where(found, position, mask.shape[1] - 1).amin(1, keepdim=True)  # [N, 1, H]
        return values.gather(1, first).squeeze(1).masked_fill(~full[:, None], 0)

    def attention_part() -> Tensor:
        assert scores is not None
        inside, _ = gather_padded(scores.to(dtype), start, end, min_width=1)  # [N, W, K]
        inside = inside.masked_fill(~mask[..., None], -torch.inf)
        # A span without a token to weigh, because it has none or every score is -inf: any finite score will do.
        live = (inside != -torch.inf).any(1)  # [N, K]
        weights = inside.masked_fill(~live[:, None], 0).softmax(1).masked_fill(~mask[..., None], 0)
        pooled = torch.stack([(each * tokens).sum(1) for each in weights.split(1, dim=2)], dim=1)  # [N, K, H]
        return torch.where(live[..., None], pooled, 0).flatten(1)

    def width_part() -> Tensor:
        assert width_embedding is not None
        assert width_index is not None
        return torch.where(full[:, None], rows(width_embedding.to(dtype), width_index), 0)

    makers = dict(
        zip(PARTS, (start_part, end_part, mean_part, sum_part, max_part, attention_part, width_part), strict=True)
    )
    return torch.cat([makers[part]().to(hidden.dtype) for part in parts], dim=1)
