"""The models on encoders of every family that `accelerate` knows: a row of its table gives all of them.

What `SpanBERTForCoreference` is on BERT, `SpanRobertaForCoreference` is on RoBERTa: the same head before the family's
own classes, under the names that its checkpoints have. Classes are made when they are asked for, by name in this module
or by `kind_on`; their folders say that they are of type `span_encoder`, and of which type the encoder is.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any, ClassVar

from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from spanbert_kernels.acceleration.families import FAMILIES
from spanbert_kernels.models.checkpoints import resolve_model
from spanbert_kernels.models.configuration import DocumentFields, encoder_type_of
from spanbert_kernels.models.coreference import Coreference
from spanbert_kernels.models.extraction import SentenceExtractor
from spanbert_kernels.models.generation import WindowedEncoder, WindowFields
from spanbert_kernels.models.modeling import ClusterEncoder, DocumentLayer, DocumentModel
from spanbert_kernels.models.parsing import DependencyParser
from spanbert_kernels.models.relations import Relations
from spanbert_kernels.models.spans import SpanClassifier
from spanbert_kernels.models.token_heads import AnswerFinder, SequenceClassifier, TokenClassifier

# What stands before a family's classes, by the name that the class has with BERT's.
HEADS: dict[str, type[DocumentModel]] = {
    "SpanBERTModel": ClusterEncoder,
    "SpanBERTForCoreference": Coreference,
    "SpanBERTForDependencyParsing": DependencyParser,
    "SpanBERTForExtraction": SentenceExtractor,
    "SpanBERTForQuestionAnswering": AnswerFinder,
    "SpanBERTForRelations": Relations,
    "SpanBERTForSequenceClassification": SequenceClassifier,
    "SpanBERTForSpanClassification": SpanClassifier,
    "SpanBERTForTokenClassification": TokenClassifier,
    "WindowedSpanBERTModel": WindowedEncoder,
}
_AUTO = {
    "SpanBERTModel": AutoModel,
    "SpanBERTForQuestionAnswering": AutoModelForQuestionAnswering,
    "SpanBERTForSequenceClassification": AutoModelForSequenceClassification,
    "SpanBERTForTokenClassification": AutoModelForTokenClassification,
    "WindowedSpanBERTModel": AutoModel,
}


class SpanEncoderConfig(PreTrainedConfig):
    """The door that `AutoConfig` comes in by: it gives the configuration of the family that a folder names.

    Args:
        encoder_type: the model type of the family.

    Example:
        >>> config = SpanEncoderConfig(encoder_type="roberta", num_hidden_layers=2, cross_document_layers=[0])
        >>> type(config).__name__, config.model_type, config.positions
        ('SpanRobertaConfig', 'span_encoder', 510)
    """

    model_type = "span_encoder"
    encoder_type: str = ""
    opens: ClassVar[str] = "SpanBERTConfig"

    def __new__(cls, *, encoder_type: str = "", **fields: Any) -> Any:
        return cls._behind(encoder_type)(**fields)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The same, of the content of a `config.json`."""
        return cls._behind(str(config_dict.get("encoder_type"))).from_dict(config_dict, **kwargs)

    @classmethod
    def _behind(cls, encoder_type: str) -> Any:
        stem = _stem_of(encoder_type)
        _register(stem)
        return _made(cls.opens, stem)


class WindowedSpanEncoderConfig(SpanEncoderConfig):
    """The same for encoders of windows.

    Args:
        encoder_type: the model type of the family.

    Example:
        >>> WindowedSpanEncoderConfig(encoder_type="electra", window_length=64).window_length
        64
    """

    model_type = "span_encoder_windows"
    opens: ClassVar[str] = "WindowedSpanBERTConfig"


def kind_on(kind: Any, encoder_type: str) -> Any:
    """What a class of SpanBERT's is on encoders of another type.

    Args:
        kind: a class that stands on BERT, such as `SpanBERTForCoreference`.
        encoder_type: the model type in the encoder's configuration.

    Returns:
        The class on that encoder: `kind` itself on BERT.

    Raises:
        ValueError: no encoder of that type is known, or the class stands on BERT alone.

    Example:
        >>> from spanbert_kernels import SpanBERTForCoreference
        >>> kind_on(SpanBERTForCoreference, "distilbert").__name__
        'SpanDistilBertForCoreference'
    """
    if encoder_type in DocumentFields.read:
        return kind
    stem = _stem_of(encoder_type)
    if kind.__name__ not in HEADS:
        raise ValueError(f"{kind.__name__} stands on BERT alone, not on an encoder of type {encoder_type!r}")
    return _made(kind.__name__, stem)


