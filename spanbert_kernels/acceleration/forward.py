"""The forward that `accelerate` puts in place of an encoder's: unpad once, run packed, pad back once."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections import Counter
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spanbert_kernels.acceleration import training
from spanbert_kernels.acceleration.families import Family, Reads, count_positions, mixes_documents
from spanbert_kernels.acceleration.packed import PackedLayers, Weights, way_for
from spanbert_kernels.acceleration.requests import Request, read_request
from spanbert_kernels.acceleration.structure import Structure
from spanbert_kernels.nn.packing import Packing

INFERENCE = "packed-inference"
NOT_REPACKED = "packed-inference (weights not repacked)"
TRAINING = "packed-training"
BY_OVERSIGHT = "packed-training (gradients are on)"  # in evaluation mode: torch.no_grad() would be faster
ORIGINAL = "original: "

_serial = itertools.count(1)


class AccelerationWarning(UserWarning):
    """A call on an accelerated model took transformers' own path; the text says why. It is said once a reason.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", AccelerationWarning)  # for who would rather have an error
        >>> warnings.filters.pop(0)[2].__name__
        'AccelerationWarning'
    """


class PackedForward:
    """Stands as `forward` on one encoder. Copies and pickles go with the encoder; repacked weights are left behind.

    Attributes:
        weights: "int8", or None for the weights as they are.
        repack: whether inference may keep copies of the weights, laid out for its products.
        calls: how often each path ran: "packed-inference", "packed-training", "original: <reason>".
        last_path: the path of the latest call, None before the first.
        last_serial: a number that grows with every call on any encoder.
        int8_error: with "int8", what it changed in the first call: the largest difference of a hidden state from that
            of the float weights, as a share of the largest hidden state.
    """

    def __init__(
        self, model: Any, family: Family, reads: Reads, weights: Weights | None = None, repack: bool = True
    ) -> None:
        self.model = model
        self.family = family
        self.reads = reads
        self.weights: Weights | None = weights
        self.repack = repack
        self.int8_error: float | None = None
        self.calls: Counter[str] = Counter()
        self.last_path: str | None = None
        self.last_serial = 0
        self._warned: set[str] = set()
        self._prepare()

    def configure(self, weights: Weights | None, repack: bool) -> None:
        """Take other options from the next call on."""
        if (weights, repack) != (self.weights, self.repack):
            self.weights, self.repack, self.int8_error = weights, repack, None
            self._forget()

    def _forget(self) -> None:
        self._packed_layers: PackedLayers | None = None

    @property
    def kept(self) -> str | None:
        """The products of the inference path and the memory that it keeps, in words; None while there are no copies."""
        packed = self._packed_layers
        if packed is None:
            return None
        return f"{packed.layers.products}, {packed.layers.num_bytes / 2**20:.0f} MiB of repacked weights"

    def _prepare(self) -> None:
        self._structure: Structure | None = None
        self._forget()
        self._names = [
            name
            for name, parameter in inspect.signature(type(self.model).forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ][1:]
        # torch.compile breaks the graph here: data-dependent shapes, a cache and counters are not for tracing.
        self._run_uncompiled = torch.compiler.disable(self._run)

    def __getstate__(self) -> dict[str, Any]:
        options = ("model", "family", "reads", "weights", "repack")
        seen = ("int8_error", "calls", "last_path", "last_serial", "_warned")
        return {name: self.__dict__[name] for name in options + seen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    @property
    def __code__(self) -> CodeType:
        """Of the encoder's own forward; torch.export looks up where a forward was written."""
        code: CodeType = type(self.model).forward.__code__
        return code

    @property
    def original(self) -> Any:
        """The forward of the encoder's class, bound to the encoder."""
        return type(self.model).forward.__get__(self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the encoder's own forward returns, `[B, L, H]` states with zeros at padding."""
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return self.original(*args, **kwargs)
        return self._run_uncompiled(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        prepared = self._prepare_call(args, kwargs)
        if isinstance(prepared, str):
            output = self.original(*args, **kwargs)
            self._note(ORIGINAL + prepared)
            self._warn(prepared)
            return output
        return self._packed(*prepared)

    def _prepare_call(self, args: Any, kwargs: dict[str, Any]) -> tuple[Structure, Request, Packing] | str:
        """All that the packed path needs, or the reason why it cannot be taken."""
        # The attention kernels have a backward, but no rules for these.
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return "a function transform (torch.func) or a forward-mode derivative"
        if self._structure is None or not self._structure.holds(self.model):
            structure = Structure.read(self.model, self.family)
            if isinstance(structure, str):
                self._structure = None
                self._forget()
                return structure
            self._structure = structure
        request = read_request(self.model, self.family, self._names, args, kwargs)
        if isinstance(request, str):
            return request
        mask = request.attention_mask
        read_is_real = None if mask is None else self._read_is_real(mask)
        packing = Packing.from_mask(mask, request.batch, request.length, request.device)
        if read_is_real is not None and not read_is_real.item():
            return "the token that the pooler or the head reads is padding in some row"
        if self.reads == "any" and packing.indices is not None:
            return "the head reads padding"
        return self._structure, request, packing

    def _read_is_real(self, mask: Tensor) -> Tensor | None:
        """Whether the token that is pooled is real in every row, or None if nothing is pooled.

        Copied before the synchronisation that the packing needs anyway, to be read after it.
        """
        pools = getattr(self.model, "pooler", None) is not None
        if pools and getattr(self.model.config, "pooler_token", "first") == "anchor" and self.reads != "first":
            real = (mask != 0).any(1)
        elif pools or self.reads == "first":
            real = mask[:, 0] != 0
        else:
            return None
        return real.all().to("cpu", non_blocking=True)

    def _packed(self, structure: Structure, request: Request, packing: Packing) -> Any:
        model = self.model
        hidden = self._embed(request, packing)  # [T, H]
        packed = self._packed_layers_for(structure, hidden)
        context = model.cross_document_context(request.cluster_ids, packing) if mixes_documents(model) else None
        mixes = context is not None
        states = [packing.pad(hidden)] if request.output_hidden_states else []
        count = len(structure.layers)
        # All at once, unless somebody looks in between.
        step = 1 if packed is None or mixes or request.output_hidden_states else max(1, count)
        embedded, dtype = hidden, hidden.dtype
        if packed is not None and step < count and not mixes:
            hidden = hidden.to(packed.layers.stream_dtype or dtype)
        for index in range(0, count, step):
            if packed is None:
                hidden = training.run_layer(structure.layers[index], hidden, packing)
            else:
                hidden = packed.layers.run(index, index + step, hidden, packing)
            if mixes:
                hidden = model.mix_documents(index, hidden, packing, context)
            if request.output_hidden_states:
                states.append(packing.pad(hidden.to(dtype)))
        if self.weights == "int8" and packed is not None and self.int8_error is None and not mixes:
            self.int8_error = _difference(structure, embedded, packing, hidden)
        self._note(self._path(packed, request))
        last = states[-1] if states else packing.pad(hidden)
        return self._output(request, packing, last, tuple(states) if request.output_hidden_states else None)

    def _path(self, packed: PackedLayers | None, request: Request) -> str:
        if packed is not None:
            return INFERENCE
        if self.model.training:
            return TRAINING
        if torch.is_grad_enabled():
            asked = request.inputs_embeds is not None and request.inputs_embeds.requires_grad
            return TRAINING if asked else BY_OVERSIGHT
        return TRAINING if self.repack else NOT_REPACKED

    def _embed(self, request: Request, packing: Packing) -> Tensor:
        """The embeddings of the real tokens, `[T, H]`, at the positions transformers gives them."""
        embeddings, shape = self.model.embeddings, (request.batch, request.length)
        if packing.indices is None:
            hidden = embeddings(
                input_ids=request.input_ids,
                token_type_ids=request.token_type_ids,
                position_ids=request.position_ids,
                inputs_embeds=request.inputs_embeds,
            ).flatten(0, 1)
        else:
            if request.position_ids is not None:
                positions = packing.pack(request.position_ids.expand(shape))
            elif self.family.positions == "column":
                positions = packing.positions()
            elif request.input_ids is not None:
                positions = packing.pack(count_positions(request.input_ids, embeddings.padding_idx))
            else:
                positions = packing.positions() + embeddings.padding_idx + 1
            types = request.token_type_ids
            hidden = embeddings(
                input_ids=None if request.input_ids is None else packing.pack(request.input_ids)[None],
                token_type_ids=None if types is None else packing.pack(types.expand(shape))[None],
                position_ids=positions[None],
                inputs_embeds=None if request.inputs_embeds is None else packing.pack(request.inputs_embeds)[None],
            )[0]
        project = getattr(self.model, "embeddings_project", None)
        return hidden if project is None else project(hidden)

    def _packed_layers_for(self, structure: Structure, hidden: Tensor) -> PackedLayers | None:
        """The layers with copied weights, if the inference path can take this call, else None."""
        trains = torch.is_grad_enabled() and (
            hidden.requires_grad or any(p.requires_grad for p in self.model.parameters())
        )
        if trains or hidden.device.type != "cpu":
            # The weights are about to change or have moved, and the memory is better spent on activations.
            self._forget()
            return None
        if not self.repack or any(parts.drops() for parts in structure.layers):
            return None
        way = way_for(hidden.dtype, self.weights)
        packed = self._packed_layers
        if way is not None and (packed is None or not packed.follow(structure.layers, way)):
            packed = self._packed_layers = PackedLayers.of(structure.layers, way)
        return None if way is None else packed

    def _output(self, request: Request, packing: Packing, last: Tensor, states: tuple[Tensor, ...] | None) -> Any:
        from transformers import modeling_outputs

        model = self.model
        if not self.family.pooled:
            output = modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=last)
        else:
            pooled = None
            if model.pooler is not None:
                read = last
                if hasattr(model, "pooled_positions"):
                    read = last.flatten(0, 1).index_select(0, model.pooled_positions(packing))[:, None]  # [B, 1, H]
                pooled = model.pooler(read)
            output = modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions(
                last_hidden_state=last, pooler_output=pooled
            )
        if states is not None:
            output["hidden_states"] = states
        return output if request.return_dict else output.to_tuple()

    def _note(self, path: str) -> None:
        self.calls[path] += 1
        self.last_path = path
        self.last_serial = next(_serial)

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            name = type(self.model).__name__
            warnings.warn(f"{name}: transformers' own path ran: {reason}", AccelerationWarning, stacklevel=2)


def _difference(structure: Structure, embedded: Tensor, packing: Packing, hidden: Tensor) -> float:
    """Of hidden states from those that the layers' own modules compute, as a share of the largest of these."""
    expected = embedded
    for parts in structure.layers:
        expected = training.run_layer(parts, expected, packing)
    expected = expected.float()
    if expected.numel() == 0:
        return 0.0
    return ((hidden.float() - expected).abs().max() / expected.abs().max()).item()
