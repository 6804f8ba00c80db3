"""Putting the packed forward into a model, and taking it out again."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from spanbert_kernels.acceleration import places, span_layers
from spanbert_kernels.acceleration.families import FAMILIES, class_refusal, family_of, loss_reads_padding, reads_of
from spanbert_kernels.acceleration.family import Family, override_refusal
from spanbert_kernels.acceleration.forward import PackedForward
from spanbert_kernels.acceleration.packed import Weights, int8_refusal
from spanbert_kernels.acceleration.report import AccelerationReport, Replaced, ReplacedSpanLayer, Skipped
from spanbert_kernels.acceleration.structure import Structure


def accelerate(
    model: Any, *, weights: Weights | None = None, repack: bool = True, cuda_graphs: bool = False
) -> AccelerationReport:
    """Lets every encoder in `model` that is of a family in the table run without padding, in place.

    Span layers of other packages that are known (the table of `acceleration/span_layers.py`) are computed without the
    large tensors that they form; their results are the same.

    Parameters, `state_dict`, `save_pretrained` and the outputs at real tokens stay as they are; padded positions are 0.
    What the packed path cannot do (attention matrices, masks that are not `[batch, length]`, a pooler in front of a
    padded first token, hooks inside the encoder) runs as before, with one `AccelerationWarning`.
    Give it the whole model, head included: some heads read token 0 themselves. Doing it twice changes nothing.
    Without compiled attention PyTorch's takes its place, on padded rows: still faster than before where there is
    padding, and the report says what is missing.

    Args:
        model: a transformers encoder, any module that holds some (`SentenceTransformer`, `GLiNER`), or an object with
            such modules among its attributes (a `pipeline`, a `SetFitModel`). The report names the places.
        weights: "int8" multiplies with weights and inputs of 8 bits in inference on a CPU, which changes results by
            some hundredths of the largest hidden state (`report.int8_error`, after the first call).
        repack: inference on a CPU keeps copies of the weights that are laid out for its products. False saves that
            memory, for most of the gain.
        cuda_graphs: inference on a GPU captures the layers in CUDA graphs, one for each bucket of sizes that comes up,
            for batches so small that launches take longer than kernels. The report says of each call which way it ran.

    Returns:
        What was replaced, what was not and why; it also counts which path each call takes.

    Raises:
        TypeError: `model` neither is a module nor has one.
        ValueError: there is nothing to accelerate in it; or `weights` is "int8", and this processor or the encoder
            cannot; or `cuda_graphs` without `repack`.

    Example:
        >>> import torch
        >>> import spanbert_kernels as sk
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = BertModel(config).eval()
        >>> report = sk.accelerate(model)
        >>> print(report.replaced[0])
        BertModel, 1 layer
        >>> with torch.no_grad():
        ...     output = model(torch.tensor([[2, 3, 0]]), torch.tensor([[1, 1, 0]]))
        >>> report.last_path, output.last_hidden_state[0, 2].abs().sum().item()
        ('packed-inference', 0.0)
        >>> sk.restore(model)
    """
    found = _modules_in(model, "accelerate")
    if weights not in (None, *get_args(Weights)):
        raise ValueError(f"weights must be None or one of {list(get_args(Weights))}, got {weights!r}")
    if weights == "int8" and not repack:
        raise ValueError('weights="int8" are copies: repack=False leaves none')
    if cuda_graphs and not repack:
        raise ValueError("cuda_graphs=True reads copies of weights: repack=False leaves none")
    replaced: list[Replaced] = []
    skipped: list[Skipped] = []
    spans, fresh = _replace_span_layers({**_holder(model), **found}, skipped)
    for module, name in found.items():
        family = family_of(module)
        class_name = type(module).__name__
        if family is None:
            refused = class_refusal(module)
            if refused is not None:
                skipped.append(Skipped(name, class_name, refused))
            continue
        heads = [parent for parent in found if module in parent._modules.values()]
        reads = reads_of(family, heads)
        installed = places.installed(module)
        if installed is not None:
            installed.reads, installed.loss_reads_padding = reads, loss_reads_padding(heads)
            installed.configure(weights, repack, cuda_graphs)
            replaced.append(Replaced(name, class_name, len(family.layers_of(module)), installed))
            continue
        structure = _inspect(module, family)
        if isinstance(structure, str):
            skipped.append(Skipped(name, class_name, structure))
            continue
        refused = int8_refusal(structure.parts) if weights == "int8" else None
        if refused is not None:
            raise ValueError(f"{class_name} cannot run with weights of 8 bits: {refused}")
        forward = PackedForward(module, family, reads, weights, repack, cuda_graphs)
        forward.loss_reads_padding = loss_reads_padding(heads)
        places.install(module, forward)
        fresh = True
        replaced.append(Replaced(name, class_name, len(structure.parts.layers), forward))
    if not replaced and not spans:
        known = ", ".join(family.model_class for family in FAMILIES)
        itself = [each.reason for each in skipped if each.name == ""]
        why = "; ".join(itself or map(str, skipped)) or (
            f"it holds no encoder of a supported class ({known}) and no span layer that is known "
            f"({', '.join(span_layers.SPAN_LAYERS)})"
        )
        raise ValueError(f"{type(model).__name__} has nothing to accelerate: {why}")
    return AccelerationReport(tuple(replaced), tuple(skipped), already=not fresh, span_layers=tuple(spans))


def restore(model: Any) -> None:
    """Undoes `accelerate`: encoders and span layers in `model` have their own forward, and repacked weights are let go.

    Args:
        model: what was given to `accelerate`, or any module that holds it.

    Raises:
        TypeError: `model` neither is a module nor has one.
        ValueError: nothing in it was accelerated.

    Example:
        >>> import spanbert_kernels as sk
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = BertModel(config)
        >>> _ = sk.accelerate(model)
        >>> sk.restore(model)
        >>> "forward" in vars(model)
        False
    """
    found = _modules_in(model, "restore")
    spans = [(each, stands) for each in (*_holder(model), *found) for stands in span_layers.all_installed(each)]
    for module, stands in spans:
        span_layers.remove(module, stands)
    encoders = [module for module in found if places.installed(module) is not None]
    for module in encoders:
        places.remove(module)
    if not encoders and not spans:
        raise ValueError(f"{type(model).__name__} is not accelerated")


def _holder(model: Any) -> dict[Any, str]:
    """An object that is no module but holds some, if methods of its class are replaced."""
    return {} if isinstance(model, nn.Module) or not span_layers.replacements_of(model) else {model: ""}


def _replace_span_layers(found: dict[Any, str], skipped: list[Skipped]) -> tuple[list[ReplacedSpanLayer], bool]:
    """What is replaced, and whether something was not before; what is not, and why, is added to `skipped`."""
    spans: list[ReplacedSpanLayer] = []
    fresh = False
    for module, name in found.items():
        for replacement in span_layers.replacements_of(module):
            stands = span_layers.installed(module, replacement.method)
            refused = None if stands is not None else span_layers.refusal(module, replacement)
            if refused is not None:
                skipped.append(Skipped(name, type(module).__name__, refused))
                continue
            fresh = fresh or stands is None
            stands = stands or span_layers.install(module, replacement)
            spans.append(ReplacedSpanLayer(name, type(module).__name__, stands))
    return spans, fresh


def _modules_in(model: Any, function: str) -> dict[nn.Module, str]:
    """Every module of a module, or of those among an object's attributes, with its path."""
    if isinstance(model, nn.Module):
        return {module: name for name, module in model.named_modules()}
    held = {name: value for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)}
    if not held:
        raise TypeError(f"{function} takes a torch.nn.Module or an object that has one, got {type(model).__name__}")
    found: dict[nn.Module, str] = {}
    for root, value in held.items():
        for name, module in value.named_modules():
            found.setdefault(module, f"{root}.{name}" if name else root)
    return found


def _inspect(module: nn.Module, family: Family) -> Structure | str:
    reason = places.refusal(module)
    if reason is not None:
        return reason
    if getattr(module.config, "is_decoder", False):
        return "it is a decoder"
    return override_refusal(module, family) or Structure.read(module, family)