def kind_for(kind: Any, name: str | os.PathLike[str]) -> Any:
    """The same on the encoder of a checkpoint, a local folder or a hub name.

    Args:
        kind: a class that stands on BERT; another is given back as it is.
        name: of the checkpoint.

    Returns:
        The class on its encoder.

    Raises:
        ValueError: as `kind_on`.
        OSError: there is no such checkpoint.

    Example:
        >>> import tempfile
        >>> from transformers import ElectraConfig
        >>> from spanbert_kernels import SpanBERTModel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ElectraConfig().save_pretrained(folder)
        ...     kind_for(SpanBERTModel, folder).__name__
        'SpanElectraModel'
    """
    if not issubclass(kind, DocumentModel):
        return kind
    values, _ = PreTrainedConfig.get_config_dict(resolve_model(name))
    return kind_on(kind, encoder_type_of(values))


def __getattr__(name: str) -> Any:
    """The classes of this module by name, so that models can be pickled."""
    for stem in _FAMILIES:
        template = name.replace(f"Span{stem}", "SpanBERT")
        if template != name and template in (*HEADS, *_CONFIGURATIONS, _LAYER):
            return _made(template, stem)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_LAYER = "SpanBERTLayer"
_CONFIGURATIONS = ("SpanBERTConfig", "WindowedSpanBERTConfig")

# By the beginning of their classes' names; BERT's classes are written out.
_FAMILIES = {
    family.model_class.removesuffix("Model"): family for family in FAMILIES if family.model_class != "BertModel"
}


def _stem_of(encoder_type: str) -> str:
    stem = CONFIG_MAPPING_NAMES.get(encoder_type, "").removesuffix("Config")
    if stem not in _FAMILIES:
        known = ", ".join(("Bert", *_FAMILIES))
        raise ValueError(f"encoders of type {encoder_type!r} are not known: a checkpoint of one of {known} is wanted")
    return stem


@functools.cache
def _made(template: str, stem: str) -> Any:
    """The class that a family has for one of SpanBERT's."""
    family = _FAMILIES[stem]
    theirs, name = importlib.import_module(family.module), template.replace("SpanBERT", f"Span{stem}")
    if template == "WindowedSpanBERTConfig":
        type_ = {"model_type": WindowedSpanEncoderConfig.model_type}
        return _new(name, (WindowFields, _made("SpanBERTConfig", stem)), type_)
    if template == "SpanBERTConfig":
        own = getattr(theirs, f"{stem}Config")
        members: dict[str, Any] = {
            "model_type": SpanEncoderConfig.model_type,
            "read": (own.model_type,),
            "reader": f"Span{stem}",
            "written": {"encoder_type": own.model_type},
            "counts_positions": family.positions == "count",
        }
        return _new(name, (DocumentFields, own), members)
    if template == _LAYER:
        return _new(name, (DocumentLayer, getattr(theirs, family.layer_classes[""])), {})
    encoder = getattr(theirs, family.model_class)
    layer = _made(_LAYER, stem)
    members = {
        "config_class": _made("WindowedSpanBERTConfig" if "Windowed" in template else "SpanBERTConfig", stem),
        "layer_class": layer,
        "_no_split_modules": (*(encoder._no_split_modules or ()), layer.__name__),
    }
    renamed = get_checkpoint_conversion_mapping(encoder.config_class.model_type)
    if renamed is not None:  # checkpoints of the family have other names, which transformers looks up by class
        register_checkpoint_conversion_mapping(name, renamed, overwrite=True)
    if template == "SpanBERTModel":
        return _new(name, (ClusterEncoder, encoder), members)
    members["encoder_class"] = _made("SpanBERTModel", stem)
    return _new(name, (HEADS[template], getattr(theirs, f"{stem}PreTrainedModel")), members)


def _new(name: str, bases: tuple[type, ...], members: dict[str, Any]) -> Any:
    documentation = f"{bases[0].__doc__}".split("\n")[0]
    return type(name, bases, {**members, "__module__": __name__, "__doc__": f"{documentation} Made by `kind_on`."})


@functools.cache
def _register(stem: str) -> None:
    """Lets transformers' Auto classes load what was saved."""
    for template, auto in _AUTO.items():
        kind = _made(template, stem)
        auto.register(kind.config_class, kind, exist_ok=True)
