"""The table of encoders that can be accelerated: adding one is adding a row.

Classes are named, not imported. A row (`family`) says which classes a family is made of, where the parts of its layers
are (`layouts`), what its embeddings take, how its position ids follow from a padded batch, what it returns, and which
of its heads read a token's place rather than a real token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from spanbert_kernels.acceleration import layouts
from spanbert_kernels.acceleration.convolution import Convolution
from spanbert_kernels.acceleration.disentangled import Disentangled
from spanbert_kernels.acceleration.family import INPUTS, Family, as_configured, in_groups, pooled_by_linear
from spanbert_kernels.acceleration.relative import SharedBias
from spanbert_kernels.acceleration.rotary import RotaryModule, RotaryTable

Reads = Literal["none", "first", "any"]


def _bert(folder: str, prefix: str, heads: Iterable[str] = (), **differences: Any) -> Family:
    """A family of BERT's classes, whose names begin with a prefix; `heads` are those that read token 0."""
    parts = ("", "attention", "attention.self", "attention.output", "intermediate", "output")
    names = ("Layer", "Attention", "SelfAttention", "SelfOutput", "Intermediate", "Output")
    shape: dict[str, Any] = {
        "classes": {"embeddings": f"{prefix}Embeddings", "encoder": f"{prefix}Encoder"},
        "layer_classes": {path: prefix + name for path, name in zip(parts, names, strict=True)},
        "layout": layouts.BERT,
        "first_token_heads": tuple(prefix + head for head in heads),
    }
    return Family(f"transformers.models.{folder}", f"{prefix}Model", **{**shape, **differences})


def _rotary(folder: str, prefix: str, heads: Iterable[str] = (), **differences: Any) -> Family:
    """A family of Llama's way of naming, with a module of rotary positions."""
    shape: dict[str, Any] = {
        "classes": {"embeddings": f"{prefix}Embeddings", "rotary_emb": f"{prefix}RotaryEmbedding"},
        "layer_classes": {"": f"{prefix}Layer", "self_attn": f"{prefix}Attention", "mlp": f"{prefix}MLP"},
        "layers": "layers",
        "order": as_configured,
        "rotary": RotaryModule("rotary_emb"),
        "output": "BaseModelOutputWithPooling",
    }
    return _bert(folder, prefix, heads, **{**shape, **differences})


_CLASSIFICATION = ("ForSequenceClassification",)
_CLASSIFICATION_AND_CHOICE = ("ForSequenceClassification", "ForMultipleChoice")

