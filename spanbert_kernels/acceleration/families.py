"""The table of encoders that can be accelerated: adding one of the same shape is adding a row.

Classes are named, not imported. A row says what the rest of the package must know about a family: how its position ids
follow from a padded batch, and which of its heads read a token's place rather than a real token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

PositionRule = Literal["column", "count"]
Reads = Literal["none", "first", "any"]


@dataclass(frozen=True)
class Family:
    """One row: encoders whose classes are `module.<prefix>Model`, `module.<prefix>Layer` and so on.

    Attributes:
        module: the Python module that defines the classes.
        prefix: what their names begin with.
        positions: "column", a token's column in the padded batch; "count", its count among the ids that are not the
            padding id, from `padding_idx + 1` on (RoBERTa's rule).
        first_token_heads: suffixes of the heads that read token 0 without a pooler.
        pooled: whether the output has a `pooler_output`.
    """

    module: str
    prefix: str
    positions: PositionRule = "column"
    first_token_heads: tuple[str, ...] = ()
    pooled: bool = True

    @property
    def model_class(self) -> str:
        """The name of the base class."""
        return f"{self.prefix}Model"

    def is_class(self, module: nn.Module, suffix: str, *, subclass: bool = False) -> bool:
        """Whether `module` is exactly `<prefix><suffix>`, or with `subclass` a kind of it."""
        kinds = type(module).__mro__ if subclass else (type(module),)
        return any(kind.__module__ == self.module and kind.__name__ == self.prefix + suffix for kind in kinds)

    def patch_refusal(self, kind: type[nn.Module]) -> str | None:
        """Why a class of the family is not transformers' own any more, or None: its forward comes from elsewhere."""
        home = getattr(kind.forward, "__module__", None)
        return None if home == self.module else f"the forward of the class {kind.__name__} was replaced (by {home})"


_FIRST = ("ForSequenceClassification",)

FAMILIES = (
    Family("transformers.models.bert.modeling_bert", "Bert"),
    Family("transformers.models.roberta.modeling_roberta", "Roberta", "count", _FIRST),
    Family("transformers.models.xlm_roberta.modeling_xlm_roberta", "XLMRoberta", "count", _FIRST),
    Family("transformers.models.camembert.modeling_camembert", "Camembert", "count", _FIRST),
    Family("transformers.models.data2vec.modeling_data2vec_text", "Data2VecText", "count", _FIRST),
    Family(
        "transformers.models.electra.modeling_electra",
        "Electra",
        first_token_heads=("ForSequenceClassification", "ForMultipleChoice"),
        pooled=False,
    ),
)

# Encoders of other shapes whose attention alone can be replaced, by transformers' own switch (integrations).
ATTENTION_ALONE = ("AlbertModel", "DistilBertModel")

_BY_CLASS = {(family.module, family.model_class): family for family in FAMILIES}


def family_of(module: nn.Module) -> Family | None:
    """The row that a module's class, or a class it inherits from, belongs to."""
    for ancestor in type(module).__mro__:
        family = _BY_CLASS.get((ancestor.__module__, ancestor.__name__))
        if family is not None:
            return family
    return None


def class_refusal(module: nn.Module) -> str | None:
    """Why an encoder that is in no row is left, and what would work instead; None for what is no encoder."""
    names = {kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("transformers.")}
    if not names.isdisjoint(ATTENTION_ALONE):
        return (
            'it is built otherwise than BERT; loaded with attn_implementation="spanbert_kernels", after '
            "spanbert_kernels.register_attention(), its attention runs without padding"
        )
    if {"embeddings", "encoder"} <= module._modules.keys():
        return f"it is not one of {', '.join(family.model_class for family in FAMILIES)}"
    return None


def mixes_documents(module: nn.Module) -> bool:
    """Whether a model says how its documents see each other between layers.

    Such a model has `cross_document_context(cluster_ids, packing)`, called once a forward; `mix_documents(layer_index,
    hidden, packing, context)`, called on the packed tokens after each layer unless the context is None; and
    `pooled_positions(packing)`, what its pooler reads. Its layers may hold a sub-module `cross_document` and are
    otherwise the family's.
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


def reads_of(family: Family, heads: Iterable[nn.Module]) -> Reads:
    """Which tokens, perhaps padding, the modules that hold a family's encoder read: none by place, the first, any."""
    reads: Reads = "none"
    names = {family.prefix + suffix for suffix in family.first_token_heads}
    for head in heads:
        if names.isdisjoint(ancestor.__name__ for ancestor in type(head).__mro__):
            continue
        summary = getattr(getattr(head, "sequence_summary", None), "summary_type", "first")
        if summary != "first":
            return "any"
        reads = "first"
    return reads


def count_positions(input_ids: Tensor, padding_index: int) -> Tensor:
    """RoBERTa's position ids of a padded batch: `[B, L]` ids -> `[B, L]`.

    Example:
        >>> import torch
        >>> count_positions(torch.tensor([[7, 8, 1, 1], [1, 7, 1, 8]]), padding_index=1).tolist()
        [[2, 3, 1, 1], [1, 2, 1, 3]]
    """
    real = input_ids.ne(padding_index).long()
    return real.cumsum(1) * real + padding_index
