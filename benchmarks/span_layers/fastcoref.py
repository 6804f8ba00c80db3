"""fastcoref and LingMess at the published sizes: states of 1,024, spans of up to 30 tokens, 0.4 mentions a token.

The mention scorer is what stands between the tokens' states and the scores of the mentions kept; the head begins with
the encoder's states and ends with the scores of pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from originals.fastcoref import FCorefModel
from torch import Tensor
from transformers import BertConfig

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels.integrations import fastcoref, start_to_end

REPLACES = "fastcoref.coref_models.modeling_fcoref.FCorefModel"
HIDDEN, UNITS, WIDTH, SHARE = 768, 1024, 30, 0.4
Way = Callable[[FCorefModel, Tensor, Tensor, Tensor], Tensor]


def model_of(dtype: torch.dtype) -> FCorefModel:
    torch.manual_seed(0)
    head = {"max_span_length": WIDTH, "top_lambda": SHARE, "ffnn_size": UNITS, "dropout_prob": 0.3}
    config = BertConfig(vocab_size=30, hidden_size=HIDDEN, num_hidden_layers=0, coref_head=head)
    return FCorefModel(config).eval().to(dtype)


def drawn(length: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 1, length, columns, generator=generator).to(dtype)
    return first.requires_grad_(), second.requires_grad_()


def scorer(length: int, way: Way) -> Build:
    def build(dtype: torch.dtype) -> Side:
        model, (start, end) = model_of(dtype), drawn(length, UNITS, dtype)
        mask = torch.ones(1, length, dtype=torch.long)
        layers = (model.mention_s2e_classifier, model.mention_start_classifier, model.mention_end_classifier)
        leaves = [start, end, *(each for layer in layers for each in layer.parameters())]
        return Side(lambda: way(model, start, end, mask), leaves)

    return build


def their_mentions(model: FCorefModel, start: Tensor, end: Tensor, mask: Tensor) -> Tensor:
    sums = model._prune_topk_mentions(model._calc_mention_logits(start, end), mask)[3]
    return sums.diagonal(dim1=1, dim2=2) / 2


def our_mentions(model: FCorefModel, start: Tensor, end: Tensor, mask: Tensor) -> Tensor:
    return start_to_end.mentions(model, start, end, mask, False).scores


def head(length: int, ours: bool) -> Build:
    def build(dtype: torch.dtype) -> Side:
        model, (hidden, _) = model_of(dtype), drawn(length, HIDDEN, dtype)
        mask = torch.ones(1, length, dtype=torch.long)

        def way() -> Tensor:
            if ours:
                states = model.start_mention_mlp(hidden), model.end_mention_mlp(hidden)
                found = start_to_end.mentions(model, *states, mask, False)
                logits = fastcoref.pair_logits(model, hidden, found)
            else:
                logits = model.head(hidden, mask)[3]
            # What the loss reads: scores that are ruled out weigh nothing.
            return logits.logsumexp(-1)

        parameters = [each for name, each in model.named_parameters() if not name.startswith("bert.")]
        return Side(way, [hidden, *parameters])

    return build


CASES = (
    *(
        SpanLayerCase(
            f"mention scorer, {length:,} tokens",
            REPLACES,
            scorer(length, their_mentions),
            scorer(length, our_mentions),
            goal=8,
            peaks=True,
            axes={"tokens": length},
            operations=2 * length * UNITS * (UNITS + WIDTH),
            quick=length == 512,
        )
        for length in (512, 2048, 4096)
    ),
    SpanLayerCase("head, 2,048 tokens", REPLACES, head(2048, ours=False), head(2048, ours=True), peaks=True),
)
