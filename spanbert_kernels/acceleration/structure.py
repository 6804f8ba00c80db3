"""Is an encoder built the way the packed forward computes it, and is it still?

Whatever was put inside it (hooks, parametrisations, a forward of its own) must keep its effect, so an encoder that is
neither as transformers builds it nor holds what is known to stand for a part of it is left to transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from spanbert_kernels.acceleration.family import Family, mixes_documents
from spanbert_kernels.acceleration.layouts import at
from spanbert_kernels.acceleration.parts import EncoderParts, LayerParts
from spanbert_kernels.acceleration.stand_ins import devices_of, is_or_stands_for, shards, waits_for_weights

# All of them, and what stands for them, work token by token, so that the tokens can be packed before.
_EMBEDDING_PARTS = (nn.Embedding, nn.Linear, nn.LayerNorm, nn.Dropout)
# Hooks that transformers itself leaves behind, and that mean nothing to the packed forward or work in it as they are.
_HARMLESS_HOOKS = {"output_capturing_hook", "make_inputs_require_grads", "make_inputs_require_grad"}


def layer_refusal(layer: nn.Module, family: Family, *, mixes: bool = False) -> str | None:
    """Why a layer is not what the packed forward computes, or None. `mixes`: a `cross_document` sub-layer may stand."""
    found = dict(layer.named_modules(remove_duplicate=False))
    layout = family.layout
    for name, expected in family.layer_classes.items():
        module, subclass = found.pop(name, None), mixes and not name
        if module is None or not family.is_class(module, expected, subclass=subclass):
            return _another(name, module, expected)
        patched = None if subclass else family.patch_refusal(type(module))
        if patched is not None:
            return patched
    for name, reason in layout.refused.items():
        if name in found:
            return reason
    if layout.biases and "forward" in at(layer, layout.attention).__dict__:
        return f"the forward of a {type(at(layer, layout.attention)).__name__} inside was replaced"
    for name, kind in layout.torch_parts.items():
        module = found.pop(name, None)
        if not is_or_stands_for(module, kind) and not (type(module) is nn.Identity and name in layout.identities):
            return _another(name, module, kind.__name__)
    for name, kind in layout.optional.items():
        module = found.pop(name, None)
        if module is not None and not is_or_stands_for(module, kind):
            return _another(name, module, kind.__name__)
    known = (layout.activation, *layout.torch_parts, *layout.optional, *(["cross_document"] if mixes else []))
    for name in found:
        if not f"{name}.".startswith(tuple(f"{each}." for each in known)):
            return f"a layer holds {name}, which transformers' {family.layer_classes['']} does not"
    return None


def _another(name: str, module: nn.Module | None, expected: str) -> str:
    where = name or "a layer"
    if module is None:
        return f"{where} is missing, where transformers has a {expected}"
    return f"{where} is a {type(module).__module__}.{type(module).__qualname__}, not transformers' {expected}"


def _interference(module: nn.Module, called: bool) -> str | None:
    """Why what was put on a module is in the way, or None. `called`: it is called, and FSDP2's hooks with it."""
    if "forward" in module.__dict__ and not waits_for_weights(module):
        return f"the forward of a {type(module).__name__} inside was replaced"
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if not all(
        getattr(hook, "__name__", "") in _HARMLESS_HOOKS or (called and shards(hook))
        for each in hooks
        for hook in each.values()
    ):
        return f"a {type(module).__name__} inside has hooks"
    return None


