"""The forward that `accelerate` puts in place of an encoder's: unpad once, run packed, pad back once."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spanbert_kernels.acceleration import places, training, whole_graph
from spanbert_kernels.acceleration.attention import Batch
from spanbert_kernels.acceleration.embeddings import Embedder
from spanbert_kernels.acceleration.families import Reads
from spanbert_kernels.acceleration.family import Family, count_positions, mixes_documents
from spanbert_kernels.acceleration.layouts import at
from spanbert_kernels.acceleration.on_gpu import GpuLayers
from spanbert_kernels.acceleration.packed import Layers, PackedLayers, Weights, way_for, way_for_links
from spanbert_kernels.acceleration.parts import EncoderParts
from spanbert_kernels.acceleration.requests import Request, read_request
from spanbert_kernels.acceleration.structure import Structure
from spanbert_kernels.nn.packing import Packing, remember
from spanbert_kernels.ops import AttentionPlan
from spanbert_kernels.ops.on_gpu import is_on_gpu

INFERENCE = "packed-inference"
NOT_REPACKED = "packed-inference (weights not repacked)"
TRAINING = "packed-training"
BY_OVERSIGHT = "packed-training (gradients are on)"  # in evaluation mode: torch.no_grad() would be faster
ORIGINAL = "original: "

# Of the first layer, the one behind the last, the hidden states and how they are packed, what the last gives.
Run = Callable[[int, int, Tensor, Batch], Tensor]

_serial = itertools.count(1)


def next_serial() -> int:
    """A number larger than those of all calls before."""
    return next(_serial)


class AccelerationWarning(UserWarning):
    """A call on an accelerated model took the path of its own library, or has a loss that looks at padding; the text
    says which and why. It is said once a reason.

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
        loss_reads_padding: whether the head's loss looks at the scores of padding, which are not transformers'.
        repack: whether inference may keep copies of the weights, laid out for its products.
        cuda_graphs: whether inference on a GPU captures its layers in CUDA graphs.
        calls: how often each path ran: "packed-inference", "packed-training", "original: <reason>".
        last_path: the path of the latest call, None before the first.
        last_serial: a number that grows with every call on any encoder.
        int8_error: with "int8", what it changed in the first call: the largest difference of a hidden state from that
            of the float weights, as a share of the largest hidden state.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        reads: Reads,
        weights: Weights | None = None,
        repack: bool = True,
        cuda_graphs: bool = False,
    ) -> None:
        self.model = model
        self.family = family
        self.reads = reads
        self.weights: Weights | None = weights
        self.repack = repack
        self.cuda_graphs = cuda_graphs
        self.loss_reads_padding = False
        self.int8_error: float | None = None
        self.calls: Counter[str] = Counter()
        self.last_path: str | None = None
        self.last_serial = 0
        self._warned: set[str] = set()
        self._prepare()

    def configure(self, weights: Weights | None, repack: bool, cuda_graphs: bool) -> None:
        """Take other options from the next call on."""
        if (weights, repack, cuda_graphs) != (self.weights, self.repack, self.cuda_graphs):
            self.weights, self.repack, self.cuda_graphs, self.int8_error = weights, repack, cuda_graphs, None
            self._forget()

    def _forget(self) -> None:
        self._packed_layers: PackedLayers | GpuLayers | None = None

    @property
    def kept(self) -> str | None:
        """The products of the inference path and the memory that it keeps, in words; None while there are no copies."""
        packed = self._packed_layers
        if packed is None:
            return None
        layers = packed if isinstance(packed, GpuLayers) else packed.layers
        graphs = layers.graphs if isinstance(layers, GpuLayers) else None
        buckets = [] if graphs is None else [f"{each.tokens} tokens in {each.documents}" for each in graphs.kept]
        captured = f", CUDA graphs of documents: {', '.join(buckets)}" if buckets else ""
        return f"{layers.products}, {layers.num_bytes / 2**20:.0f} MiB of repacked weights{captured}"

    def _prepare(self) -> None:
        self._structure: Structure | None = None
        self._forget()
        self._names = [
            name
            for name, parameter in inspect.signature(type(self.model).forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ][1:]
        # torch.compile breaks the graph here: data-dependent shapes, a cache and counters are not for tracing.
        self._run_uncompiled = torch.compiler.disable(self.run)
        self._number = whole_graph.number_of(self)

    def __getstate__(self) -> dict[str, Any]:
        options = ("model", "family", "reads", "weights", "repack", "cuda_graphs", "loss_reads_padding")
        seen = ("int8_error", "calls", "last_path", "last_serial", "_warned")
        return {name: self.__dict__[name] for name in options + seen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    @property
    def __func__(self) -> FunctionType:
        """What wrappers take for the function of a bound method; copies of the encoder then run their own forward."""
        return places.forward  # type: ignore[return-value]

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
        if torch.compiler.is_compiling() and whole_graph.is_asked_for():
            return self._in_graph(args, kwargs)
        return self._run_uncompiled(*args, **kwargs)

    def _in_graph(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**kwargs, **dict(zip(self._names, args, strict=False))}
        last = whole_graph.last_states(self.model, self._number, given)
        if isinstance(last, str):
            whole_graph.say(self, last)
            return self.original(*args, **kwargs)
        return_dict = given.get("return_dict")
        named = getattr(self.model.config, "return_dict", True) if return_dict is None else return_dict
        return self._named(last, last, None, named)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        prepared = self._prepare_call(args, kwargs)
        if isinstance(prepared, str):
            output = self.original(*args, **kwargs)
            self._note(ORIGINAL + prepared)
            self.warn(prepared)
            return output
        return self._packed(*prepared)

    def run_linked(self, inputs: Mapping[str, Tensor], plan: AttentionPlan) -> Tensor | str:
        """The last hidden states `[T, H]` of packed documents that see each other as a plan of
        `cross_document_attention` says, or why this encoder cannot have them.

        Args:
            inputs: `[T]` each, what the encoder takes by name; positions among them.
            plan: of tokens as queries and as keys.
        """
        read = self._read((), {name: tensor[None] for name, tensor in inputs.items()})
        if isinstance(read, str):
            return read
        structure, request = read
        encoder, family = structure.parts, self.family
        near = family.distances or family.rotary is not None or encoder.convolution is not None
        if near or mixes_documents(self.model):
            return f"a {family.model_class}, whose tokens see more of each other than a link between documents says"
        if request.hidden_states is not None:
            return "hidden states were asked for (output_hidden_states)"
        packing = Packing.from_mask(None, 1, request.length, request.device)
        hidden, batch = self._embed(request, packing), Batch(packing, linked=plan)
        packed = self._packed_layers_for(encoder, hidden, batch)
        run = partial(training.run_layers, encoder) if packed is None else packed.run
        self._note(self._path(encoder, packed, request))
        return run(0, len(encoder.layers), hidden, batch)

    def _read(self, args: Any, kwargs: dict[str, Any]) -> tuple[Structure, Request] | str:
        """The encoder as it is now and the call, or the reason why the packed path cannot be taken."""
        # The attention kernels have a backward, but no rules for these.
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return "a function transform (torch.func) or a forward-mode derivative"
        if self._structure is None or not self._structure.holds(self.model):
            structure = Structure.read(self.model, self.family)
            if isinstance(structure, str):
                self._structure = None
                self._forget()
                return structure
            self._structure, self._embedder = structure, Embedder(self.model.embeddings)
        request = read_request(self.model, self.family, self._names, args, kwargs)
        return request if isinstance(request, str) else (self._structure, request)

    def _prepare_call(self, args: Any, kwargs: dict[str, Any]) -> tuple[Structure, Request, Packing] | str:
        """All that the packed path needs, or the reason why it cannot be taken."""
        read = self._read(args, kwargs)
        if isinstance(read, str):
            return read
        structure, request = read
        if request.cu_seqlens is not None:
            packing = Packing.from_offsets(request.cu_seqlens, request.max_seqlen, request.length)
            return structure, request, packing
        mask = request.attention_mask
        read_is_real = None if mask is None else self._read_is_real(mask)
        # Rotary positions in one call of all layers are places in a document.
        holes = self.family.distances or self.family.rotary is not None
        packing = Packing.from_mask(
            mask, request.batch, request.length, request.device, look_for_holes=holes, read_along=read_is_real
        )
        if packing.read_along is False:
            return "the token that the pooler or the head reads is padding in some row"
        if self.family.distances and not packing.contiguous:
            return "padding between real tokens, which counts in the distances that attention looks at"
        if self.reads == "any" and packing.indices is not None:
            return "the head reads padding"
        if self.loss_reads_padding and self.model.training and packing.indices is not None:
            self._say("the loss of its head looks at padding, where states are 0: it differs from transformers'")
        return structure, request, packing

    def _read_is_real(self, mask: Tensor) -> Tensor | None:
        """Whether the token that is pooled is real in every row, still on its device; None if nothing is pooled."""
        pools = getattr(self.model, "pooler", None) is not None
        if pools and getattr(self.model.config, "pooler_token", "first") == "anchor" and self.reads != "first":
            real = (mask != 0).any(1)
        elif pools or self.reads == "first":
            real = mask[:, 0] != 0
        else:
            return None
        return real.all()

    def _packed(self, structure: Structure, request: Request, packing: Packing) -> Any:
        model, encoder = self.model, structure.parts
        count, hidden = len(encoder.layers), self._embed(request, packing)  # [T, H]
        batch = self._batch(request, packing, encoder, hidden.dtype)
        packed = self._packed_layers_for(encoder, hidden, batch)
        context = None
        if mixes_documents(model):
            context = model.cross_document_context(request.cluster_ids, packing, request.cluster_group)
        mixes = context is not None
        wanted = set(range(count + 1)) if request.hidden_states is True else request.hidden_states or set()
        states = {0: packing.pad(hidden)} if 0 in wanted else {}
        # All at once, unless somebody looks in between.
        every = range(1, count + 1)
        stops = list(every) if mixes else sorted({*wanted, count}.intersection(every)) or [0]
        embedded, dtype = hidden, hidden.dtype
        if packed is not None and (len(stops) > 1 or encoder.convolution is not None) and not mixes:
            hidden = hidden.to(packed.stream_dtype or dtype)
        run = partial(training.run_layers, encoder) if packed is None else packed.run
        for first, last in itertools.pairwise([0, *stops]):
            hidden = _run(run, encoder, first, last, hidden, batch)
            if mixes:
                hidden = model.mix_documents(first, hidden, packing, context)
            if last in wanted:
                states[last] = packing.pad(hidden.to(dtype))
        if self.weights == "int8" and packed is not None and self.int8_error is None and not mixes:
            self.int8_error = _difference(encoder, embedded, batch, hidden)
        self._note(self._path(encoder, packed, request))
        last_states = hidden if packed is None else hidden.to(dtype)
        final = states[count] if count in states else packing.pad(last_states)
        remember(final, last_states, packing, request.attention_mask)
        asked = None if request.hidden_states is None else tuple(states.get(index) for index in range(count + 1))
        return self._output(request, packing, final, asked)

    def _path(self, encoder: EncoderParts, packed: Layers | None, request: Request) -> str:
        if packed is not None:
            graphs = packed.graphs if isinstance(packed, GpuLayers) else None
            if self.cuda_graphs and (graphs is None or graphs.refused):
                reason = "the encoder is not on a GPU" if graphs is None else graphs.refused
                self._say(f"no CUDA graph is captured: {reason}")
            return INFERENCE if graphs is None else f"{INFERENCE} ({graphs.path})"
        if self.model.training:
            return TRAINING
        if torch.is_grad_enabled():
            embeds = request.inputs["inputs_embeds"]
            return TRAINING if embeds is not None and embeds.requires_grad else BY_OVERSIGHT
        return TRAINING if self.repack and encoder.read else NOT_REPACKED

    def _embed(self, request: Request, packing: Packing) -> Tensor:
        """The embeddings of the real tokens, `[T, H]`, at the positions transformers gives them."""
        model, family = self.model, self.family
        inputs = {name: each for name, each in request.inputs.items() if name not in family.unembedded}
        found = self._embed_on_gpu(request, packing) if is_on_gpu(packing.cu_seqlens) else None
        if found is not None:
            hidden = found
        else:
            hidden = model.embeddings(**self._to_embed(request, packing, inputs)).flatten(0, 1)
        project = None if family.projection is None else at(model, family.projection)
        return hidden if project is None else project(hidden)

    def _to_embed(self, request: Request, packing: Packing, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the encoder's module of embeddings is called with: one row of packed tokens, or the rows as they are."""
        given = dict(inputs)
        if packing.indices is not None:
            given = {name: None if each is None else _pack(packing, each)[None] for name, each in inputs.items()}
        words = self._embedder.words(given.get("input_ids"))
        by_words = words is not None and self.family.positions != "column"  # which the module could not count then
        if "position_ids" in inputs and (packing.indices is not None or by_words):
            rows = 1 if packing.indices is not None else request.batch
            given["position_ids"] = self._positions(request, packing).view(rows, -1)
        if words is not None:
            given |= {"input_ids": None, "inputs_embeds": words}
        return given

    def _embed_on_gpu(self, request: Request, packing: Packing) -> Tensor | None:
        """The embeddings in one pass, where these are of a kind that has one."""
        token_ids, type_ids = (
            None if (each := request.inputs.get(name)) is None else _pack(packing, each)
            for name in ("input_ids", "token_type_ids")
        )
        return self._embedder(token_ids, type_ids, lambda: self._positions(request, packing))

    def _positions(self, request: Request, packing: Packing) -> Tensor:
        """The position ids of the real tokens, `[T]`."""
        given, input_ids = request.inputs.get("position_ids"), request.inputs["input_ids"]
        if given is not None:
            return _pack(packing, given)
        if self.family.positions == "column":
            return packing.positions()
        padding_index = self.model.embeddings.padding_idx
        if input_ids is None:
            return packing.positions() + padding_index + 1
        return packing.pack(count_positions(input_ids, padding_index))

    def _batch(self, request: Request, packing: Packing, encoder: EncoderParts, dtype: torch.dtype) -> Batch:
        if not encoder.angles:
            return Batch(packing)
        by_place = packing.contiguous and self._counts_places(request.inputs.get("position_ids"), packing)
        return Batch(packing, lambda angles: angles.rotation(self._positions(request, packing), dtype), by_place)

    def _counts_places(self, given: Tensor | None, packing: Packing) -> bool:
        """Whether position ids are a token's place in its document, or only differ from it alike in all of it."""
        return given is None or (given.device.type == "cpu" and torch.equal(_pack(packing, given), packing.places()))

    def _packed_layers_for(self, encoder: EncoderParts, hidden: Tensor, batch: Batch) -> Layers | None:
        """The layers with copied weights, if the inference path can take this call, else None."""
        trains = torch.is_grad_enabled() and (
            hidden.requires_grad or any(p.requires_grad for p in self.model.parameters())
        )
        on_gpu = is_on_gpu(hidden)
        if trains or (hidden.device.type != "cpu" and not on_gpu) or not encoder.read:
            # The weights are about to change or have moved, and the memory is better spent on activations.
            self._forget()
            return None
        if not self.repack or any(parts.drops() for parts in encoder.distinct):
            return None
        packed = self._packed_layers
        if on_gpu:
            if not isinstance(packed, GpuLayers) or not packed.follow(encoder, hidden):
                packed = self._packed_layers = GpuLayers.of(encoder, hidden, self.cuda_graphs)
            return packed
        way = way_for(hidden.dtype, self.weights) if batch.linked is None else way_for_links(hidden.dtype)
        if way is not None and not (isinstance(packed, PackedLayers) and packed.follow(encoder, way)):
            packed = self._packed_layers = PackedLayers.of(encoder, way)
        if way is None or not isinstance(packed, PackedLayers) or not packed.layers.serve(batch):
            return None
        return packed.layers

    def _output(
        self, request: Request, packing: Packing, last: Tensor, states: tuple[Tensor | None, ...] | None
    ) -> Any:
        read = last
        if hasattr(self.model, "pooled_positions"):
            read = last.flatten(0, 1).index_select(0, self.model.pooled_positions(packing))[:, None]  # [B, 1, H]
        return self._named(last, read, states, request.return_dict)

    def _named(self, last: Tensor, read: Tensor, states: tuple[Tensor | None, ...] | None, named: bool) -> Any:
        """The output, with names or as a tuple, of last hidden states and of what the pooler reads in column 0."""
        from transformers import modeling_outputs

        family = self.family
        values: dict[str, Tensor | None] = {"last_hidden_state": last}
        if family.pool is not None:
            values["pooler_output"] = family.pool(self.model, read)
        output = getattr(modeling_outputs, family.output)(**values)
        if states is not None:
            output["hidden_states"] = states
        if named:
            return output
        found = output.to_tuple()
        missing = not family.captures and values.get("pooler_output", last) is None
        return (found[0], None, *found[1:]) if missing else found

    def _note(self, path: str) -> None:
        self.calls[path] += 1
        self.last_path = path
        self.last_serial = next_serial()

    def warn(self, reason: str) -> None:
        """Say once why transformers' own path runs."""
        self._say(f"transformers' own path ran: {reason}")

    def _say(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(f"{type(self.model).__name__}: {text}", AccelerationWarning, stacklevel=3)


def _pack(packing: Packing, given: Tensor) -> Tensor:
    """Of an input `[B, L, ...]`, or one that all rows share, the real tokens: `[T, ...]`."""
    return packing.pack(given.expand(packing.batch, packing.length, *given.shape[2:]))


def _run(run: Run, encoder: EncoderParts, first: int, last: int, hidden: Tensor, batch: Batch) -> Tensor:
    """Layers first .. last - 1 on one of the ways, and what joins the first one's output."""
    if encoder.convolution is None or first > 0 or last == 0:
        return run(first, last, hidden, batch)
    joined = encoder.convolution(hidden, run(0, 1, hidden, batch), batch.packing)
    return joined if last == 1 else run(1, last, joined, batch)


def _difference(encoder: EncoderParts, embedded: Tensor, batch: Batch, hidden: Tensor) -> float:
    """Of hidden states from those that the layers' own modules compute, as a share of the largest of these."""
    run = partial(training.run_layers, encoder)
    expected = _run(run, encoder, 0, len(encoder.layers), embedded, batch).float()
    if expected.numel() == 0:
        return 0.0
    return ((hidden.float() - expected).abs().max() / expected.abs().max()).item()
