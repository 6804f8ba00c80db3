"""What a layer of the usual kind launches on a GPU, again and again on other tensors, with little Python in between.

What a call launches is noted when its sizes are new; later calls put their addresses into the same arguments. A layer
is of the usual kind as BERT's are: norms after the products, the exact GELU, attention by nothing but scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.ops.attention.work import UNCOUNTED, AttentionWork, in_one_launch
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import Launched, launches_of

MOST = 256  # calls whose launches are kept
SHORTEST, LONGEST_WHOLE = 16, 128  # tokens of documents of which attention has all at once
# Batches with fewer tokens take no launches cut by their documents' lengths, which are theirs alone.
FEWEST_TO_CUT = 2**12
PLAIN = (Tensor, nn.Parameter)
_DTYPE = attrgetter("dtype")
_NOTHING_DROPPED = Dropout(0.0, None)


def longest_of(packing: Packing) -> int:
    """As many tokens as the longest document of a batch has, rounded up as far as attention's launches are the same; 0:
    they are those of any length.

    Example:
        >>> [longest_of(Packing.from_mask(None, 1, tokens, "cpu")) for tokens in (3, 17, 128, 129)]
        [16, 32, 128, 0]
    """
    longest = max(SHORTEST, 1 << max(packing.max_seqlen - 1, 0).bit_length())
    return longest if packing.measured and longest <= LONGEST_WHOLE else 0


class LayerTensors(NamedTuple):
    """The parameters of a layer of the usual kind: weights and biases of its products and norms.

    The first pair is of query, key and value together.
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    dense: Tensor
    dense_bias: Tensor | None
    norm: Tensor
    norm_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor | None
    last_norm: Tensor
    last_norm_bias: Tensor


class Relaunch:
    """A launch, to be done on other tensors. Threads share it: it does not change.

    Attributes:
        compiled: whether it takes the addresses of tensors.
        fits: whether all its tensors are among those that others take the place of.
    """

    def __init__(self, launched: Launched, tensors: Sequence[Tensor]) -> None:
        self.again, self.compiled = launched.again, launched.compiled
        self.template: list[Any] = list(launched.values)
        self.fits = True
        self._tensors = tensors
        # Parts of tensors from another place than their first on: of which, and how many bytes behind it.
        self.parts: list[tuple[int, int]] = []
        slots = {tensor.data_ptr(): slot for slot, tensor in reversed([*enumerate(tensors)])}
        self.places: list[tuple[int, int]] = []
        # Of an argument that is a tuple: its place, what makes it, its fields, and which of these are tensors; of one
        # whose first field alone is a tensor: its place, what makes it, which tensor, the other fields.
        self.groups: list[tuple[int, Callable[..., Any], list[Any], list[tuple[int, int]]]] = []
        self.leading: list[tuple[int, Callable[..., Any], int, tuple[Any, ...]]] = []
        for place, value in enumerate(launched.values):
            if isinstance(value, Tensor):
                self.places += self._slots(slots, [(place, value)])
            elif isinstance(value, tuple) and any(isinstance(leaf, Tensor) for leaf in value):
                build = value._make if hasattr(value, "_make") and not self.compiled else tuple
                inner = self._slots(slots, [(i, leaf) for i, leaf in enumerate(value) if isinstance(leaf, Tensor)])
                if [index for index, _ in inner] == [0]:
                    self.leading.append((place, build, inner[0][1], tuple(value[1:])))
                else:
                    self.groups.append((place, build, list(value), inner))
        del self._tensors

    def _slots(self, slots: dict[int, int], found: list[tuple[int, Tensor]]) -> list[tuple[int, int]]:
        known = [
            (place, slots.get(tensor.data_ptr()) or self._part(slots, tensor.data_ptr())) for place, tensor in found
        ]
        self.fits = self.fits and all(slot is not None for _, slot in known)
        return [(place, slot or 0) for place, slot in known]

    def _part(self, slots: dict[int, int], address: int) -> int | None:
        """The slot of what begins at an address, if that is in one of the tensors."""
        if address in slots or not self.compiled:
            return slots.get(address)
        for slot, tensor in enumerate(self._tensors):
            behind = address - tensor.data_ptr()
            if 0 < behind < tensor.numel() * tensor.element_size():
                self.parts.append((slot, behind))
                slots[address] = len(self._tensors) + len(self.parts) - 1
                return slots[address]
        return None

    def __call__(self, stream: int, given: Sequence[Any]) -> None:
        """Launch it on tensors in the place of those that it was made with, or on their addresses."""
        values = self.template.copy()
        if self.parts:
            given = [*given, *(given[slot] + behind for slot, behind in self.parts)]
        for place, slot in self.places:
            values[place] = given[slot]
        for place, build, slot, rest in self.leading:
            values[place] = build((given[slot], *rest))
        for place, build, fields, inner in self.groups:
            filled = fields.copy()
            for index, slot in inner:
                filled[index] = given[slot]
            values[place] = build(filled)
        if self.compiled:
            self.again(*values, stream=stream)
        else:
            self.again(*values)


