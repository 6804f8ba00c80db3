"""The span boundary objective's head: the tokens of a masked span from the two tokens around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels.nn.linear import run_linear
from spanbert_kernels.ops import checks, products

POSITION_SIZE = 200
Activation = Callable[[Tensor], Tensor]


class SpanBoundaryMLP(nn.Module):
    """Two layers with LayerNorm over `[left; right; position]`, the first applied block by block.

    `W [left; right; position] + b` is `W_l left + W_r right + (W_p position + b)`: the first two once a span, the third
    once a slot, and a target adds three rows. The concatenation, as wide as `2 H + 200` for every target, never exists.
    """

    def __init__(self, hidden_size: int, position_size: int, activation: Activation, layer_norm_eps: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(2 * hidden_size + position_size, hidden_size)
        self.layer_norm1 = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.linear2 = nn.Linear(hidden_size, hidden_size)
        self.layer_norm2 = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.activation = activation

    def forward(self, left: Tensor, right: Tensor, positions: Tensor, span: Tensor, slot: Tensor) -> Tensor:
        """`left`, `right [S, H]`, `positions [P, E]`, and each target's span and slot `[N]` -> `[N, H]`."""
        size = left.shape[1]
        of_left, of_right, of_position = self.linear1.weight.split([size, size, positions.shape[1]], 1)
        of_span = products.linear(left, of_left) + products.linear(right, of_right)  # [S, H]
        of_slot = F.linear(positions, of_position, self.linear1.bias)  # [P, H]
        inner = self.layer_norm1(self.activation(of_span[span] + of_slot[slot]))
        outer: Tensor = self.layer_norm2(self.activation(run_linear(self.linear2, inner)))
        return outer


class SpanBoundaryHead(nn.Module):
    """Predicts token i of a span from the tokens left and right of it and the embedding of i. Names as published.

    Args:
        hidden_size: H.
        vocab_size: V.
        max_targets: tokens of a span that are predicted, the first ones.
        activation: of both layers.
        layer_norm_eps: of both LayerNorms.

    Source: Joshi et al. 2020, SpanBERT, section 3.2; `BertPairTargetPredictionHead` of its published code. The released
    file has these parameters behind `cls.pair_target_predictions.`.

    Example:
        >>> head = SpanBoundaryHead(hidden_size=8, vocab_size=30)
        >>> spans = torch.tensor([[1, 2], [5, 5]])  # inclusive, with a token on either side
        >>> logits, span, slot = head(torch.randn(9, 8), spans)
        >>> logits.shape, span.tolist(), slot.tolist()
        (torch.Size([3, 30]), [0, 0, 1], [0, 1, 0])
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        max_targets: int = 20,
        activation: Activation = F.gelu,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        sizes = (("hidden_size", hidden_size), ("vocab_size", vocab_size), ("max_targets", max_targets))
        for name, value in sizes:
            checks.check_integer(name, value, 1)
        checks.check_number("layer_norm_eps", layer_norm_eps)
        if not callable(activation):
            raise TypeError(f"activation must be a function of a tensor, got {activation!r}")
        self.max_targets = max_targets
        self.position_embeddings = nn.Embedding(max_targets, POSITION_SIZE)
        self.mlp_layer_norm = SpanBoundaryMLP(hidden_size, POSITION_SIZE, activation, layer_norm_eps)
        self.decoder = nn.Linear(hidden_size, vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, spans: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the tokens of spans.

        Args:
            hidden: `[R, H]`, rows of tokens.
            spans: int64 `[S, 2]`, first and last row of each span; the rows before and after it must be there.

        Returns:
            Logits `[N, V]`, and of each of the N targets its span and its slot there, int64 `[N]`.
        """
        span, slot = self.targets(spans)
        left, right = hidden[spans[:, 0] - 1], hidden[spans[:, 1] + 1]
        states = self.mlp_layer_norm(left, right, self.position_embeddings.weight, span, slot)
        return run_linear(self.decoder, states) + self.bias, span, slot

    def targets(self, spans: Tensor) -> tuple[Tensor, Tensor]:
        """Of each target its span, and its slot in the span, int64 `[N]`; spans `[S, 2]` as in `forward`."""
        widths = (spans[:, 1] - spans[:, 0] + 1).clamp(max=self.max_targets)
        span = torch.repeat_interleave(widths)
        return span, torch.arange(len(span), device=spans.device) - (widths.cumsum(0) - widths)[span]
