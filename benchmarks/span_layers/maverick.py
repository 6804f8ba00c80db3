"""Maverick and xCoRe: finding the mentions of a document, from hidden states to both losses."""

from __future__ import annotations

from typing import Any

import torch
from originals import maverick as definition

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels import accelerate

SIZE = 1024
METHOD = "eos_mention_extraction"


def extraction(name: str, tokens: int, sentence: int, fused: bool) -> Build:
    """One token in six starts a mention; dropout is off, so that results can be compared."""

    def build(dtype: torch.dtype) -> Side:
        torch.manual_seed(0)
        model: Any = getattr(definition, name)(SIZE).eval().to(dtype)
        if fused:
            accelerate(model)
        generator = torch.Generator().manual_seed(1)
        states = torch.randn(1, tokens, SIZE, generator=generator).to(dtype).requires_grad_()
        allowed = definition.sentences(tokens, sentence).to(dtype)
        starts = (torch.rand(1, tokens, generator=generator) < 1 / 6).to(dtype)
        mentions = (torch.rand(1, tokens, tokens, generator=generator) < 0.1).to(dtype) * allowed * starts[..., None]
        masks = (allowed, mentions, starts)
        if name == "xCoRe_system":
            masks = tuple(each[0] for each in masks)  # type: ignore[assignment]

        def way() -> torch.Tensor:
            *_, start_loss, mention_loss = getattr(model, METHOD)(states, *masks, "train")
            return torch.cat([start_loss, mention_loss])

        return Side(way, [states, *model.parameters()])

    return build


def case(path: str, tokens: int, sentence: int, **more: Any) -> SpanLayerCase:
    name = path.rpartition(".")[2]
    title = f"{name}, {tokens:,} tokens in sentences of {sentence}"
    sides = [extraction(name, tokens, sentence, fused) for fused in (False, True)]
    return SpanLayerCase(title, path, *sides, peaks=True, **more)


MAVERICK, XCORE = "maverick.models.model_mes.Maverick_mes", "xcore.models.model_cross.xCoRe_system"
CASES = (
    case(MAVERICK, 2048, 60, goal=8),
    case(MAVERICK, 2048, 25, goal=8),
    case(XCORE, 1024, 60, goal=5),
    case(XCORE, 1024, 25, goal=5),
)
