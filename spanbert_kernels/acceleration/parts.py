"""The modules of an encoder that the three ways through its layers read: `training`, `inference` and `fused`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels.acceleration.layouts import LayerLayout, at
from spanbert_kernels.acceleration.relative import LayerTerms
from spanbert_kernels.acceleration.rotary import Angles
from spanbert_kernels.acceleration.stand_ins import is_read, is_sharded
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.ops import RelativeTerms

TermsOf = Callable[[Any, tuple[nn.Linear, ...]], LayerTerms]


class Joint(NamedTuple):
    """Products of one input: Linears beside each other, or one Linear that holds them all.

    Attributes:
        linears: one for each output, or one for all outputs.
        outputs: how many there are.
        groups: of one Linear's rows: each group has its part of the first output, then of the second, and so on.
        beside: a module that has the outputs' biases, where the Linears have none, and their attributes; None: no bias.

    Example:
        >>> linear = nn.Linear(2, 4, bias=False)
        >>> by_head = Joint((linear,), outputs=2, groups=2)
        >>> [torch.equal(ours, linear.weight[rows]) for ours, rows in zip(by_head.weights(), ([0, 2], [1, 3]))]
        [True, True]
    """

    linears: tuple[nn.Linear, ...]
    outputs: int
    groups: int = 1
    beside: tuple[Any, tuple[str | None, ...]] | None = None

    def __call__(self, product: Callable[[nn.Linear, Tensor], Tensor], x: Tensor) -> tuple[Tensor, ...]:
        """`x [T, H]` -> one `[T, columns]` for each output, by `product(linear, x)`."""
        products = [product(linear, x) for linear in self.linears]
        if len(products) == self.outputs:
            return tuple(products)
        joined = products[0].view(x.shape[0], self.groups, self.outputs, -1)
        split = [each.flatten(1) for each in joined.unbind(2)]
        if self.beside is None:
            return tuple(split)
        pairs = zip(split, self.biases(), strict=True)
        return tuple(each if bias is None else each + bias.to(each.dtype) for each, bias in pairs)

    def weights(self) -> list[Tensor]:
        """The weight of each output, `[columns, H]`."""
        return self._split([linear.weight for linear in self.linears])

    def biases(self) -> list[Tensor | None]:
        """The bias of each output, `[columns]`, or None."""
        if self.beside is not None:
            module, names = self.beside
            return [None if name is None else getattr(module, name) for name in names]
        found = [linear.bias for linear in self.linears]
        return [None] * self.outputs if len(found) < self.outputs and found[0] is None else self._split(found)

    def weight(self) -> Tensor:
        """All weights, one output after the other."""
        weights = self.weights()
        return weights[0] if self.outputs == 1 else torch.cat(weights)

    def bias(self) -> Tensor | None:
        """All biases, one output after the other, zeros where only some outputs have one."""
        biases = self.biases()
        if all(bias is None for bias in biases):
            return None
        pairs = zip(self.weights(), biases, strict=True)
        return torch.cat([weight.new_zeros(weight.shape[0]) if bias is None else bias for weight, bias in pairs])

    def _split(self, found: list[Any]) -> list[Any]:
        if len(found) == self.outputs:
            return found
        rows = found[0].unflatten(0, (self.groups, self.outputs, -1))
        return [each.flatten(0, 1) for each in rows.unbind(1)]


class LayerParts(NamedTuple):
    """The modules of one layer, looked up once. What is None the layer does not have."""

    layout: LayerLayout
    layer: Any
    attention: Any
    projections: Joint
    attention_dropout: nn.Dropout | None
    dense: nn.Linear
    attention_output_dropout: nn.Dropout | None
    attention_norm: nn.LayerNorm | None
    up: Joint
    activation: Any
    down: nn.Linear
    output_dropout: nn.Dropout | None
    norm: nn.LayerNorm
    feed_forward: Any
    sharded: bool = False
    inner_dropout: nn.Dropout | None = None
    angles: Angles | None = None
    relative: LayerTerms | None = None

    @classmethod
    def of(
        cls,
        layer: Any,
        layout: LayerLayout,
        angles: Callable[[Any], Angles] | None = None,
        relative: TermsOf | None = None,
    ) -> LayerParts:
        """The parts of a layer that `structure.layer_refusal` accepts.

        Args:
            layer: the layer.
            layout: where they are.
            angles: of the layer, those of its rotary positions, if it has some.
            relative: of attention and its projections, what gives the layer its terms by distance, if it has some.
        """

        def part(path: str | None) -> Any:
            found = None if path is None else at(layer, path)
            return None if path in layout.identities and isinstance(found, nn.Identity) else found

        attention = part(layout.attention)
        projections = tuple(map(part, layout.projections))
        groups = 1
        if layout.per_head:
            groups = projections[0].out_features // (3 * getattr(attention, layout.head_dim))
        up = tuple(map(part, layout.up))
        return cls(
            layout,
            layer,
            attention,
            Joint(projections, 3, groups, (attention, layout.biases) if layout.biases else None),
            part(layout.attention_dropout),
            part(layout.dense),
            part(layout.attention_output_dropout),
            part(layout.attention_norm),
            Joint(up, 2 if layout.joined_gate else len(up)),
            part(layout.activation),
            part(layout.down),
            part(layout.output_dropout),
            part(layout.norm),
            part(layout.feed_forward),
            is_sharded(layer),
            part(layout.inner_dropout),
            None if angles is None else angles(layer),
            None if relative is None else relative(attention, projections),
        )

    @property
    def head_dim(self) -> int:
        """Columns of a head."""
        size: int = getattr(self.attention, self.layout.head_dim)
        return size

    @property
    def heads(self) -> int:
        """How many heads attention has."""
        return self.dense.in_features // self.head_dim

    @property
    def scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        scale: float | None = None if self.relative is None else self.relative.scale()
        return getattr(self.attention, "scaling", self.head_dim**-0.5) if scale is None else scale

    @property
    def window(self) -> int | None:
        """How many tokens before and behind it a query sees; None: all of its document."""
        return None if self.layout.window is None else self.layout.window(self.attention)

    @property
    def turns_values(self) -> bool:
        """Whether rotary positions turn values too."""
        return bool(getattr(self.attention, "rotary_value", False))

    @property
    def gated(self) -> bool:
        """Whether the activation is multiplied by a gate."""
        return self.up.outputs == 2

    def norm_before(self, norm: nn.LayerNorm | None) -> nn.LayerNorm | None:
        """The norm of what a block's products take, if it stands there."""
        return norm if self.layout.norms == "pre" else None

    def norm_after(self, norm: nn.LayerNorm | None) -> nn.LayerNorm | None:
        """The norm of a block's sum, if it stands there."""
        return norm if self.layout.norms == "post" else None

    @property
    def attention_dropout_p(self) -> float:
        """With which probability attention's weights are dropped now."""
        layout, dropout = self.layout, self.attention_dropout
        switch = dropout if layout.dropout_switch == "dropout" and dropout is not None else self.attention
        if not switch.training:
            return 0.0
        p: float = getattr(self.attention, layout.attention_dropout_p or "") if dropout is None else dropout.p
        return p

    @property
    def chunk_size(self) -> int:
        """Of how many columns of a batch the feed-forward block takes the rows together; 0 for all."""
        return getattr(self.feed_forward, "chunk_size_feed_forward", 0)

    def linears(self) -> tuple[nn.Linear, ...]:
        """All Linears."""
        return (*self.projections.linears, self.dense, *self.up.linears, self.down)

    def parameters(self) -> list[Tensor]:
        """The weights and biases that there are: of the Linears, then of the norms, then those beside Linears."""
        beside = [] if self.projections.beside is None else self.projections.biases()
        found = parameters_of((*self.linears(), self.attention_norm, self.norm))
        return [*found, *(bias for bias in beside if bias is not None)]

    def fixed_terms(self) -> RelativeTerms | None:
        """The layer's terms by distance in inference, where they follow from weights alone; None if it has none."""
        if self.relative is None:
            return None
        with torch.no_grad(), torch.autocast(self.dense.weight.device.type, enabled=False):
            return self.relative.terms(lambda linear, x: F.linear(x, linear.weight, linear.bias))

    def drops(self) -> bool:
        """Whether any dropout of the layer is at work."""
        dropouts = (self.attention_output_dropout, self.inner_dropout, self.output_dropout)
        return (
            self.attention_dropout_p > 0.0
            or any(each is not None and each.training and each.p > 0.0 for each in dropouts)
            or (self.relative is not None and self.relative.drops())
        )


