"""Encoder layers on packed tokens on a GPU without autograd: few launches, and little Python between them.

A layer is one product for query, key and value, attention, a product, addition with LayerNorm, a product, the
activation, a product, addition with LayerNorm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.attention import Batch, attend
from spanbert_kernels.acceleration.gpu_graphs import Graphs
from spanbert_kernels.acceleration.gpu_program import PLAIN, GpuBatch, GpuProgram, LayerTensors, is_current, lie_well
from spanbert_kernels.acceleration.linears import activate, is_exact_gelu
from spanbert_kernels.acceleration.parts import EncoderParts, LayerParts, eps_of
from spanbert_kernels.ops.dropout_add_layer_norm.operators import LARGEST_ROW
from spanbert_kernels.ops.repeats import Repeats, unseen

# LayerTensors behind the first two, as (module, parameter), and which of them our kernels read.
MODULES = ("dense", "norm", "up", "down", "last_norm")
READS = tuple((name, kind) for name in MODULES for kind in ("weight", "bias"))
READ_BY_KERNELS = tuple(place for place, read in enumerate(READS) if "norm" in read[0] or read == ("up", "bias"))


def autocast_of(hidden: Tensor) -> torch.dtype | None:
    """In which dtype products are now where that is another than that of hidden states like these."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return None
    dtype = torch.get_autocast_dtype(device)
    return None if dtype == hidden.dtype else dtype


def _refusal(encoder: EncoderParts, hidden: Tensor) -> str | None:
    """Why layers cannot run in this way on hidden states like these, or None."""
    if ops.backends.asked() not in (None, "triton"):
        return "another backend was asked for"
    if hidden.shape[1] > LARGEST_ROW:
        return f"more than {LARGEST_ROW} columns"
    if any(parts.chunk_size > 0 for parts in encoder.distinct):
        return "feed-forward blocks in chunks"
    tensors = [tensor for parts in encoder.distinct for tensor in parts.parameters()]
    if any(type(t) not in PLAIN or t.dtype != hidden.dtype or t.device != hidden.device for t in tensors):
        return "weights of another kind, dtype or device"
    if autocast_of(hidden) is not None and (hidden.dtype != torch.float32 or not is_usual(encoder)):
        return "autocast of other layers than the usual, or beside weights that are not float32"
    dtypes = (hidden.dtype, autocast_of(hidden) or hidden.dtype)
    return next(filter(None, (ops.backends.refusal("triton", hidden.device.type, dtype) for dtype in dtypes)), None)


class Kernels(NamedTuple):
    """What is launched without checks and autograd, and of what was launched already, how."""

    add_layer_norm: Callable[..., Tensor]
    bias_gelu: Callable[..., Tensor]
    repeats: Repeats

    def run(self, name: str, *values: Any) -> Any:
        """One of them by its name, of `[T, columns]` without gaps and of `[columns]`."""
        function, x = getattr(self, name), values[0]
        if not unseen():
            return function(*values)
        lying = [(v.dtype, v.data_ptr() & 15, v.is_contiguous()) if isinstance(v, Tensor) else v for v in values]
        return self.repeats.run(name, (*x.shape, x.device, *lying), function, values)


def _is_apart(parts: LayerParts) -> bool:
    """Whether query, key and value have parameters apart; else one Linear has them all, one output after the other."""
    projections = parts.projections
    return len(projections.linears) > 1 or projections.groups > 1 or projections.beside is not None


def _is_exact_gelu(parts: LayerParts) -> bool:
    return is_exact_gelu(parts.activation) and not parts.gated


def is_usual(encoder: EncoderParts) -> bool:
    """Whether `gpu_program` has the layers, which are alike."""
    norms = ((parts.norm_after(parts.attention_norm), parts.norm_after(parts.norm)) for parts in encoder.distinct)
    held = [(*pair, parts.up.linears[0]) for pair, parts in zip(norms, encoder.distinct, strict=True)]
    return len({(parts.heads, parts.head_dim, parts.scale) for parts in encoder.distinct}) == 1 and all(
        _is_exact_gelu(parts)
        and _is_apart(parts)
        and all(each is not None and each._parameters.get("bias") is not None for each in modules)
        and parts.relative is None
        and parts.angles is None
        and parts.window is None
        for parts, modules in zip(encoder.distinct, held, strict=True)
    )