class Repeat:
    """All that a call launches, to be done on other tensors: those that it is given, then those that it makes."""

    def __init__(self, again: list[Relaunch], given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        self.again, self.compiled = again, again[0].compiled
        sizes = [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in given]
        # Of each tensor that it makes: one of those given that lies like it, or size, dtype and device.
        self.made: list[int | tuple[torch.Size, torch.dtype, torch.device]] = []
        for each in made:
            like = (each.shape, each.stride(), each.dtype, each.device)
            self.made.append(sizes.index(like) if like in sizes else (each.shape, each.dtype, each.device))

    @classmethod
    def of(cls, launched: list[Launched], given: Sequence[Tensor], made: Sequence[Tensor]) -> Repeat | None:
        """None where the call used other tensors beside."""
        again = [Relaunch(each, (*given, *made)) for each in launched]
        fits = all(each.fits for each in again) and all(each.is_contiguous() for each in made)
        return cls(again, given, made) if again and fits else None

    def new(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Room for what it makes of tensors like those that it was given."""
        return [
            torch.empty_like(given[each])
            if isinstance(each, int)
            else torch.empty(each[0], dtype=each[1], device=each[2])
            for each in self.made
        ]

    def values(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        """What it takes in the place of tensors."""
        return [tensor.data_ptr() for tensor in tensors] if self.compiled else tensors

    def __call__(self, stream: int, values: Sequence[Any]) -> None:
        """Do it."""
        for launch in self.again:
            launch(stream, values)


class Launches:
    """What calls launch, kept by all that it depends on beside the addresses of tensors."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Any, ...], Repeat | None] = {}

    def keep(self, key: tuple[Any, ...], repeat: Repeat | None) -> None:
        """Note what calls of a key launch; None: something that cannot be done again."""
        if len(self.kept) >= MOST:
            self.kept.clear()
        self.kept[key] = repeat

    def run(
        self, stream: int, key: tuple[Any, ...], function: Any, given: Sequence[Tensor], *options: Any
    ) -> list[Tensor]:
        """What `function(*given, *options)` makes, launched as before where the key is known.

        Args:
            stream: the current one, of the current device.
            key: the call's.
            function: makes a tensor without gaps or several.
            given: tensors, without gaps and at multiples of 16 bytes.
            options: what else it takes.
        """
        repeat = self.kept.get(key)
        if repeat is not None:
            made = repeat.new(given)
            repeat(stream, repeat.values((*given, *made)))
            return made
        found, launched = launches_of(function, *given, *options)
        made = [found] if isinstance(found, Tensor) else [*found]
        if key not in self.kept:
            self.keep(key, Repeat.of(launched, given, made))
        return made


def lie_well(tensors: Sequence[Any], dtype: torch.dtype | None = None) -> bool:
    """Whether launches can be repeated on these, if they are there: plain, without gaps, aligned; of this dtype."""
    return (
        all(map(PLAIN.__contains__, map(type, tensors)))
        and all(map(Tensor.is_contiguous, tensors))
        and not any(address & 15 for address in map(Tensor.data_ptr, tensors))
        and (dtype is None or {*map(_DTYPE, tensors)} == {dtype})
    )


def is_current(device: torch.device) -> bool:
    """Whether launches go to a device."""
    return device.type != "cuda" or device.index == torch.cuda.current_device()


def stream_of(device: torch.device) -> int:
    """The current stream, as launches take it."""
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0


class GpuProgram:
    """The kernels of layers of the usual kind, and what they launched."""

    def __init__(self) -> None:
        from spanbert_kernels.ops.attention import triton_joint, triton_lists
        from spanbert_kernels.ops.bias_gelu import triton as gelu_kernels
        from spanbert_kernels.ops.dropout_add_layer_norm import triton as norm_kernels

        self.attention: Any = triton_joint.forward
        self.lists: Any = triton_lists.make_lists
        self.norm: Any = norm_kernels.add_layer_norm
        self.gelu: Any = gelu_kernels.forward
        self.launches = Launches()


class GpuBatch:
    """Runs the layers of a batch.

    Args:
        program: of layers of these sizes.
        packing: of the batch.
        heads, head_dim, scale: of attention.
        device: where the tokens are.
    """

    def __init__(
        self, program: GpuProgram, packing: Packing, heads: int, head_dim: int, scale: float, device: torch.device
    ) -> None:
        self.program, self.heads, self.head_dim, self.scale = program, heads, head_dim, scale
        self.stream = stream_of(device)
        self.work = self._work(packing)
        sizes = [each.shape if isinstance(each, Tensor) else each for each in self.work]
        self.key = ("attention", packing.num_tokens, heads, head_dim, scale, *sizes)
        self.repeats: dict[tuple[Any, ...], Repeat | None] = {}
        self.lse: Tensor | None = None  # room for the log-sum-exp of all layers, one after the other

    def _work(self, packing: Packing) -> AttentionWork:
        offsets, tokens = packing.cu_seqlens, packing.num_tokens
        longest, counts = longest_of(packing), UNCOUNTED
        if longest == 0 and packing.measured and tokens >= FEWEST_TO_CUT:
            longest, counts = packing.max_seqlen, packing.tile_counts
        if not in_one_launch(offsets) or offsets.data_ptr() & 15:
            return packing.documents.work(True)._replace(max_seqlen=longest, **counts._asdict())
        key = ("lists", offsets.shape, offsets.stride(), offsets.dtype, tokens)
        documents, tiles, _ = self.program.launches.run(
            self.stream, key, self.program.lists, (offsets,), None, tokens, False, False
        )
        return AttentionWork(documents, *(None,) * 4, tiles, tiles, longest, *counts, True, False, False, False)

    def run(self, layer: LayerTensors, eps: float, last_eps: float, hidden: Tensor) -> Tensor:
        """`hidden [T, H]` -> `[T, H]`."""
        program = self.program
        dense = F.linear(self._attend(F.linear(hidden, layer.qkv, layer.qkv_bias)), layer.dense, layer.dense_bias)
        attended = self._again("norm", program.norm, (dense, hidden, layer.norm, layer.norm_bias), eps)
        wide = self._again("gelu", program.gelu, (F.linear(attended, layer.up), layer.up_bias))
        narrow = F.linear(wide, layer.down, layer.down_bias)
        return self._again("norm", program.norm, (narrow, attended, layer.last_norm, layer.last_norm_bias), last_eps)

    def _attend(self, qkv: Tensor) -> Tensor:
        repeat, work = self.program.launches.kept.get(self.key), self.work
        assert work.query_tiles is not None
        lists = (work.documents, work.query_tiles)
        if repeat is None:
            heads = self._heads(qkv)
            made, launched = launches_of(self.program.attention, *heads, work, self.scale, _NOTHING_DROPPED)
            if self.key not in self.program.launches.kept:
                self.program.launches.keep(self.key, Repeat.of(launched, (*heads, *lists), made))
            first_context: Tensor = made[0].flatten(1)
            return first_context
        if self.lse is None:
            self.lse = torch.empty(self.heads, qkv.shape[0], dtype=torch.float32, device=qkv.device)
        columns = self.heads * self.head_dim
        context = qkv.new_empty(qkv.shape[0], columns)
        rest = repeat.values((*lists, context, self.lse))
        if repeat.compiled:
            first, step = qkv.data_ptr(), columns * qkv.element_size()
            repeat(self.stream, (first, first + step, first + 2 * step, *rest))
        else:
            repeat(self.stream, (*self._heads(qkv), *rest))
        return context

    def _heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.view(-1, 3, self.heads, self.head_dim).unbind(1)

    def _again(self, name: str, function: Any, given: tuple[Tensor, ...], *options: float) -> Tensor:
        """What a function makes, which all layers give tensors of the same sizes."""
        known, launches = (name, *options), self.program.launches
        repeat = self.repeats.get(known)
        if repeat is None:
            key = (*known, given[0].shape, given[0].dtype, given[1].dtype)
            (output,) = launches.run(self.stream, key, function, given, *options)
            self.repeats[known] = launches.kept.get(key)
            return output
        (output,) = repeat.new(given)
        repeat(self.stream, repeat.values((*given, output)))
        return output
