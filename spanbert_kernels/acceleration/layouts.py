"""Where the parts of an encoder layer are, and in which order they act: one table of paths for each way of building it.

Paths lead from the layer to its modules, as `nn.Module.get_submodule` takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any, Literal

from torch import nn


def at(module: Any, path: str) -> Any:
    """What stands at a path of attributes, the module itself at "", or None where nothing does.

    Example:
        >>> at(nn.Sequential(nn.Linear(2, 3)), "0.out_features"), at(nn.Sequential(), "0.out_features")
        (3, None)
    """
    return reduce(lambda found, name: getattr(found, name, None), path.split(".") if path else [], module)


@dataclass(frozen=True)
class LayerLayout:
    """The paths of a layer's parts, and what is to be known of them.

    Attributes:
        attention: the module that has the settings of attention.
        projections: the Linears of queries, keys and values: three, or one for all of them.
        dense: the Linear after attention.
        attention_norm: the norm of the attention block; before its products it may be missing (an `nn.Identity`).
        up: the Linear before the activation; a second one makes the gate that the activation is multiplied by.
        joined_gate: whether the one Linear of `up` makes the gate too, behind what is activated.
        activation: the activation.
        down: the Linear after it.
        norm: the norm of the feed-forward block.
        attention_dropout: the dropout of attention's weights, if it is a module.
        attention_dropout_p: the attribute of `attention` with that dropout's probability, if it is a number.
        dropout_switch: whose training mode switches that dropout: the attention's, which hands down the probability, or
            the dropout's own, which is called.
        attention_output_dropout: the dropout after `dense`.
        inner_dropout: the dropout before `down`.
        output_dropout: the dropout after `down`.
        norms: "post", of the sums; "pre", of what the products take.
        per_head: whether one Linear for all projections has a head's query, key and value beside each other.
        biases: the attributes of `attention` with biases of queries, keys and values, where the Linears have none.
        head_dim: the attribute of `attention` with the columns of a head.
        window: of `attention`, how many tokens before and behind it a query sees, or None: all.
        feed_forward: the module whose `chunk_size_feed_forward` is followed.
        unused: modules that the layer has and never calls.
        refused: what else a layer may have, and what it does that the packed forward does not.
        optional: what a layer may have beside these, and must be exactly PyTorch's: path -> class.
    """

    attention: str
    projections: tuple[str, ...]
    dense: str
    attention_norm: str
    up: tuple[str, ...]
    activation: str
    down: str
    norm: str
    attention_dropout: str | None = None
    attention_dropout_p: str | None = None
    dropout_switch: Literal["attention", "dropout"] = "attention"
    attention_output_dropout: str | None = None
    inner_dropout: str | None = None
    output_dropout: str | None = None
    joined_gate: bool = False
    norms: Literal["post", "pre"] = "post"
    per_head: bool = False
    biases: tuple[str | None, ...] = ()
    head_dim: str = "attention_head_size"
    window: Callable[[Any], int | None] | None = None
    feed_forward: str = ""
    unused: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, type[nn.Module]] = field(default_factory=dict)

    @cached_property
    def torch_parts(self) -> dict[str, type[nn.Module]]:
        """What must be exactly PyTorch's: path -> class."""
        dropouts = (self.attention_dropout, self.attention_output_dropout, self.inner_dropout, self.output_dropout)
        return {
            **dict.fromkeys((*self.projections, self.dense, *self.up, self.down), nn.Linear),
            **dict.fromkeys((self.attention_norm, self.norm), nn.LayerNorm),
            **dict.fromkeys(filter(None, dropouts), nn.Dropout),
            **dict.fromkeys(self.unused, nn.Dropout),
        }

    @cached_property
    def identities(self) -> set[str]:
        """Where an `nn.Identity` may stand instead."""
        dropouts = {self.attention_output_dropout, self.inner_dropout, self.output_dropout}
        norms = {self.attention_norm} if self.norms == "pre" else set()
        return {path for path in dropouts | norms if path is not None}


