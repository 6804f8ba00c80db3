"""coref-hoi from the encoder's states to coarse antecedents, at the published sizes: states of 1,024, 3,000 units,
spans of up to 30 tokens, 0.4 mentions a token.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from originals.coref_hoi import CONFIG, CorefModel
from registry import BOTH
from torch import Tensor

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels.integrations import coref_hoi

REPLACES = "model.CorefModel"
SIZE, UNITS = 1024, 3000
KINK = 1e-5


def drawn(tokens: int, dtype: torch.dtype) -> tuple[CorefModel, Tensor]:
    """The model over an encoder's states, and those."""
    torch.manual_seed(0)
    encoder = torch.nn.Identity()
    encoder.config = SimpleNamespace(hidden_size=SIZE)  # type: ignore[assignment]
    model = CorefModel({**CONFIG, "ffnn_size": UNITS, "fine_grained": False}, "cpu", encoder).eval().to(dtype)
    hidden = torch.randn(tokens, SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
    return model, hidden.requires_grad_()


@lru_cache(maxsize=1)
@torch.no_grad()
def steady(tokens: int, sentence: int) -> Tensor:
    """Candidates none of whose units stands next to the kink of its activation, where rounding decides the gradient."""
    model, hidden = drawn(tokens, torch.float64)
    pairs = zip(*(each.split(2048) for each in model.candidates(torch.arange(tokens) // sentence)), strict=True)
    first = model.span_emb_score_ffnn[0]  # type: ignore[index]
    return torch.cat([first(model.vectors(hidden, *pair)).abs().amin(1) for pair in pairs]) > KINK


def build(tokens: int, sentence: int, ours: bool) -> Build:
    def made(dtype: torch.dtype) -> Side:
        model, hidden = drawn(tokens, dtype)
        sentences, kept_gradients = torch.arange(tokens) // sentence, steady(tokens, sentence)

        def way() -> Tensor:
            """The scores of candidates, and what a loss reads of the antecedents' scores."""
            if ours:
                found = coref_hoi.mentions(model, hidden, sentences)
                scores, best = found.candidate_scores, coref_hoi.antecedents(model, found).scores
            else:
                _, _, scores, kept, vectors = model.mentions(hidden, sentences)
                best = model.coarse(vectors, scores[kept])[0]
            scores = torch.where(kept_gradients, scores, scores.detach())
            return torch.cat([scores, torch.nn.functional.pad(best, (1, 0)).logsumexp(1)])

        unused = ("emb_genre", "emb_same_speaker", "emb_segment_distance", "emb_top_antecedent_distance")
        parameters = [each for name, each in model.named_parameters() if not name.startswith(unused)]
        return Side(way, [hidden, *parameters])

    return made


def case(tokens: int, sentence: int, **more: Any) -> SpanLayerCase:
    return SpanLayerCase(
        f"{tokens:,} tokens in sentences of {sentence:,}",
        REPLACES,
        build(tokens, sentence, ours=False),
        build(tokens, sentence, ours=True),
        goal=15,
        peaks=True,
        axes={"tokens": tokens},
        operations=2 * 3 * tokens * SIZE * UNITS,
        **more,
    )


CASES = (
    case(128, 32, quick=True),
    case(384, 384),
    case(1536, 1536, peak=0.2, directions=(BOTH,), large=True),
)
