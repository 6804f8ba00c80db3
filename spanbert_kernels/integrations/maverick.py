"""Maverick and xCoRe: the scores of mentions, with the layers in front of them once a token instead of once a span.

Both find the tokens that start a mention and score every span from there to the end of its sentence: two layers over
the one bound, two over the other, and two over both, each with a LayerNorm inside. The published code gives the layers
named after the start the states of the *end*, and the other way round; trained weights depend on that, so it stays so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.acceleration.span_layers import OriginalPath, Replacement, probe_refusal
from spanbert_kernels.integrations import folding
from spanbert_kernels.nn.linear import run_linear

_TEST = "test"


@dataclass(frozen=True)
class Version:
    """How a model's extraction of mentions differs from the others'.

    Attributes:
        class_path: the model's class.
        method: its method.
        batched: whether masks and gold tensors come with a leading dimension of one document each.
        start_loss_in_test, mention_loss_in_test: whether a loss is taken at the stage "test" too, if gold is there.
    """

    class_path: str
    method: str
    batched: bool
    start_loss_in_test: bool
    mention_loss_in_test: bool


VERSIONS = (
    Version("maverick.models.model_mes.Maverick_mes", "eos_mention_extraction", True, True, False),
    Version("maverick.models.model_s2e.Maverick_s2e", "squad_mention_extraction", True, True, True),
    Version("maverick.models.model_incr.Maverick_incr", "squad_mention_extraction", True, True, True),
    Version("xcore.models.model_cross.xCoRe_system", "eos_mention_extraction", False, False, False),
)


def score_mentions(module: Any, states: Tensor, spans: Tensor) -> Tensor:
    """The logits of spans `[M, 2]`, sorted, in one document's `states [L, H]`: `[M]`.

    Dropout of the layers in front is drawn once a token: that of one span is as before, those of spans that share a
    token go together.

    Raises:
        OriginalPath: layers that were changed, or spans that end before they start.
    """
    layer = module.start_end_classifier.layer
    folding.check_called(module.start_end_classifier, layer)
    folding.check_read(layer.dense1, layer.dropout, layer.activation_func, layer.layer_norm, layer.dense)
    dropout_p = layer.dropout.p if layer.dropout.training else 0.0
    if dropout_p == 1 or layer.activation_func.approximate != "none":
        raise OriginalPath(f"a dropout of {dropout_p}, or an activation that is not the exact GELU")
    if (spans[:, 0] > spans[:, 1]).any():
        raise OriginalPath("a mask that lets mentions end before they start")
    starts = spans[:, 0].unique_consecutive()
    used = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    used[spans.flatten()] = True
    place = used.cumsum(0) - 1
    # gelu(dropout(x)) is (1 - p) dropout(gelu(x / (1 - p))), and to a LayerNorm a factor is one of its epsilon.
    kept = 1 - dropout_p
    weight, bias = layer.dense1.weight, layer.dense1.bias
    of_end, of_start = (weight if kept == 1 else weight / kept).chunk(2, 1)
    tokens, of_end, added = _of_bounds(module.start_token_representation.layer, states[used], of_end)
    norm, wide = layer.layer_norm, torch.promote_types(states.dtype, torch.float32)
    own = module.end_token_representation(states[starts]).to(wide)
    with torch.autocast(states.device.type, enabled=False):
        own = F.linear(own, of_start.to(wide), (bias / kept).to(wide))
        own = own if added is None else own + added
    # Only few tokens start a mention: what they add is the bias of all spans that begin there.
    offsets = torch.cat([place[starts], place.new_full((1,), len(tokens))])
    return ops.span_score(
        tokens, place[spans], ["end"], of_end, own, layer.dense.weight[0], layer.dense.bias, activation="gelu",
        dropout_p=dropout_p, norm=(norm.weight, norm.bias, norm.eps / kept**2),
        cu_seqlens=offsets,
    )  # fmt: skip


def _of_bounds(layer: Any, states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, a weight and a bias: `layer(states)` times `weight`, as it is with more than a weight's rows of tokens.

    Then two weights without an activation between make one, at the price of one product of weights.
    """
    folding.check_called(layer)
    folding.check_read(layer.dense1, layer.layer_norm, layer.dense)
    if len(states) <= layer.dense.out_features:
        return layer(states), weight, None
    inner = layer.layer_norm(layer.activation_func(layer.dropout(run_linear(layer.dense1, states))))
    return inner, *folding.fold(weight, layer.dense)


