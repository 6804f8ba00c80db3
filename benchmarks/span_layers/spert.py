"""SpERT: all candidates of up to ten tokens, and the contexts of a thousand relations, at BERT-base's size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from baselines import all_spans
from originals.spert import SpERT, masked_maximum
from registry import BOTH
from torch import Tensor
from transformers import BertConfig

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels.integrations import spert

SIZE, WIDTH = 768, 10
REPLACES = "spert.models.SpERT"
Pool = Callable[[Tensor, Tensor], Tensor]


def drawn(length: int, dtype: torch.dtype) -> Tensor:
    """Hidden states of one document."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, length, SIZE, generator=generator).to(dtype).requires_grad_()


def masks_of(spans: Tensor, length: int) -> Tensor:
    """Half-open spans `[N, 2]` as SpERT has them: `[1, N, L]`."""
    places = torch.arange(length)
    return ((places >= spans[:, :1]) & (places < spans[:, 1:]))[None]


def candidates(length: int) -> Tensor:
    return masks_of(all_spans(length, WIDTH) + torch.tensor([0, 1]), length)


def contexts(length: int, count: int) -> Tensor:
    """The tokens between two entities, one pair in ten side by side."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randint(0, length - 40, (count,), generator=generator)
    width = torch.randint(0, 40, (count,), generator=generator).masked_fill(torch.arange(count) % 10 == 0, 0)
    return masks_of(torch.stack([start, start + width], 1), length)


def pooling(masks: Callable[[], Tensor], pool: Pool) -> Build:
    def build(dtype: torch.dtype) -> Side:
        marked = masks()
        hidden = drawn(marked.shape[-1], dtype)
        return Side(lambda: pool(hidden, marked), [hidden])

    return build


def our_candidates(hidden: Tensor, masks: Tensor) -> Tensor:
    return spert.pooled_candidates(hidden, *spert.bounds_of(masks))


def their_contexts(hidden: Tensor, masks: Tensor) -> Tensor:
    found = masked_maximum(hidden, masks)
    found[masks.to(torch.uint8).any(-1) == 0] = 0
    return found


def our_contexts(hidden: Tensor, masks: Tensor) -> Tensor:
    return spert.pooled(hidden, *spert.bounds_of(masks))


def in_pieces(pool: Pool, hidden: Tensor, masks: Tensor) -> Tensor:
    return torch.cat([pool(hidden, part) for part in masks.split(64, 1)], 1)


def case(name: str, masks: Callable[[], Tensor], theirs: Pool, ours: Pool, **more: object) -> SpanLayerCase:
    pieces = pooling(masks, partial(in_pieces, theirs))
    return SpanLayerCase(name, REPLACES, pooling(masks, theirs), pooling(masks, ours), exact=pieces, **more)  # type: ignore[arg-type]


def classifier(ours: bool) -> Build:
    """The scores of all candidates, from hidden states on."""

    def build(dtype: torch.dtype) -> Side:
        torch.manual_seed(0)
        config = BertConfig(vocab_size=30, hidden_size=SIZE, num_hidden_layers=0)
        model = SpERT(config, 0, 6, 5, size_embedding=25, prop_drop=0.1, freeze_transformer=False).eval().to(dtype)
        masks, hidden = candidates(128), drawn(128, dtype)
        encodings = (torch.arange(128) > 0).long()[None]
        lengths = masks.sum(-1)

        def way() -> Tensor:
            sizes = model.size_embeddings(lengths)
            if ours:
                return spert.classify_entities(model, encodings, hidden, spert.bounds_of(masks), sizes)[0]
            return model._classify_entities(encodings, hidden, masks, sizes)[0]

        return Side(way, [hidden, *model.entity_classifier.parameters(), *model.size_embeddings.parameters()])

    return build


ASKED = {"goal": 50, "peaks": True}

CASES = (
    case("pooling 195 candidates in 24 tokens", lambda: candidates(24), masked_maximum, our_candidates, quick=True),
    case("pooling 1,235 candidates in 128 tokens", lambda: candidates(128), masked_maximum, our_candidates, **ASKED),
    case(
        "pooling 5,075 candidates in 512 tokens",
        lambda: candidates(512),
        masked_maximum,
        our_candidates,
        large=True,
        **ASKED,
    ),
    case(
        "pooling the contexts of 1,000 relations in 128 tokens",
        lambda: contexts(128, 1000),
        their_contexts,
        our_contexts,
        directions=(BOTH,),
        **ASKED,
    ),
    SpanLayerCase(
        "scores of 1,235 candidates in 128 tokens",
        REPLACES,
        classifier(ours=False),
        classifier(ours=True),
        directions=(BOTH,),
    ),
)