class GpuLayers:
    """The layers of an encoder, and one buffer for the weights of each layer's query, key and value.

    The buffers are filled on each call, all in one launch, from parameters that stay transformers' own: whatever is
    done to these is followed, also through `.data`. To look for changes first would mean to wait for the GPU.

    Attributes:
        stream_dtype: None, hidden states are in the dtype of the weights.
        graphs: of the layers, if CUDA graphs were asked for.
        products: how it multiplies, in words.
    """

    stream_dtype: torch.dtype | None = None
    products = "PyTorch's, query, key and value in one"

    def __init__(self, encoder: EncoderParts, hidden: Tensor, cuda_graphs: bool = False) -> None:
        from spanbert_kernels.ops.bias_gelu import triton as gelu_kernels
        from spanbert_kernels.ops.dropout_add_layer_norm import triton as norm_kernels

        self.encoder = encoder
        self.cuda_graphs = cuda_graphs
        self.kind = (hidden.dtype, hidden.device, autocast_of(hidden))
        self._kernels = Kernels(norm_kernels.add_layer_norm, gelu_kernels.forward, Repeats())
        self._lay_out()

    def _lay_out(self) -> None:
        self.layers = [GpuLayer(parts, self._kernels, self.kind[-1]) for parts in self.encoder.distinct]
        usual = is_usual(self.encoder)
        self.program = GpuProgram() if usual else None
        self.targets = [target for layer in self.layers for target in layer.targets()]
        self._given = [source is not None for source in self._sources()]
        self._reads = [read for layer in self.layers for read in layer.reads()] if usual else []
        known = usual and self.encoder.norm is None
        self.graphs = Graphs(None if known else "its layers are not built as BERT's") if self.cuda_graphs else None

    @classmethod
    def of(cls, encoder: EncoderParts, hidden: Tensor, cuda_graphs: bool = False) -> GpuLayers | None:
        """The layers for hidden states like these, or None where they cannot run in this way."""
        return None if _refusal(encoder, hidden) is not None else cls(encoder, hidden, cuda_graphs)

    def follow(self, encoder: EncoderParts, hidden: Tensor) -> bool:
        """Whether these are the layers, for hidden states like these."""
        return self.encoder is encoder and self.kind == (hidden.dtype, hidden.device, autocast_of(hidden))

    @property
    def num_bytes(self) -> int:
        """Memory kept: the buffers."""
        buffers = sum(each.numel() * each.element_size() for each in self.targets)
        return buffers + (0 if self.graphs is None else self.graphs.num_bytes)

    def run(self, first: int, last: int, hidden: Tensor, batch: Batch) -> Tensor:
        """Layers first .. last - 1, and the norm after the last of all: `hidden [T, H]` -> `[T, H]`."""
        if self.graphs is None:
            return self._launch(first, last, hidden, batch)
        if (first, last) != (0, len(self.encoder.layers)):
            self.graphs.path = "launched one by one: states between layers were asked for"
            return self._launch(first, last, hidden, batch)
        self._follow_biases()
        return self.graphs.run(partial(self._launch, first, last), self._addresses(), hidden, batch)

    def _addresses(self) -> Any:
        """Where all lies that is read in the layers, and how, and what numbers they have."""
        held = [*self.targets, *self._sources(), *(parameters[name] for parameters, name in self._reads)]
        there = [tensor for tensor in held if tensor is not None]
        numbers = [(layer.parts.heads, layer.parts.scale, *layer.epsilons()) for layer in self.layers]
        lying = ([*map(way, there)] for way in (Tensor.data_ptr, Tensor.stride, attrgetter("dtype", "shape")))
        return numbers, [tensor is None for tensor in held], *lying

    def _launch(self, first: int, last: int, hidden: Tensor, batch: Batch) -> Tensor:
        self._fill()
        launcher = self._launcher(hidden, batch)
        tensors = [None] * len(self.layers) if launcher is None else self._tensors(hidden.dtype)
        for place in self.encoder.places[first:last]:
            layer, own = self.layers[place], tensors[place]
            if launcher is None or own is None:
                hidden = layer.run(hidden, batch)
            else:
                hidden = launcher.run(own, *layer.epsilons(), hidden)
        return _normalized(self.encoder.norm_after(last), hidden)

    def _follow_biases(self) -> list[Tensor | None]:
        """The sources, with buffers for all that there are: a bias may have come or gone."""
        sources = self._sources()
        if [source is not None for source in sources] == self._given:
            return sources
        self._lay_out()
        return self._sources()

    def _fill(self) -> None:
        """Bring the buffers up to date."""
        sources = [source for source in self._follow_biases() if source is not None]
        if sources:
            torch._foreach_copy_(self.targets, sources)

    def _sources(self) -> list[Tensor | None]:
        """The parameters that the buffers are filled from, as they are now."""
        return [source for layer in self.layers for source in layer.sources()]

    def _tensors(self, dtype: torch.dtype) -> list[LayerTensors | None]:
        """Each layer's parameters, or None where its kernels cannot read them as they lie."""
        held = [parameters[name] for parameters, name in self._reads]
        count = len(READS)
        small = [tensor for place in READ_BY_KERNELS for tensor in held[place::count]]
        if lie_well(small, dtype):
            well = [True] * len(self.layers)
        else:
            rows = (held[place : place + count] for place in range(0, len(held), count))
            well = [lie_well([row[place] for place in READ_BY_KERNELS], dtype) for row in rows]
        return [
            LayerTensors._make([layer.weight, layer.bias, *held[i * count : (i + 1) * count]]) if lies_well else None
            for i, (layer, lies_well) in enumerate(zip(self.layers, well, strict=True))
        ]

    def _launcher(self, hidden: Tensor, batch: Batch) -> GpuBatch | None:
        """What runs layers without looking at them, if all are of the usual kind and nobody looks on."""
        watched = torch.is_grad_enabled() or not unseen() or ops.backends.is_recorded()
        if self.program is None or batch.linked is not None or watched or not len(hidden):
            return None
        if not is_current(hidden.device) or not lie_well([hidden]):
            return None
        parts = self.encoder.layers[0]
        return GpuBatch(self.program, batch.packing, parts.heads, parts.head_dim, parts.scale, hidden.device)