def eps_of(norm: nn.LayerNorm) -> float:
    """What a norm adds to the variance, by whichever name."""
    eps: float = norm.eps if isinstance(norm, nn.LayerNorm) else norm.variance_epsilon
    return eps


def parameters_of(modules: Iterable[nn.Module | None]) -> list[Tensor]:
    """The weights and biases that these Linears and norms have."""
    found = []
    for module in modules:
        if module is None:
            continue
        # Parameters are quicker to get at as such; a parametrisation or a deleted parameter is an attribute.
        held = module._parameters
        for name in ("weight", "bias"):
            tensor = held[name] if name in held else getattr(module, name, None)
            if tensor is not None:
                found.append(tensor)
    return found


@dataclass(frozen=True, eq=False)
class EncoderParts:
    """The layers of an encoder in the order in which they act, and the norm after the last.

    Attributes:
        layers: a layer that acts several times stands here as often, as the same object.
        norm: the norm after the last layer, if there is one.
        convolution: what joins the output of the first layer: of the embeddings and that, both `[T, H]`, and of their
            packing, what the next layer takes.
    """

    layers: Sequence[LayerParts]
    norm: nn.LayerNorm | None = None
    convolution: Callable[[Tensor, Tensor, Packing], Tensor] | None = None

    @cached_property
    def distinct(self) -> list[LayerParts]:
        """The layers, each once."""
        return list({id(each): each for each in self.layers}.values())

    @cached_property
    def angles(self) -> list[Angles]:
        """The angles of the layers' rotary positions, each once."""
        return list(dict.fromkeys(parts.angles for parts in self.distinct if parts.angles is not None))

    def tables(self) -> list[Tensor]:
        """The weights and biases that the layers' terms by distance are made of."""
        return parameters_of(self._makers())

    def _makers(self) -> list[nn.Module]:
        found = (parts.relative for parts in self.distinct)
        return list(dict.fromkeys(module for each in found if each is not None for module in each.modules()))

    def table_settings(self) -> list[tuple[Any, ...]]:
        """What else they follow from."""
        return [parts.relative.settings() for parts in self.distinct if parts.relative is not None]

    @cached_property
    def read(self) -> bool:
        """Whether the weights say what the layers compute: neither a layer nor a product or norm must be called."""
        if any(parts.sharded for parts in self.distinct):
            return False
        held = (each for parts in self.distinct for each in (*parts.linears(), parts.attention_norm, parts.norm))
        return all(is_read(module) for module in (*held, self.norm, *self._makers()) if module is not None)

    @cached_property
    def places(self) -> list[int]:
        """Of each layer: where it stands in `distinct`."""
        places = {id(each): place for place, each in enumerate(self.distinct)}
        return [places[id(each)] for each in self.layers]

    def runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The layers first .. last - 1 as ranges of `distinct`, as long as can be."""
        start = first
        for index in range(first + 1, last + 1):
            if index == last or self.places[index] != self.places[index - 1] + 1:
                yield self.places[start], self.places[index - 1] + 1
                start = index

    def norm_after(self, last: int) -> nn.LayerNorm | None:
        """The norm after the layers .. last - 1: that after the last layer, or None."""
        return self.norm if last == len(self.layers) else None
