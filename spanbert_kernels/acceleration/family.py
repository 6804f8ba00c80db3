"""What a family of encoders is: the classes that it is made of, and what the packed forward must know of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from spanbert_kernels.acceleration.convolution import Convolution
from spanbert_kernels.acceleration.layouts import LayerLayout, at
from spanbert_kernels.acceleration.relative import EncoderTerms
from spanbert_kernels.acceleration.rotary import RotaryModule, RotaryTable

PositionRule = Literal["column", "count"]

INPUTS = ("input_ids", "token_type_ids", "position_ids", "inputs_embeds")


def in_turn(model: Any, layers: nn.ModuleList) -> list[nn.Module]:
    """Every layer once."""
    return list(layers)


def as_configured(model: Any, layers: nn.ModuleList) -> list[nn.Module]:
    """As many of the layers as the configuration says."""
    return list(layers)[: model.config.num_hidden_layers]


def in_groups(model: Any, groups: nn.ModuleList) -> list[nn.Module]:
    """The layers of groups, each of which acts for an equal share of the layers that the encoder is said to have."""
    count = model.config.num_hidden_layers
    chosen: Any = (groups[int(index / (count / len(groups)))] for index in range(count))
    return [layer for group in chosen for layer in group.albert_layers]


def pooled_by_module(model: Any, hidden: Tensor) -> Tensor | None:
    """The pooler's output: it takes hidden states `[B, L, H]` and reads their first column."""
    pooled: Tensor | None = None if model.pooler is None else model.pooler(hidden)
    return pooled


def pooled_by_linear(model: Any, hidden: Tensor) -> Tensor | None:
    """The output of a pooler that is a Linear, and of the activation beside it."""
    pooled: Tensor | None = None if model.pooler is None else model.pooler_activation(model.pooler(hidden[:, 0]))
    return pooled


def _changes(kind: type, own: type) -> bool:
    """Whether a class has other methods in the place of those that transformers gave its ancestor `own`."""
    theirs = {name for each in own.__mro__ if each.__module__.startswith("transformers.") for name in vars(each)}
    return any(
        name in theirs and not name.startswith("__") and inspect.unwrap(value) is not inspect.unwrap(getattr(own, name))
        for name, value in vars(kind).items()
    )


