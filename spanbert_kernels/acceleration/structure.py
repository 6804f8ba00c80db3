"""Is an encoder built the way the packed forward computes it, and is it still?

Whatever was put inside it (adapters, hooks, parametrisations, a forward of its own) must keep its effect, so an encoder
that is not exactly as transformers builds it is left to transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from spanbert_kernels.acceleration.families import Family, mixes_documents

_ACTIVATION = "intermediate.intermediate_act_fn"
_LAYER: dict[str, str | type[nn.Module]] = {
    "": "Layer",
    "attention": "Attention",
    "attention.self": "SelfAttention",
    "attention.self.query": nn.Linear,
    "attention.self.key": nn.Linear,
    "attention.self.value": nn.Linear,
    "attention.self.dropout": nn.Dropout,
    "attention.output": "SelfOutput",
    "attention.output.dense": nn.Linear,
    "attention.output.LayerNorm": nn.LayerNorm,
    "attention.output.dropout": nn.Dropout,
    "intermediate": "Intermediate",
    "intermediate.dense": nn.Linear,
    "output": "Output",
    "output.dense": nn.Linear,
    "output.LayerNorm": nn.LayerNorm,
    "output.dropout": nn.Dropout,
}
# All of them work token by token, so that the tokens can be packed before.
_EMBEDDING_PARTS = (nn.Embedding, nn.LayerNorm, nn.Dropout)
# Hooks that transformers itself leaves behind, and that mean nothing to the packed forward or work in it as they are.
_HARMLESS_HOOKS = {"output_capturing_hook", "make_inputs_require_grads", "make_inputs_require_grad"}


class LayerParts(NamedTuple):
    """The modules of one layer, looked up once."""

    layer: Any
    attention: Any
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_dropout: nn.Dropout
    attention_dense: nn.Linear
    attention_norm: nn.LayerNorm
    attention_output_dropout: nn.Dropout
    up: nn.Linear
    activation: Any
    down: nn.Linear
    norm: nn.LayerNorm
    output_dropout: nn.Dropout

    @classmethod
    def of(cls, layer: Any) -> LayerParts:
        """The parts of a layer that `layer_refusal` accepts."""
        attention = layer.attention.self
        inner, outer = layer.attention.output, layer.output
        return cls(
            layer,
            attention,
            attention.query,
            attention.key,
            attention.value,
            attention.dropout,
            inner.dense,
            inner.LayerNorm,
            inner.dropout,
            layer.intermediate.dense,
            layer.intermediate.intermediate_act_fn,
            outer.dense,
            outer.LayerNorm,
            outer.dropout,
        )

    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """The Linears of queries, keys and values."""
        return self.query, self.key, self.value

    def products(self) -> tuple[nn.Linear, ...]:
        """All Linears."""
        return (*self.projections(), self.attention_dense, self.up, self.down)

    def parameters(self) -> list[Tensor]:
        """The weights and biases that there are: of the Linears, then of the norms."""
        found = []
        for module in (*self.products(), self.attention_norm, self.norm):
            # Parameters are quicker to get at as such; a parametrisation or a deleted parameter is an attribute.
            held = module._parameters
            for name in ("weight", "bias"):
                tensor = held[name] if name in held else getattr(module, name)
                if tensor is not None:
                    found.append(tensor)
        return found

    def drops(self) -> bool:
        """Whether any dropout of the layer is at work."""
        return (
            (self.attention.training and self.attention_dropout.p > 0.0)
            or (self.attention_output_dropout.training and self.attention_output_dropout.p > 0.0)
            or (self.output_dropout.training and self.output_dropout.p > 0.0)
        )


def layer_refusal(layer: nn.Module, family: Family, *, mixes: bool = False) -> str | None:
    """Why a layer is not what the packed forward computes, or None. `mixes`: a `cross_document` sub-layer may stand."""
    found = dict(layer.named_modules(remove_duplicate=False))
    for name, kind in _LAYER.items():
        module = found.pop(name, None)
        expected = family.prefix + kind if isinstance(kind, str) else kind.__name__
        where = name or "a layer"
        if module is None:
            return f"{where} is missing, where transformers has a {expected}"
        subclass = mixes and not name
        if not (family.is_class(module, kind, subclass=subclass) if isinstance(kind, str) else type(module) is kind):
            return f"{where} is a {type(module).__module__}.{type(module).__qualname__}, not transformers' {expected}"
        patched = family.patch_refusal(type(module)) if isinstance(kind, str) and not subclass else None
        if patched is not None:
            return patched
    known = (_ACTIVATION, "cross_document") if mixes else (_ACTIVATION,)
    for name in found:
        if not name.startswith(known):
            return f"a layer holds {name}, which transformers' {family.prefix}Layer does not"
    return None


def _interference(module: nn.Module) -> str | None:
    if "forward" in module.__dict__:
        return f"the forward of a {type(module).__name__} inside was replaced"
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(getattr(hook, "__name__", "") not in _HARMLESS_HOOKS for each in hooks for hook in each.values()):
        return f"a {type(module).__name__} inside has hooks"
    return None


@dataclass
class Structure:
    """An encoder that was looked through: its layers' parts, and what to compare to see that it is still the same."""

    embeddings: Any
    encoder: Any
    layers: list[LayerParts]
    modules: list[tuple[nn.Module, type[nn.Module], tuple[nn.Module | None, ...]]]
    # Activations that are functions, and so no modules: the attributes that hold them.
    functions: list[tuple[dict[str, Any], Any]]

    @classmethod
    def read(cls, model: Any, family: Family) -> Structure | str:
        """The structure of a model of `family`, or why it is not as transformers builds it."""
        embeddings, encoder = getattr(model, "embeddings", None), getattr(model, "encoder", None)
        if embeddings is None or not family.is_class(embeddings, "Embeddings"):
            return f"its embeddings are a {type(embeddings).__name__}, not transformers' {family.prefix}Embeddings"
        for part in embeddings.children():
            if type(part) not in _EMBEDDING_PARTS:
                return f"its embeddings hold a {type(part).__module__}.{type(part).__qualname__}"
        mixes = mixes_documents(model)
        if encoder is None or not family.is_class(encoder, "Encoder", subclass=mixes):
            return f"its encoder is a {type(encoder).__name__}, not transformers' {family.prefix}Encoder"
        for module in (embeddings, encoder):
            patched = family.patch_refusal(type(module)) if module is embeddings or not mixes else None
            if patched is not None:
                return patched
        for layer in encoder.layer:
            reason = layer_refusal(layer, family, mixes=mixes)
            if reason is not None:
                return reason
        modules = [*embeddings.modules(), *encoder.modules()]
        for module in modules:
            reason = _interference(module)
            if reason is not None:
                return reason
        layers = [LayerParts.of(layer) for layer in encoder.layer]
        seen = [(module, type(module), tuple(module._modules.values())) for module in modules]
        functions = [
            (parts.layer.intermediate.__dict__, parts.activation)
            for parts in layers
            if not isinstance(parts.activation, nn.Module)
        ]
        return cls(embeddings, encoder, layers, seen, functions)

    def holds(self, model: Any) -> bool:
        """Whether the model is still the one that was read. Called once per forward: about 0.1 ms for 12 layers."""
        if model.embeddings is not self.embeddings or model.encoder is not self.encoder:
            return False
        for module, kind, children in self.modules:
            if (
                type(module) is not kind
                or tuple(module._modules.values()) != children
                or "forward" in module.__dict__
                or ((module._forward_hooks or module._forward_pre_hooks) and _interference(module))
                or ((module._backward_hooks or module._backward_pre_hooks) and _interference(module))
            ):
                return False
        return all(attributes.get("intermediate_act_fn") is function for attributes, function in self.functions)
