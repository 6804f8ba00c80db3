"""Configurations: an encoder's own, and where and how documents see each other, and what heads read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import BertConfig

from spanbert_kernels import __version__
from spanbert_kernels.models.checkpoints import resolve_model
from spanbert_kernels.nn.cross_document_mixer import check_choice
from spanbert_kernels.ops.choices import ANCHORS, NORMALIZATIONS, ROLES, Anchor, Normalization, Role

WRITTEN_BY = {"library_name": "spanbert_kernels", "spanbert_kernels_version": __version__}
POOLER_TOKENS = ("first", "anchor")

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Configuration
else:
    Configuration = object  # it stands before a family's configuration, whose fields come first
fields: Any = dataclass(kw_only=True)


@fields
class DocumentFields(Configuration):
    """What is added to an encoder's configuration; the fields are told by `SpanBERTConfig`.

    Attributes:
        read: the types of encoders whose configurations can be read.
        reader: what reads them, in words.
        written: what `config.json` says beside the fields.
        counts_positions: whether positions begin behind the padding id, as RoBERTa's do.
    """

    read: ClassVar[tuple[str, ...]] = ("bert", "spanbert")
    reader: ClassVar[str] = "SpanBERT"
    written: ClassVar[dict[str, Any]] = {}
    counts_positions: ClassVar[bool] = False

    cross_document_layers: list[int] = field(default_factory=list)
    cross_document_queries: Role = "anchors"
    cross_document_keys: Role = "anchors"
    cross_document_include_self: bool = False
    cross_document_normalize: Normalization = "joint"
    cross_document_anchor: Anchor = "last"
    pooler_token: str = "first"
    kept_spans_share: float = 0.4
    max_antecedents: int = 50
    max_span_targets: int = 20
    max_span_width: int = 20
    relation_places: bool = False
    picked_sentences: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        # a folder says the encoder's type, and an attribute would hide the class's own
        for name in ("model_type", "encoder_type", *WRITTEN_BY):
            kwargs.pop(name, None)
        super().__post_init__(**kwargs)
        self.check_cross_document()

    def check_cross_document(self) -> None:
        """Raises as the class says; called again when a model is built, since fields can be assigned."""
        self._check_layers()
        check_choice("cross_document_queries", self.cross_document_queries, ROLES)
        check_choice("cross_document_keys", self.cross_document_keys, ROLES)
        check_choice("cross_document_normalize", self.cross_document_normalize, NORMALIZATIONS)
        check_choice("cross_document_anchor", self.cross_document_anchor, ANCHORS)
        check_choice("pooler_token", self.pooler_token, POOLER_TOKENS)
        if not isinstance(self.cross_document_include_self, bool):
            raise TypeError(f"cross_document_include_self must be a bool, got {self.cross_document_include_self!r}")
        if getattr(self, "is_decoder", False) and (self.cross_document_layers or self.pooler_token == "anchor"):
            raise ValueError(
                "a decoder (is_decoder=True) cannot have cross-document layers or an anchor pooler, got "
                f"cross_document_layers={self.cross_document_layers}, pooler_token={self.pooler_token!r}"
            )
        self._check_last_layer_is_read()

    def _check_layers(self) -> None:
        layers = self.cross_document_layers
        if not isinstance(layers, (list, tuple)) or not all(type(layer) is int for layer in layers):
            raise TypeError(f"cross_document_layers must be a list of integers, got {layers!r}")
        for layer in layers:
            if not 0 <= layer < self.num_hidden_layers:
                raise ValueError(
                    f"cross_document_layers names layer {layer}, but the layers are 0 to {self.num_hidden_layers - 1}"
                )
        if len(set(layers)) != len(layers):
            raise ValueError(f"cross_document_layers names a layer twice: {layers}")

    def _check_last_layer_is_read(self) -> None:
        last = self.num_hidden_layers - 1
        if last not in self.cross_document_layers or self.cross_document_queries == "tokens":
            return
        if self.pooler_token == "first" and self.cross_document_anchor == "last":
            raise ValueError(
                f"cross_document_layers={list(self.cross_document_layers)} ends with the last layer, {last}, which "
                'changes the last token of each document alone, but pooler_token="first" reads the first: set '
                'pooler_token="anchor", cross_document_queries="tokens" or cross_document_anchor="first", or leave '
                f"layer {last} out"
            )

    @property
    def positions(self) -> int:
        """Tokens of the longest text, the special ones counted."""
        passed_over = (self.pad_token_id or 0) + 1 if self.counts_positions else 0
        return int(self.max_position_embeddings) - passed_over

    @property
    def takes_token_types(self) -> bool:
        """Whether a question and its text can be told apart by token types."""
        return (getattr(self, "type_vocab_size", None) or 0) > 1

    @property
    def dropout_probability(self) -> float:
        """Of hidden states, in heads and cross-document layers."""
        return float(self._first("hidden_dropout_prob", "dropout", "mlp_dropout", default=0.0))

    @property
    def attention_dropout_probability(self) -> float:
        """Of attention, in cross-document layers."""
        return float(self._first("attention_probs_dropout_prob", "attention_dropout", default=0.0))

    @property
    def norm_eps_of_heads(self) -> float:
        """Of the norms in heads and cross-document layers."""
        return float(self._first("layer_norm_eps", "norm_eps", default=1e-12))

    def _first(self, *names: str, default: float) -> float:
        """Of these fields the first that the family's configurations have."""
        return next((getattr(self, name) for name in names if getattr(self, name, None) is not None), default)

    def to_dict(self) -> dict[str, Any]:
        """All fields, and what to install where the class is not known."""
        return {**super().to_dict(), **self.written, **WRITTEN_BY}

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a folder's or a hub repository's `config.json`, the encoder's own or one of ours."""
        name = resolve_model(pretrained_model_name_or_path, kwargs.get("subfolder", ""))
        values, kwargs = super().get_config_dict(name, **kwargs)
        if (model_type := encoder_type_of(values)) not in cls.read:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} holds a model of type {model_type!r}: "
                f"{cls.reader} reads checkpoints of type {' and '.join(map(repr, cls.read))}"
            )
        return {**values, "model_type": cls.model_type}, kwargs