FAMILIES = (
    _bert("bert.modeling_bert", "Bert"),
    _bert("roberta.modeling_roberta", "Roberta", _CLASSIFICATION, positions="count"),
    _bert("xlm_roberta.modeling_xlm_roberta", "XLMRoberta", _CLASSIFICATION, positions="count"),
    _bert("camembert.modeling_camembert", "Camembert", _CLASSIFICATION, positions="count"),
    _bert("data2vec.modeling_data2vec_text", "Data2VecText", _CLASSIFICATION, positions="count"),
    _bert(
        "electra.modeling_electra",
        "Electra",
        _CLASSIFICATION_AND_CHOICE,
        projection="embeddings_project",
        output="BaseModelOutputWithPastAndCrossAttentions",
        pool=None,
    ),
    _bert(
        "mpnet.modeling_mpnet",
        "MPNet",
        _CLASSIFICATION,
        layer_classes={
            "": "MPNetLayer",
            "attention": "MPNetAttention",
            "attention.attn": "MPNetSelfAttention",
            "intermediate": "MPNetIntermediate",
            "output": "MPNetOutput",
        },
        layout=layouts.MPNET,
        inputs=("input_ids", "position_ids", "inputs_embeds"),
        positions="count",
        relative=SharedBias("encoder.relative_attention_bias", buckets=32, max_distance=128),
        distances=True,
        output="BaseModelOutputWithPooling",
        captures=False,
    ),
    _bert(
        "deberta_v2.modeling_deberta_v2",
        "DebertaV2",
        _CLASSIFICATION_AND_CHOICE,
        layer_classes={
            "": "DebertaV2Layer",
            "attention": "DebertaV2Attention",
            "attention.self": "DisentangledSelfAttention",
            "attention.output": "DebertaV2SelfOutput",
            "intermediate": "DebertaV2Intermediate",
            "output": "DebertaV2Output",
        },
        layout=layouts.DEBERTA_V2,
        relative=Disentangled("pos_key_proj", "pos_query_proj", counted=frozenset(("c2p", "p2c"))),
        distances=True,
        convolution=Convolution("encoder.conv", "ConvLayer"),
        output="BaseModelOutput",
        pool=None,
        settings={"z_steps": 0},
        captures=False,
    ),
    _bert(
        "deberta.modeling_deberta",
        "Deberta",
        _CLASSIFICATION,
        layer_classes={
            "": "DebertaLayer",
            "attention": "DebertaAttention",
            "attention.self": "DisentangledSelfAttention",
            "attention.output": "DebertaSelfOutput",
            "intermediate": "DebertaIntermediate",
            "output": "DebertaOutput",
        },
        layout=layouts.DEBERTA,
        relative=Disentangled("pos_proj", "pos_q_proj"),
        distances=True,
        output="BaseModelOutput",
        pool=None,
        settings={"z_steps": 0},
        captures=False,
    ),
    Family(
        "transformers.models.distilbert.modeling_distilbert",
        "DistilBertModel",
        classes={"embeddings": "Embeddings", "transformer": "Transformer"},
        layer_classes={"": "TransformerBlock", "attention": "DistilBertSelfAttention", "ffn": "FFN"},
        layout=layouts.DISTILBERT,
        layers="transformer.layer",
        inputs=("input_ids", "position_ids", "inputs_embeds"),
        first_token_heads=("DistilBertForSequenceClassification", "DistilBertForMultipleChoice"),
        output="BaseModelOutput",
        pool=None,
    ),
    Family(
        "transformers.models.albert.modeling_albert",
        "AlbertModel",
        classes={"embeddings": "AlbertEmbeddings", "encoder": "AlbertTransformer"},
        layer_classes={"": "AlbertLayer", "attention": "AlbertAttention"},
        layout=layouts.ALBERT,
        layers="encoder.albert_layer_groups",
        order=in_groups,
        group_class="AlbertLayerGroup",
        projection="encoder.embedding_hidden_mapping_in",
        output="BaseModelOutputWithPooling",
        pool=pooled_by_linear,
    ),
    _bert("ernie.modeling_ernie", "Ernie", inputs=(*INPUTS, "task_type_ids")),
    _bert(
        "splinter.modeling_splinter",
        "Splinter",
        ("ForQuestionAnswering",),  # where a row has no question token
        layout=layouts.BERT_ALIGN,
        output="BaseModelOutput",
        pool=None,
    ),
    _bert(
        "rembert.modeling_rembert",
        "RemBert",
        layout=layouts.BERT_EAGER,
        projection="encoder.embedding_hidden_mapping_in",
        captures=False,
    ),
    _bert(
        "layoutlm.modeling_layoutlm",
        "LayoutLM",
        layout=layouts.BERT_ALIGN,
        inputs=(*INPUTS, "bbox"),
        zeros={"bbox": (4,)},
        output="BaseModelOutputWithPooling",
    ),
    _bert(
        "roberta_prelayernorm.modeling_roberta_prelayernorm",
        "RobertaPreLayerNorm",
        _CLASSIFICATION,
        layout=layouts.ROBERTA_PRE_LAYER_NORM,
        norm="LayerNorm",
        positions="count",
    ),
    _bert(
        "megatron_bert.modeling_megatron_bert",
        "MegatronBert",
        layout=layouts.MEGATRON_BERT,
        norm="encoder.ln",
        captures=False,
    ),
    _bert(
        "xlm_roberta_xl.modeling_xlm_roberta_xl",
        "XLMRobertaXL",
        _CLASSIFICATION,
        layout=layouts.XLM_ROBERTA_XL,
        norm="encoder.LayerNorm",
        positions="count",
    ),
    _rotary("nomic_bert.modeling_nomic_bert", "NomicBert", layout=layouts.NOMIC_BERT),
    _rotary(
        "jina_embeddings_v3.modeling_jina_embeddings_v3",
        "JinaEmbeddingsV3",
        _CLASSIFICATION,
        layout=layouts.JINA,
    ),
    Family(
        "transformers.models.modernbert.modeling_modernbert",
        "ModernBertModel",
        classes={"embeddings": "ModernBertEmbeddings", "rotary_emb": "ModernBertRotaryEmbedding"},
        layer_classes={"": "ModernBertEncoderLayer", "attn": "ModernBertAttention", "mlp": "ModernBertMLP"},
        layout=layouts.MODERN_BERT,
        layers="layers",
        norm="final_norm",
        inputs=("input_ids", "position_ids", "inputs_embeds"),
        unembedded=("position_ids",),
        rotary=RotaryModule("rotary_emb", layer_type="attention_type", widens=True),
        distances=True,
        first_token_heads=("ModernBertForSequenceClassification",),
        output="BaseModelOutput",
        pool=None,
    ),
    _bert(
        "roformer.modeling_roformer",
        "RoFormer",
        _CLASSIFICATION_AND_CHOICE,
        layout=layouts.BERT_EAGER,
        projection="embeddings_project",
        inputs=("input_ids", "token_type_ids", "inputs_embeds"),
        rotary=RotaryTable("encoder.embed_positions"),
        output="BaseModelOutputWithPastAndCrossAttentions",
        pool=None,
        captures=False,
    ),
)

