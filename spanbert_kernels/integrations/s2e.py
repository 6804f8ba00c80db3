"""s2e-coref's model: mentions out of a band, antecedents of the mentions kept alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from spanbert_kernels.acceleration.span_layers import Replacement
from spanbert_kernels.integrations import fastcoref, start_to_end


def s2e(model: Any) -> Callable[..., tuple[Any, ...]]:
    """What stands for `S2E.forward`."""

    def forward(
        input_ids: Tensor, attention_mask: Any = None, gold_clusters: Any = None, return_all_outputs: bool = False
    ) -> tuple[Any, ...]:
        hidden = model.longformer(input_ids, attention_mask=attention_mask)[0]
        start, end = (
            hidden if mlp is None else mlp(hidden) for mlp in (model.start_mention_mlp, model.end_mention_mlp)
        )
        found = start_to_end.mentions(model, start, end, attention_mask, return_all_outputs)
        logits = fastcoref.pair_logits(model, hidden, found)
        outputs = (found.starts, found.ends, logits, found.logits) if return_all_outputs else ()
        loss = fastcoref.loss_of(model, logits, found, gold_clusters)
        return (*loss, *outputs, *({"loss": each} for each in loss))

    return forward


def refusal(model: Any) -> str | None:
    """Copies of this class have other encoders."""
    return None if hasattr(model, "longformer") else "it has no encoder of the name longformer"


REPLACEMENTS = (Replacement("modeling.S2E", fastcoref.WHAT, s2e, covers=fastcoref.COVERS, refusal=refusal),)