def _class_refusal(model: Any, family: Family) -> str | None:
    """Why the encoder's own parts are not the family's, or None."""
    named = list(family.classes.items())
    if family.group_class is not None:
        named += [(f"{family.layers}.{index}", family.group_class) for index in range(len(at(model, family.layers)))]
    for path, expected in named:
        module, subclass = at(model, path), path == "encoder" and mixes_documents(model)
        if module is None or not family.is_class(module, expected, subclass=subclass):
            return f"its {path} is a {type(module).__name__}, not transformers' {expected}"
        patched = None if subclass else family.patch_refusal(type(module))
        if patched is not None:
            return patched
    for part in model.embeddings.children():
        if not any(is_or_stands_for(part, kind) for kind in _EMBEDDING_PARTS):
            return f"its embeddings hold a {type(part).__module__}.{type(part).__qualname__}"
    for feature in (family.rotary, family.relative, family.convolution):
        reason = None if feature is None else feature.refusal(model)
        if reason is not None:
            return reason
    norm = None if family.norm is None else at(model, family.norm)
    if family.norm is not None and type(norm) is not nn.LayerNorm:
        return f"its {family.norm} is a {type(norm).__name__}, not transformers' LayerNorm"
    return None


@dataclass
class Structure:
    """An encoder that was looked through: its layers' parts, and what to compare to see that it is still the same."""

    family: Family
    parts: EncoderParts
    roots: list[tuple[str, nn.Module]]
    layers: list[nn.Module]
    modules: list[tuple[nn.Module, type[nn.Module], tuple[nn.Module | None, ...], Any, bool]]
    # Activations that are functions, and so no modules: the attributes that hold them, and their names.
    functions: list[tuple[dict[str, Any], str, Any]]

    @classmethod
    def read(cls, model: Any, family: Family) -> Structure | str:
        """The structure of a model of `family`, or why it is not as transformers builds it."""
        reason = _class_refusal(model, family)
        if reason is not None:
            return reason
        layers = family.layers_of(model)
        distinct = list(dict.fromkeys(layers))
        for layer in distinct:
            reason = layer_refusal(layer, family, mixes=mixes_documents(model))
            if reason is not None:
                return reason
        roots = [(name, getattr(model, name)) for name in family.roots]
        modules = [module for _, root in roots for module in root.modules()]
        called = {model.embeddings, *distinct, *(getattr(layer, "cross_document", None) for layer in distinct)}
        for module in modules:
            reason = _interference(module, module in called)
            if reason is not None:
                return reason
        devices = devices_of([model, *modules])
        if len(devices) > 1:
            return f"its layers are on {len(devices)} devices ({', '.join(sorted(map(str, devices)))})"
        relative = None if family.relative is None else partial(family.relative.of, model)
        angles = None if family.rotary is None else family.rotary.angles(model)
        found = {layer: LayerParts.of(layer, family.layout, angles, relative) for layer in distinct}
        parts = EncoderParts(
            [found[layer] for layer in layers],
            None if family.norm is None else at(model, family.norm),
            None if family.convolution is None else family.convolution.of(model),
        )
        seen = [
            (each, type(each), tuple(each._modules.values()), each.__dict__.get("forward"), each in called)
            for each in modules
        ]
        owner, _, attribute = family.layout.activation.rpartition(".")
        functions = [
            (layer.get_submodule(owner).__dict__, attribute, each.activation)
            for layer, each in found.items()
            if not isinstance(each.activation, nn.Module)
        ]
        return cls(family, parts, roots, layers, seen, functions)

    def holds(self, model: Any) -> bool:
        """Whether the model is still the one that was read. Called once per forward: about 0.1 ms for 12 layers."""
        if any(getattr(model, name, None) is not root for name, root in self.roots):
            return False
        for module, kind, children, forward, called in self.modules:
            held = module.__dict__  # quicker than attributes
            hooked = (
                held["_forward_hooks"]
                or held["_forward_pre_hooks"]
                or held["_backward_hooks"]
                or held["_backward_pre_hooks"]
            )
            if (
                type(module) is not kind
                or (tuple(held["_modules"].values()) if held["_modules"] else ()) != children
                or held.get("forward") is not forward
                or (hooked and _interference(module, called))
            ):
                return False
        if self.family.layers_of(model) != self.layers:
            return False
        return all(attributes.get(name) is function for attributes, name, function in self.functions)