BERT = LayerLayout(
    attention="attention.self",
    projections=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_dropout="attention.self.dropout",
    dense="attention.output.dense",
    attention_output_dropout="attention.output.dropout",
    attention_norm="attention.output.LayerNorm",
    up=("intermediate.dense",),
    activation="intermediate.intermediate_act_fn",
    down="output.dense",
    output_dropout="output.dropout",
    norm="output.LayerNorm",
)
# The same classes, of which the attention calls its dropout as a module.
BERT_EAGER = replace(BERT, dropout_switch="dropout")
# The same, of which the attention hands down a number and leaves its dropout module unused.
BERT_ALIGN = replace(
    BERT, attention_dropout=None, attention_dropout_p="attention_dropout", unused=("attention.self.dropout",)
)
MPNET = replace(
    BERT_EAGER,
    attention="attention.attn",
    projections=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    attention_dropout="attention.attn.dropout",
    dense="attention.attn.o",
    attention_output_dropout="attention.dropout",
    attention_norm="attention.LayerNorm",
)
DEBERTA_V2 = replace(
    BERT_EAGER,
    projections=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
    optional={
        "attention.self.pos_key_proj": nn.Linear,
        "attention.self.pos_query_proj": nn.Linear,
        "attention.self.pos_dropout": nn.Dropout,
    },
)
DEBERTA = replace(
    BERT_EAGER,
    projections=("attention.self.in_proj",),
    per_head=True,
    biases=("q_bias", None, "v_bias"),
    optional={
        "attention.self.pos_proj": nn.Linear,
        "attention.self.pos_q_proj": nn.Linear,
        "attention.self.pos_dropout": nn.Dropout,
    },
    refused={"attention.self.head_logits_proj": "its heads take each other's logits (talking_head)"},
)
DISTILBERT = LayerLayout(
    attention="attention",
    projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention_dropout="attention.dropout",
    dense="attention.out_lin",
    attention_norm="sa_layer_norm",
    up=("ffn.lin1",),
    activation="ffn.activation",
    down="ffn.lin2",
    output_dropout="ffn.dropout",
    norm="output_layer_norm",
    feed_forward="ffn",
)
ALBERT = LayerLayout(
    attention="attention",
    projections=("attention.query", "attention.key", "attention.value"),
    attention_dropout="attention.attention_dropout",
    dense="attention.dense",
    attention_output_dropout="attention.output_dropout",
    attention_norm="attention.LayerNorm",
    up=("ffn",),
    activation="activation",
    down="ffn_output",
    norm="full_layer_layer_norm",
    unused=("dropout",),
)
MEGATRON_BERT = replace(BERT_EAGER, norms="pre", attention_norm="attention.ln", norm="ln")
ROBERTA_PRE_LAYER_NORM = replace(BERT, norms="pre", attention_norm="attention.LayerNorm", norm="intermediate.LayerNorm")
XLM_ROBERTA_XL = replace(
    BERT, norms="pre", attention_norm="attention.self_attn_layer_norm", norm="LayerNorm", output_dropout=None
)
JINA = LayerLayout(
    attention="self_attn",
    projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_dropout_p="attention_dropout",
    head_dim="head_dim",
    dense="self_attn.o_proj",
    attention_output_dropout="post_attention_dropout",
    attention_norm="post_attention_layernorm",
    up=("mlp.fc1",),
    activation="mlp.activation_fn",
    down="mlp.fc2",
    output_dropout="post_mlp_dropout",
    norm="post_mlp_layernorm",
)
MODERN_BERT = LayerLayout(
    attention="attn",
    projections=("attn.Wqkv",),
    attention_dropout_p="attention_dropout",
    head_dim="head_dim",
    window=lambda attention: None if attention.sliding_window is None else attention.config.sliding_window,
    dense="attn.Wo",
    attention_output_dropout="attn.out_drop",
    attention_norm="attn_norm",
    up=("mlp.Wi",),
    joined_gate=True,
    activation="mlp.act",
    inner_dropout="mlp.drop",
    down="mlp.Wo",
    norm="mlp_norm",
    norms="pre",
)
NOMIC_BERT = replace(JINA, up=("mlp.gate_proj", "mlp.up_proj"), activation="mlp.act_fn", down="mlp.down_proj")