def _loss(logits: Tensor, gold: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, gold)


def _probable(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits) > 0.5


def extract_mentions(
    module: Any,
    version: Version,
    states: Tensor,
    allowed: Tensor,
    gold_mentions: Tensor | None,
    gold_starts: Tensor | None,
    stage: str,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """What the method returns for `states [B, L, H]` and `allowed [B, L, L]`, which is 1 where a span may stand.

    Predicted starts and mentions of each document, and the losses of both.
    """
    device = module.encoder.device
    start_loss, mention_loss = (torch.tensor([0.0], requires_grad=True, device=device) for _ in range(2))
    found_starts, found_mentions = [], []
    tests = stage == _TEST
    for row, document in enumerate(states):
        start_logits = module.start_token_classifier(document).squeeze(-1)
        if gold_starts is not None and (version.start_loss_in_test or not tests):
            start_loss = start_loss + _loss(start_logits, gold_starts[row])
        starts = _probable(start_logits).nonzero().squeeze(-1)
        found_starts.append(starts.detach().clone())
        if stage == "train":
            assert gold_starts is not None
            starts = _probable(gold_starts[row]).nonzero().squeeze(-1)
        spans = (allowed[row][starts] == 1).nonzero()
        spans[:, 0] = starts[spans[:, 0]]
        logits = score_mentions(module, document, spans)
        found_mentions.append(spans[_probable(logits)].detach().clone())
        if len(logits) and gold_mentions is not None and (version.mention_loss_in_test or not tests):
            mention_loss = mention_loss + _loss(logits, gold_mentions[row][spans[:, 0], spans[:, 1]])
    return found_starts, found_mentions, start_loss, mention_loss


def _make(version: Version) -> Callable[[Any], Callable[..., Any]]:
    def make(module: Any) -> Callable[..., Any]:
        def of_batch(
            lhs: Tensor, eos_mask: Tensor, gold_mentions: Tensor | None, gold_starts: Tensor | None, stage: str
        ) -> Any:
            if gold_starts is None and stage == "train":
                raise OriginalPath("no gold starts to train with")
            return extract_mentions(module, version, lhs, eos_mask, gold_mentions, gold_starts, stage)

        def of_one(
            lhs: Tensor, mask: Tensor, gold_mentions: Tensor | None, gold_starts: Tensor | None, stage: str
        ) -> Any:
            if (gold_starts is None) != (gold_mentions is None) or (gold_starts is None and stage != _TEST):
                raise OriginalPath(f"gold starts and mentions that the stage {stage!r} asks for are not there")
            mentions, starts = (None if each is None else each.unsqueeze(0) for each in (gold_mentions, gold_starts))
            return extract_mentions(module, version, lhs, mask.unsqueeze(0), mentions, starts, stage)

        return of_batch if version.batched else of_one

    return make


def _refusal(module: Any, version: Version) -> str | None:
    for name in ("start_token_representation", "end_token_representation", "start_end_classifier"):
        layer = getattr(getattr(module, name, None), "layer", None)
        if type(layer).__name__ != "FullyConnectedLayer":
            return f"its {name} is not two fully connected layers"
    weight = module.start_token_classifier.layer.dense1.weight
    states = torch.linspace(-9, 9, 4 * weight.shape[1], device=weight.device).sin().view(1, 4, -1).to(weight.dtype)
    allowed = torch.zeros(1, 4, 4, device=weight.device)
    allowed[0, 1, 3] = 1
    # The loss of a label so large is the logit times that.
    masks = (allowed, 1000 * allowed, allowed.amax(2))
    call = (states, *(masks if version.batched else (each[0] for each in masks)), "train")
    own, ours = getattr(type(module), version.method).__get__(module), _make(version)(module)
    return probe_refusal(module, lambda: own(*call)[2:], lambda: ours(*call)[2:])


REPLACEMENTS = tuple(
    Replacement(
        version.class_path,
        "mentions are scored from layers that ran once a token",
        make=_make(version),
        method=version.method,
        refusal=partial(_refusal, version=version),
    )
    for version in VERSIONS
)