def encoder_type_of(values: dict[str, Any]) -> str:
    """The type of the encoder that a `config.json` is of; BERT where it does not say.

    Example:
        >>> encoder_type_of({"model_type": "span_encoder", "encoder_type": "roberta"})
        'roberta'
    """
    named = values.get("encoder_type") or values.get("model_type") or "bert"
    return str(SpanBERTConfig.model_type if named == "spanbert_windows" else named)


class SpanBERTConfig(DocumentFields, BertConfig):
    """BERT's configuration with the cross-document layers.

    Attributes:
        cross_document_layers: 0-based indices of the encoder layers after which documents of a cluster see each other.
        cross_document_queries: "anchors" or "tokens", what attends to the other documents.
        cross_document_keys: "anchors" or "tokens", what they attend to.
        cross_document_include_self: whether a document sees itself too.
        cross_document_normalize: "joint", one softmax over all documents seen, or "pairwise", one per document.
        cross_document_anchor: "last" or "first", which real token stands for a document.
        pooler_token: "first", the first column as in BERT, or "anchor".
        max_span_width: words of the widest span that a span classifier scores.
        relation_places: whether relations are scored wherever two entities have mentions in one window, or once for
            both, as models did that were trained before.
        kept_spans_share: mentions that coreference keeps, as a share of the words.
        max_antecedents: earlier mentions that coreference compares each one with.
        picked_sentences: of a document, that an extraction makes its summary of.
        max_span_targets: tokens of a masked span that the span boundary objective predicts, the first ones.

    Raises:
        ValueError: a value is not one of these, a layer does not exist or is named twice, the model is a decoder, or
            the last layer's result would be written to a token that nothing reads.
        TypeError: `cross_document_layers` holds something other than integers.

    Example:
        >>> config = SpanBERTConfig(num_hidden_layers=4, cross_document_layers=[1, 2])
        >>> config.cross_document_queries, config.pooler_token
        ('anchors', 'first')
    """

    model_type = "spanbert"
