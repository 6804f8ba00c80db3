"""What a layer of the usual kind launches on a GPU, again and again on other tensors, with little Python in between.

The first layer of a batch is run as any other, and what it launches is noted. For the rest, addresses are put into the
same arguments. A layer is of the usual kind as BERT's are: norms after the products, the exact GELU, attention by
nothing but scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops.attention.work import AttentionWork
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import Launched, launches_of

MOST = 64  # numbers of rows whose launches are kept
_NOTHING_DROPPED = Dropout(0.0, None)


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
    """A launch on other tensors in the place of some.

    Attributes:
        fits: whether all its tensors are of these, or of those that stay.
    """

    def __init__(self, launched: Launched, tensors: Sequence[Tensor], constants: Iterable[Tensor] = ()) -> None:
        self.again, self.compiled = launched.again, launched.compiled
        self.values: list[Any] = list(launched.values)
        self.kept: list[Tensor] = []
        self.fits = True
        self._slots = {tensor.data_ptr(): slot for slot, tensor in enumerate(tensors)}
        self._storages = {each.untyped_storage().data_ptr() for each in constants}
        # Where tensors go: the argument's place and, where that is a tuple which begins with it, what stands behind it.
        self.places: list[tuple[int, int, Any, tuple[Any, ...]]] = []
        for place, value in enumerate(self.values):
            if isinstance(value, Tensor):
                self._put(place, value, None, ())
            elif isinstance(value, tuple) and any(isinstance(leaf, Tensor) for leaf in value):
                build = value._make if hasattr(value, "_make") and not self.compiled else tuple
                if isinstance(value[0], Tensor) and value[0].data_ptr() in self._slots:
                    self._put(place, value[0], build, value[1:])
                else:
                    self.values[place] = build(self._constant(leaf) for leaf in value)

    def _put(self, place: int, tensor: Tensor, build: Any, rest: tuple[Any, ...]) -> None:
        slot = self._slots.get(tensor.data_ptr())
        if slot is None:
            self.values[place] = self._constant(tensor)
        else:
            self.places.append((place, slot, build, rest))
            self.fits = self.fits and not any(isinstance(leaf, Tensor) for leaf in rest)

    def _constant(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        self.fits = self.fits and leaf.untyped_storage().data_ptr() in self._storages
        self.kept.append(leaf)
        return leaf.data_ptr() if self.compiled else leaf

    def __call__(self, stream: int, *given: Any) -> None:
        values = self.values
        for place, slot, build, rest in self.places:
            values[place] = given[slot] if build is None else build((given[slot], *rest))
        if self.compiled:
            self.again(*values, stream=stream)
        else:
            self.again(*values)


class GpuProgram:
    """The launches of layers of the usual kind, those of norms and activation kept by the number of rows."""

    def __init__(self) -> None:
        from spanbert_kernels.ops.attention import triton_joint
        from spanbert_kernels.ops.bias_gelu import triton as gelu_kernels
        from spanbert_kernels.ops.dropout_add_layer_norm import triton as norm_kernels

        self.attention: Any = triton_joint.forward
        self._norm: Any = norm_kernels.add_layer_norm
        self._gelu: Any = gelu_kernels.forward
        self._kept: dict[tuple[Any, ...], Relaunch] = {}

    def batch(self, work: AttentionWork, heads: int, head_dim: int, scale: float, device: torch.device) -> GpuBatch:
        """What runs the layers of a batch."""
        return GpuBatch(self, work, heads, head_dim, scale, device)

    def normalized(self, stream: int, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """`LayerNorm(x + residual)`."""
        return self._launched(stream, (*x.shape, eps), self._norm, x, residual, weight, bias, eps)

    def activated(self, stream: int, x: Tensor, bias: Tensor) -> Tensor:
        """`GELU(x + bias)`."""
        return self._launched(stream, tuple(x.shape), self._gelu, x, bias)

    def _launched(self, stream: int, key: tuple[Any, ...], function: Any, *values: Any) -> Tensor:
        launch = self._kept.get(key)
        if launch is None:
            output: Tensor
            output, (launched,) = launches_of(function, *values)
            tensors = [each for each in values if isinstance(each, Tensor)]
            if len(self._kept) >= MOST:
                self._kept.clear()
            self._kept[key] = Relaunch(launched, [*tensors, output])
            return output
        output = torch.empty_like(values[0])
        if launch.compiled:
            launch(stream, *[each.data_ptr() for each in values if isinstance(each, Tensor)], output.data_ptr())
        else:
            launch(stream, *[each for each in values if isinstance(each, Tensor)], output)
        return output


class GpuBatch:
    """Runs the layers of a batch, whose attention's launches it notes in the first."""

    def __init__(
        self,
        program: GpuProgram,
        work: AttentionWork,
        heads: int,
        head_dim: int,
        scale: float,
        device: torch.device,
    ) -> None:
        self.program, self.work, self.scale = program, work, scale
        self.heads, self.head_dim = heads, head_dim
        self.stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        self.launches: list[Relaunch] | None = None

    def run(self, tensors: LayerTensors, eps: float, last_eps: float, hidden: Tensor) -> Tensor:
        """`hidden [T, H]` -> `[T, H]`."""
        program, stream = self.program, self.stream
        context = self._attend(F.linear(hidden, tensors.qkv, tensors.qkv_bias))
        dense = F.linear(context, tensors.dense, tensors.dense_bias)
        attended = program.normalized(stream, dense, hidden, tensors.norm, tensors.norm_bias, eps)
        wide = program.activated(stream, F.linear(attended, tensors.up), tensors.up_bias)
        narrow = F.linear(wide, tensors.down, tensors.down_bias)
        return program.normalized(stream, narrow, attended, tensors.last_norm, tensors.last_norm_bias, last_eps)

    def _attend(self, qkv: Tensor) -> Tensor:
        rows, columns = qkv.shape[0], self.heads * self.head_dim
        if self.launches:
            context = qkv.new_empty(rows, columns)
            if self.launches[0].compiled:
                first, step = qkv.data_ptr(), columns * qkv.element_size()
                given: tuple[Any, ...] = (first, first + step, first + 2 * step, context.data_ptr())
            else:
                given = (*qkv.view(rows, 3, self.heads, -1).unbind(1), context.view(rows, self.heads, -1))
            for launch in self.launches:
                launch(self.stream, *given)
            return context
        heads = qkv.view(rows, 3, self.heads, self.head_dim).unbind(1)
        (output, lse), launched = launches_of(self.program.attention, *heads, self.work, self.scale, _NOTHING_DROPPED)
        if self.launches is None:
            stays = [lse, *(each for each in self.work if isinstance(each, Tensor))]
            launches = [Relaunch(each, (*heads, output), stays) for each in launched]
            self.launches = launches if all(each.fits for each in launches) else []
        first_context: Tensor = output.flatten(1)
        return first_context
