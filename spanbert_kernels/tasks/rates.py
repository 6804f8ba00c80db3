"""Learning rates of parts of a model: its head's, its encoder's, and those of the encoder's lower layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn, optim

NEW = "cross_document"  # in the names of layers that a published encoder does not have
LAYER = re.compile(r"\.layers?\.(\d+)\.")


def rate_of(model: nn.Module, rate: float, head_rate: float | None, layer_decay: float = 1.0) -> Callable[[str], float]:
    """The learning rate of a parameter, by its name.

    Args:
        rate: of the encoder's last layer.
        head_rate: of what stands on the encoder and of its cross-document layers; None for `rate`.
        layer_decay: what a layer's rate is to that of the layer above it; embeddings are the lowest.
    """
    encoder = _encoder(model)
    names = {f"{encoder}.{name}" if encoder else name for name, _ in model.get_submodule(encoder).named_parameters()}
    depths = {name: int(found[1]) for name in names if (found := LAYER.search(f".{name}"))}
    layers = max(depths.values(), default=-1) + 1

    def of(name: str) -> float:
        if name not in names or NEW in name:
            return rate if head_rate is None else head_rate
        above = layers - 1 - depths[name] if name in depths else layers if "embeddings" in name else 0
        return float(rate * layer_decay**above)

    return of


def _encoder(model: Any) -> str:
    """The name of the encoder in a model; "" where the model is one."""
    prefix = getattr(model, "base_model_prefix", "")
    for name in (prefix, "encoder"):
        if name and isinstance(getattr(model, name, None), nn.Module):
            return str(name)
    return ""


def set_rates(optimizer: optim.Optimizer, model: nn.Module, of: Callable[[str], float]) -> None:
    """Splits the optimizer's groups by the rates of their parameters."""
    rates = {parameter: of(name) for name, parameter in model.named_parameters()}
    for group in list(optimizer.param_groups):
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(rates[parameter], []).append(parameter)
        (rate, own), *others = parts.items() if parts else [(group["lr"], [])]
        group.update(params=own, lr=rate)
        rest = {name: value for name, value in group.items() if name not in ("params", "lr")}
        for rate, own in others:
            optimizer.add_param_group({**rest, "params": own, "lr": rate})
