"""Encoders as the suites measure them: models with random weights, their batches, transformers' ways and ours."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
import transformers
from batches import VOCABULARY, document_lengths, padded_batch, padding_share, real_lengths
from registry import BOTH, FORWARD, Inputs, Prepared, Unavailable, Work, Workload
from torch import Tensor, nn

from spanbert_kernels import accelerate

EAGER, SDPA = "transformers, eager", "transformers, sdpa"
TRANSFORMERS = (EAGER, SDPA)
F32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
COMPARED = 61  # of a step's gradients every so many numbers

WITHOUT_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
BERT = "BERT"
# A model class and its configuration, as published but for the vocabulary: name -> class, settings.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    BERT: ("BertModel", WITHOUT_DROPOUT),
    "MiniLM": (
        "BertModel",
        {**WITHOUT_DROPOUT, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    ),
    "DeBERTa-v3": (
        "DebertaV2Model",
        {
            **WITHOUT_DROPOUT,
            **_BASE,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
        },
    ),
    "MPNet": ("MPNetModel", WITHOUT_DROPOUT),
    "DistilBERT": ("DistilBertModel", {"dropout": 0.0, "attention_dropout": 0.0}),
    "ModernBERT": ("ModernBertModel", {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2}),
}


def name_of(workload: Workload) -> str:
    """The model of a row: BERT, unless its options say another."""
    name: str = workload.options.get("model", BERT)
    return name


@lru_cache(maxsize=2)
def initial(name: str = BERT) -> Any:
    """A model in float32, without a pooler where its class allows that."""
    kind, settings = MODELS[name]
    made = getattr(transformers, kind)
    config = made.config_class(**{"vocab_size": VOCABULARY, **settings})
    pooler = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(made).parameters else {}
    torch.manual_seed(0)
    return made(config, **pooler).eval()


@lru_cache(maxsize=1)
def rounded(name: str, dtype: torch.dtype) -> Any:
    return copy.deepcopy(initial(name)).to(dtype)


def model_of(dtype: torch.dtype, attention: str, name: str = BERT) -> Any:
    """A model of its own that shares its weights; those of int8 are made of float32.

    Raises:
        Unavailable: transformers does not have the attention for it.
    """
    source = initial(name) if dtype in (F32, INT8, torch.float64) else rounded(name, dtype)
    model = copy.deepcopy(source, {id(each): each for each in (*source.parameters(), *source.buffers())})
    try:
        model.set_attn_implementation(attention)
    except ValueError as refused:
        raise Unavailable(str(refused).splitlines()[0]) from None
    return model


def lengths_of(options: Any) -> Tensor:
    if "real" in options:
        return real_lengths(options["real"], options["per_cluster"])[0].clamp(max=512)
    if "lengths" in options:
        return torch.tensor(options["lengths"])
    return document_lengths(options.get("documents", 16), options.get("sigma", 0.7))


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    lengths = lengths_of(workload.options)
    return Inputs((), {"lengths": lengths, "batch": padded_batch(lengths), "dtype": dtype})


def work(workload: Workload, inputs: Inputs) -> Work:
    """Products with the weights of the layers for real tokens alone, attention inside documents; weights once."""
    lengths: Tensor = inputs.given["lengths"]
    model = initial(name_of(workload))
    tokens, passes, size = int(lengths.sum()), 3 if workload.direction == BOTH else 1, model.config.hidden_size
    embedded = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    weights = sum(each.numel() for each in model.parameters() if each.dim() == 2 and id(each) not in embedded)
    pairs = 4 * size * sum(_pairs(lengths, window) for window in _windows(model.config))
    axes = {"tokens": tokens, "documents": len(lengths), "padding": padding_share(lengths)}
    moved = weights + 2 * model.config.num_hidden_layers * tokens * size
    return Work(axes, passes * moved * workload.dtype.itemsize, passes * (2 * tokens * weights + pairs))


def _windows(config: Any) -> list[int | None]:
    """Keys that a query of each layer sees at most; None: all."""
    kinds = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
    return [config.local_attention + 1 if kind == "sliding_attention" else None for kind in kinds]


def _pairs(lengths: Tensor, window: int | None) -> int:
    return int((lengths * (lengths if window is None else lengths.clamp(max=window))).sum())


def prepared(workload: Workload, inputs: Inputs, model: Any, way: Callable[..., Any] | None = None) -> Prepared:
    """A model as it is called, or as `way` calls it; a step's dropout is what its options say while it is timed."""
    model.train(workload.direction == BOTH)
    batch, dropout = inputs.given["batch"], workload.options.get("dropout", 0.0)
    mask, layers = batch["attention_mask"].bool(), [each for each in model.modules() if isinstance(each, nn.Dropout)]

    def compared(tensor: Tensor) -> Tensor:
        return tensor[mask] if tensor.shape[:2] == mask.shape else tensor.flatten()[::COMPARED]

    def step(p: float) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for layer in layers:
                layer.p = p
            states: Tensor = (way or model)(**batch).last_hidden_state
            return states

        return run

    timed = step(dropout) if dropout else None
    return Prepared(step(0.0), tuple(model.parameters()), compared, parameters=True, timed=timed)


def ours(workload: Workload, inputs: Inputs) -> Prepared:
    """The model through `accelerate`, with weights of 8 bits where the row is of int8."""
    model, options = model_of(inputs.given["dtype"], _any_attention(workload), name_of(workload)), {}
    if workload.dtype == INT8:
        if "weights" not in inspect.signature(accelerate).parameters:  # the package of another commit
            raise Unavailable("accelerate has no int8")
        options["weights"] = "int8"
    try:
        accelerate(model, **options)
    except ValueError as refused:
        raise Unavailable(str(refused)) from None
    return prepared(workload, inputs, model)


def _any_attention(workload: Workload) -> str:
    """One that transformers has for the model."""
    attention: str = initial(name_of(workload)).config._attn_implementation
    return attention


def theirs(attention: str) -> Callable[[Workload, Inputs], Prepared]:
    def build(workload: Workload, inputs: Inputs) -> Prepared:
        return prepared(workload, inputs, model_of(inputs.given["dtype"], attention, name_of(workload)))

    return build


def one_by_one(workload: Workload, inputs: Inputs) -> Prepared:
    """Every document alone, which needs no padding; for the reference, which has time for nothing else."""
    name = name_of(workload)
    if workload.direction == FORWARD:
        states = exact_states(name, tuple(inputs.given["lengths"].tolist()))
        return Prepared(lambda: states, (), parameters=True)
    model = copy.deepcopy(initial(name)).double().train()
    model.set_attn_implementation("eager")
    documents = documents_of(inputs.given["batch"])

    def way() -> Tensor:
        return torch.cat([model(ids).last_hidden_state[0] for ids in documents])

    states_shape = len(torch.cat(documents, 1)[0]), model.config.hidden_size

    def compared(tensor: Tensor) -> Tensor:
        return tensor if tensor.shape == states_shape else tensor.flatten()[::COMPARED]

    return Prepared(way, tuple(model.parameters()), compared, parameters=True)


def documents_of(batch: dict[str, Tensor]) -> list[Tensor]:
    return [row[mask.bool()][None] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


@cache
def exact_states(name: str, lengths: tuple[int, ...]) -> Tensor:
    """The same for every precision."""
    with torch.inference_mode():
        model = _exact(name)
        return torch.cat([model(ids).last_hidden_state[0] for ids in documents_of(padded_batch(torch.tensor(lengths)))])


@lru_cache(maxsize=1)
def _exact(name: str) -> Any:
    return copy.deepcopy(initial(name)).double()
