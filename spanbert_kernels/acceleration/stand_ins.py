"""What other libraries put around or in the place of a layer's Linears: it is called, where otherwise weights are read.

Adapters, quantized Linears and modules whose weights come when they are called all work token by token, so that the
packed tokens can be handed to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_READ = (nn.Linear, nn.LayerNorm, nn.Embedding)
# Classes that compute what PyTorch's does, from parameters of the same names.
_SAME = {("transformers.models.deberta.modeling_deberta", "DebertaLayerNorm")}
# Where the classes are from that stand for a class of PyTorch's, and their names.
_STAND_INS: dict[type[nn.Module], set[tuple[str, str]]] = {
    nn.Linear: {
        ("peft.tuners.adalora.layer", "SVDLinear"),
        ("peft.tuners.ia3.layer", "Linear"),
        ("peft.tuners.loha.layer", "Linear"),
        ("peft.tuners.lokr.layer", "Linear"),
        ("peft.tuners.lora.layer", "Linear"),
        ("peft.tuners.vera.layer", "Linear"),
        ("torch.ao.nn.quantized.dynamic.modules.linear", "Linear"),
    },
    nn.Embedding: {("peft.tuners.lora.layer", "Embedding")},
    nn.LayerNorm: _SAME,
}


def is_or_stands_for(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a module is exactly of PyTorch's class `kind`, or known to act in its place, token by token.

    Example:
        >>> is_or_stands_for(nn.Linear(1, 1), nn.Linear), is_or_stands_for(nn.Bilinear(1, 1, 1), nn.Linear)
        (True, False)
    """
    place = (type(module).__module__, type(module).__name__)
    return type(module) is kind or place in _STAND_INS.get(kind, ())


def is_read(module: nn.Module) -> bool:
    """Whether a module computes what its weights say, so that they may be read instead of calling it."""
    known = type(module) in _READ or (type(module).__module__, type(module).__name__) in _SAME
    return known and "forward" not in module.__dict__


def waits_for_weights(module: nn.Module) -> bool:
    """Whether a replaced forward is that of Hugging Face's `accelerate`, which brings weights and inputs to a device.

    Such a module may be called in the layers' place, or be one that only holds others that are.
    """
    hooks = list(_device_hooks(module))
    known = all(type(hook).__module__ == "accelerate.hooks" and hasattr(hook, "execution_device") for hook in hooks)
    if not hooks or not known:
        return False
    if any(module.children()):
        return not any(hook.offload and hook.place_submodules for hook in hooks)
    return type(module) in _READ


def is_sharded(module: nn.Module) -> bool:
    """Whether hooks of PyTorch's FSDP2 bring the module's weights together for each of its calls."""
    return any(map(shards, module._forward_pre_hooks.values()))


def shards(hook: Any) -> bool:
    """Whether a hook is one of FSDP2's, which leave what goes through the module as it is."""
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp._fully_shard")


def devices_of(modules: Iterable[nn.Module]) -> set[torch.device]:
    """The devices on which hooks of Hugging Face's `accelerate` make these modules compute."""
    devices = (hook.execution_device for module in modules for hook in _device_hooks(module))
    return {torch.device(device) for device in devices if device is not None}


def _device_hooks(module: nn.Module) -> Iterable[Any]:
    hook = module.__dict__.get("_hf_hook")
    return () if hook is None else getattr(hook, "hooks", (hook,))