@dataclass(frozen=True)
class Family:
    """One row: encoders of one class, and of classes that inherit from it.

    Attributes:
        module: the Python module that defines the classes.
        model_class: the encoder's class.
        classes: the classes of its parts: path in the encoder -> name.
        layer_classes: the classes of a layer's parts: path in the layer, "" for itself -> name.
        layout: where the parts of a layer are, and in which order they act.
        layers: the path of the list of layers.
        order: the layers as they act, of the encoder and that list.
        group_class: the class of what that list holds, where that is groups of layers.
        norm: the path of a norm after the last layer.
        projection: the path of a Linear between embeddings and layers; it may be missing.
        inputs: what the encoder and its embeddings are given, token by token.
        unembedded: which of them the embeddings do not take.
        zeros: inputs that stand for zeros where a call leaves them out: name -> sizes after `[batch, length]`.
        positions: "column", a token's column in the padded batch; "count", its count among the ids that are not the
            padding id, from `padding_idx + 1` on (RoBERTa's rule).
        rotary: what turns queries and keys; positions then are for it alone.
        relative: what gives layers their terms by distance.
        convolution: what joins the output of the first layer.
        distances: whether attention looks at how many columns two tokens are apart, whatever their position ids say.
        first_token_heads: classes of heads that read token 0 without a pooler.
        output: the class of the output, in `transformers.modeling_outputs`.
        pool: of the encoder and its last hidden states, what its pooler returns; None if it never has a pooler.
        settings: attributes of the encoder and the values without which its forward does something else.
        captures: whether hidden states are captured by hooks, and may be asked for by index. Older forwards collect
            them themselves: their tuples keep the place of a missing pooler.
    """

    module: str
    model_class: str
    classes: Mapping[str, str]
    layer_classes: Mapping[str, str]
    layout: LayerLayout
    layers: str = "encoder.layer"
    order: Callable[[Any, nn.ModuleList], list[nn.Module]] = in_turn
    group_class: str | None = None
    norm: str | None = None
    projection: str | None = None
    inputs: tuple[str, ...] = INPUTS
    unembedded: tuple[str, ...] = ()
    zeros: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    positions: PositionRule = "column"
    rotary: RotaryModule | RotaryTable | None = None
    relative: EncoderTerms | None = None
    convolution: Convolution | None = None
    distances: bool = False
    first_token_heads: tuple[str, ...] = ()
    output: str = "BaseModelOutputWithPoolingAndCrossAttentions"
    pool: Callable[[Any, Tensor], Tensor | None] | None = pooled_by_module
    settings: Mapping[str, Any] = field(default_factory=dict)
    captures: bool = True

    @property
    def roots(self) -> list[str]:
        """The attributes of an encoder that its embeddings, layers and norms are held by."""
        paths = (*self.classes, self.layers, *filter(None, [self.norm]))
        return list(dict.fromkeys(path.partition(".")[0] for path in paths))

    @property
    def description(self) -> tuple[str, str]:
        """Where a token's position comes from, and what the layers are like, in words."""
        position = {"column": "its column in the padded batch", "count": "its count among the real tokens"}
        layers = {"post": "norms of the sums", "pre": "norms before the products"}[self.layout.norms]
        layers += ", gated" if self.layout.joined_gate or len(self.layout.up) == 2 else ""
        layers += ", shared" if self.group_class is not None else ""
        layers += "" if self.relative is None else ", attention by distance"
        layers += "" if self.layout.window is None else ", windows"
        return position[self.positions] + (", as a rotation" if self.rotary is not None else ""), layers

    def is_class(self, module: nn.Module, name: str, *, subclass: bool = False) -> bool:
        """Whether `module` is of the family's class of that name, or of a kind of it that changes none of its methods,
        as sharding makes one; with `subclass`, of any kind of it.
        """
        kinds = type(module).__mro__
        places = [place for place, kind in enumerate(kinds) if (kind.__module__, kind.__name__) == (self.module, name)]
        if not places:
            return False
        return subclass or not any(_changes(kind, kinds[places[0]]) for kind in kinds[: places[0]])

    def patch_refusal(self, kind: type[nn.Module]) -> str | None:
        """Why a class of the family is not transformers' own any more, or None: its forward comes from elsewhere."""
        home = getattr(kind.forward, "__module__", None)
        return None if home == self.module else f"the forward of the class {kind.__name__} was replaced (by {home})"

    def layers_of(self, model: Any) -> list[nn.Module]:
        """The layers as they act, one that is shared as often as it acts."""
        return self.order(model, at(model, self.layers))

    def longest(self, model: Any) -> int | None:
        """How many columns a batch may have whose positions are not given, or None: any number."""
        if self.rotary is not None:
            return self.rotary.longest(model)
        # Some encoders of a family may have no vectors of positions.
        limited = self.positions == "column" and model.embeddings.position_embeddings is not None
        return model.embeddings.position_ids.shape[1] if limited else None


def mixes_documents(module: nn.Module) -> bool:
    """Whether a model says how its documents see each other between layers.

    Such a model has `cross_document_context(cluster_ids, packing, cluster_group)`, called once a forward;
    `mix_documents(layer_index, hidden, packing, context)`, called on the packed tokens after each layer unless the
    context is None; and `pooled_positions(packing)`, what its pooler reads. Its layers may hold a sub-module
    `cross_document` and are otherwise the family's.
    """
    return hasattr(module, "cross_document_context")


def override_refusal(module: nn.Module, family: Family) -> str | None:
    """Why a subclass of the family's model cannot be replaced, or None.

    A subclass with a forward of its own computes something else, unless it says what (`mixes_documents`).
    """
    for ancestor in type(module).__mro__:
        if "cross_document_context" in ancestor.__dict__:
            return None
        if (ancestor.__module__, ancestor.__name__) == (family.module, family.model_class):
            return family.patch_refusal(ancestor)
        for name in ("forward", "_create_attention_masks"):
            if name in ancestor.__dict__:
                return f"{ancestor.__name__} overrides {name}"
    return None


def count_positions(input_ids: Tensor, padding_index: int) -> Tensor:
    """RoBERTa's position ids of a padded batch: `[B, L]` ids -> `[B, L]`.

    Example:
        >>> import torch
        >>> count_positions(torch.tensor([[7, 8, 1, 1], [1, 7, 1, 8]]), padding_index=1).tolist()
        [[2, 3, 1, 1], [1, 2, 1, 3]]
    """
    real = input_ids.ne(padding_index).long()
    return real.cumsum(1) * real + padding_index