# Encoders that the packed forward does not compute, and what of them it lacks.
UNSUPPORTED = {
    "LongformerModel": "some of its tokens see all others, through projections of their own",
    "BigBirdModel": "its attention is sparse by blocks, and one batch of short rows makes it full for all later calls",
    "MobileBertModel": "its embeddings join each word with its neighbours, also with the padding behind the last",
    "LayoutLMv3Model": "its attention adds biases by the distances between boxes on a page",
    "T5Stack": "it is half of an encoder and decoder, with norms and a bias of attention of its own",
}
# Heads of other modules that read token 0 of an encoder that they hold.
_OTHER_FIRST_TOKEN_HEADS = ("DPREncoder", "SequenceClassifier")

_BY_CLASS = {(family.module, family.model_class): family for family in FAMILIES}


def family_of(module: nn.Module) -> Family | None:
    """The row that a module's class, or a class it inherits from, belongs to."""
    for ancestor in type(module).__mro__:
        family = _BY_CLASS.get((ancestor.__module__, ancestor.__name__))
        if family is not None:
            return family
    return None


def class_refusal(module: nn.Module) -> str | None:
    """Why an encoder that is in no row is left; None for what is no encoder."""
    names = {kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("transformers.")}
    for name in names & UNSUPPORTED.keys():
        return f"it is not supported: {UNSUPPORTED[name]}"
    if {"embeddings", "encoder"} <= module._modules.keys():
        return f"it is not one of {', '.join(family.model_class for family in FAMILIES)}"
    return None


def loss_reads_padding(heads: Iterable[nn.Module]) -> bool:
    """Whether a module that holds an encoder reads all columns of a row in its loss: for answers, ours and Splinter's
    apart.
    """
    heads = [head for head in heads if not getattr(head, "loss_leaves_padding_out", False)]
    names = {ancestor.__name__ for head in heads for ancestor in type(head).__mro__}
    return any(name.endswith("ForQuestionAnswering") and not name.startswith("Splinter") for name in names)


def reads_of(family: Family, heads: Iterable[nn.Module]) -> Reads:
    """Which tokens, perhaps padding, the modules that hold a family's encoder read: none by place, the first, any."""
    reads: Reads = "none"
    names = {*family.first_token_heads, *_OTHER_FIRST_TOKEN_HEADS}
    for head in heads:
        if names.isdisjoint(ancestor.__name__ for ancestor in type(head).__mro__):
            continue
        if getattr(getattr(head, "config", None), "classifier_pooling", "cls") == "mean":
            continue
        summary = getattr(getattr(head, "sequence_summary", None), "summary_type", "first")
        if summary != "first":
            return "any"
        reads = "first"
    return reads