class GpuLayer:
    """A layer; what does not change with its parameters is looked up once."""

    def __init__(self, parts: LayerParts, kernels: Kernels, autocast: torch.dtype | None) -> None:
        projections = parts.projections
        self.parts = parts
        self.kernels = kernels
        self.exact_gelu = _is_exact_gelu(parts)
        self.shape = (-1, 3, parts.heads, parts.head_dim)
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if _is_apart(parts):
            # They are filled in and outside of inference mode.
            with torch.inference_mode(False), torch.no_grad():
                weight, bias = projections.weight(), projections.bias()
                dtype = autocast or weight.dtype
                self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        plain = len(projections.linears) == 3 and projections.beside is None
        self._projections = [linear._parameters for linear in projections.linears] if plain else None

    def targets(self) -> list[Tensor]:
        """Parts of the buffers, one for each of `sources` that there is."""
        if self.weight is None:
            return []
        found = list(self.weight.chunk(3))
        if self.bias is not None:
            pairs = zip(self.bias.chunk(3), self.parts.projections.biases(), strict=True)
            found += [target for target, bias in pairs if bias is not None]
        return found

    def sources(self) -> list[Tensor | None]:
        """The weights and biases that the buffers are filled from, as they are now."""
        if self.weight is None:
            return []
        if self._projections is not None:
            return [held[name] for name in ("weight", "bias") for held in self._projections]
        projections = self.parts.projections
        return [*projections.weights(), *projections.biases()]

    def reads(self) -> list[tuple[dict[str, Any], str]]:
        """Where a layer of the usual kind has the parameters that it reads in place, in the order of LayerTensors."""
        parts = self.parts
        modules = (parts.dense, parts.attention_norm, parts.up.linears[0], parts.down, parts.norm)
        held = {name: module._parameters for name, module in zip(MODULES, modules, strict=True) if module is not None}
        return [(held[name], kind) for name, kind in READS]

    def epsilons(self) -> tuple[float, float]:
        """What the two norms add to the variance."""
        assert self.parts.attention_norm is not None
        return eps_of(self.parts.attention_norm), eps_of(self.parts.norm)

    def run(self, hidden: Tensor, batch: Batch) -> Tensor:
        """`hidden [T, H]` -> `[T, H]`."""
        parts = self.parts
        given = _normalized(parts.norm_before(parts.attention_norm), hidden)
        joint = (self.weight, self.bias) if self.weight is not None else _tensors(parts.projections.linears[0])
        query, key, value = F.linear(given, *joint).view(self.shape).unbind(1)
        context = attend(parts, query, key, value, batch, parts.fixed_terms())
        attended = self._finish(parts.norm_after(parts.attention_norm), _linear(parts.dense, context), hidden)
        given = _normalized(parts.norm_before(parts.norm), attended)
        wide = self._wide(given)
        return self._finish(parts.norm_after(parts.norm), _linear(parts.down, wide), attended)

    def _wide(self, given: Tensor) -> Tensor:
        parts = self.parts
        if self.exact_gelu:
            weight, bias = _tensors(parts.up.linears[0])
            wide: Tensor = self.kernels.run("bias_gelu", F.linear(given, weight), bias)
            return wide
        if not parts.gated:
            return activate(parts.activation, _linear(parts.up.linears[0], given))
        (weight, gate), (bias, gate_bias) = parts.up.weights(), parts.up.biases()
        return activate(parts.activation, F.linear(given, weight, bias)) * F.linear(given, gate, gate_bias)

    def _finish(self, norm: nn.LayerNorm | None, x: Tensor, residual: Tensor) -> Tensor:
        if norm is None:
            return x.add_(residual)
        weight, bias = _tensors(norm)
        if weight is None:
            return _normalized(norm, x.add_(residual))
        summed: Tensor = self.kernels.run("add_layer_norm", x, residual, weight, bias, eps_of(norm))
        return summed


def _tensors(module: nn.Module) -> tuple[Any, Any]:
    """A module's weight and bias; as parameters they are quicker to get at."""
    held = module._parameters
    return held["weight"], held["bias"]


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, *_tensors(module))


def _normalized(norm: nn.LayerNorm | None, x: Tensor) -> Tensor:
    return x if norm is None else F.layer_norm(x, x.shape[-1:], *_tensors(norm), eps_of(norm))
