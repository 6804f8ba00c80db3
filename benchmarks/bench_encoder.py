"""BERT-base through `accelerate`, against transformers with its attention implementations and under torch.compile.

Inference, and a training step: forward and backward to all parameters. The step has no dropout, whose masks differ; its
gate compares the states and every 61st number of the gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from batches import VOCABULARY, document_lengths, padded_batch, padding_share, real_lengths
from registry import BOTH, FORWARD, Goal, Inputs, Prepared, Provider, Suite, Work, Workload, register
from torch import Tensor
from transformers import BertConfig, BertModel

from spanbert_kernels import accelerate

EAGER, SDPA, COMPILED = "transformers, eager", "transformers, sdpa", "transformers, sdpa, compiled"
CONFIG = {"vocab_size": VOCABULARY, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
COMPARED = 61


@cache
def initial() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**CONFIG), add_pooling_layer=False)


def model_of(workload: Workload, dtype: torch.dtype, attention: str) -> Any:
    model = copy.deepcopy(initial())
    model.set_attn_implementation(attention)
    return model.to(workload.dtype).to(dtype).train(workload.direction == BOTH)


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    options = workload.options
    if "real" in options:
        lengths = real_lengths(options["real"], options["per_cluster"])[0].clamp(max=512)
    elif "length" in options:
        lengths = torch.full((options["documents"],), options["length"])
    else:
        lengths = document_lengths(options.get("documents", 16), options.get("sigma", 0.7))
    return Inputs((), {"lengths": lengths, "batch": padded_batch(lengths), "dtype": dtype})


def work(workload: Workload, inputs: Inputs) -> Work:
    """Products with the weights for real tokens alone, attention inside documents; weights and states once."""
    lengths: Tensor = inputs.given["lengths"]
    config, tokens, passes = BertConfig(**CONFIG), int(lengths.sum()), 3 if workload.direction == BOTH else 1
    size = config.hidden_size
    per_layer = 4 * size * size + 2 * size * config.intermediate_size
    pairs = 4 * int(lengths.square().sum()) * size
    axes = {"tokens": tokens, "documents": len(lengths), "padding": padding_share(lengths)}
    products = config.num_hidden_layers * (2 * tokens * per_layer + pairs)
    moved = config.num_hidden_layers * per_layer + 2 * tokens * size
    return Work(axes, passes * moved * workload.dtype.itemsize, passes * products)


def prepared(model: Any, way: Callable[..., Any], batch: dict[str, Tensor]) -> Prepared:
    mask = batch["attention_mask"].bool()

    def compared(tensor: Tensor) -> Tensor:
        return tensor[mask] if tensor.shape[:2] == mask.shape else tensor.flatten()[::COMPARED]

    return Prepared(lambda: way(**batch).last_hidden_state, tuple(model.parameters()), compared, parameters=True)


def ours(workload: Workload, inputs: Inputs) -> Prepared:
    model = model_of(workload, inputs.given["dtype"], "sdpa")
    accelerate(model)
    return prepared(model, model, inputs.given["batch"])


def theirs(attention: str) -> Callable[[Workload, Inputs], Prepared]:
    def build(workload: Workload, inputs: Inputs) -> Prepared:
        model = model_of(workload, inputs.given["dtype"], attention)
        return prepared(model, model, inputs.given["batch"])

    return build


def one_by_one(workload: Workload, inputs: Inputs) -> Prepared:
    """Every document alone, which needs no padding; for the reference, which has time for nothing else."""
    model, batch = model_of(workload, inputs.given["dtype"], "eager"), inputs.given["batch"]
    documents = [row[mask.bool()][None] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]

    def way() -> Tensor:
        return torch.cat([model(ids).last_hidden_state[0] for ids in documents])

    states = len(torch.cat(documents, 1)[0]), model.config.hidden_size

    def compared(tensor: Tensor) -> Tensor:
        return tensor if tensor.shape == states else tensor.flatten()[::COMPARED]

    return Prepared(way, tuple(model.parameters()), compared, parameters=True)


def compiled(workload: Workload, inputs: Inputs) -> Prepared:
    model = model_of(workload, inputs.given["dtype"], "sdpa")
    return prepared(model, torch.compile(model, dynamic=False), inputs.given["batch"])


def row(name: str, *goals: Goal, direction: str = FORWARD, providers: tuple[str, ...] = (), **fields: Any) -> Workload:
    options = {"providers": ("ours", EAGER, SDPA, *providers), **fields.pop("options", {})}
    return Workload(name, direction, goals=goals, options=options, **{"seconds": 5.0, **fields})


BFLOAT16 = torch.bfloat16
SENTENCE, EVEN = {"documents": 1, "length": 24}, {"documents": 16, "length": 128}
SUITE = register(
    Suite(
        "encoder",
        (
            row("16 documents", Goal(3.5)),
            row("8 documents", Goal(2.6), dtype=BFLOAT16, options={"documents": 8}),
            row("8 documents", direction=BOTH, options={"documents": 8}),
            row("one sentence of 24", Goal(1.8), options=SENTENCE, quick=True),
            row("one sentence of 24, torch.compile", options=SENTENCE, providers=(COMPILED,), seconds=3.0),
            row("16 x 128", Goal(1.3), options=EVEN),
            row("5 documents of gum, up to 512 tokens", options={"real": "gum", "per_cluster": 1}),
            *(
                row(f"4 documents, sigma {sigma:g}", options={"documents": 4, "sigma": sigma}, seconds=3.0,
                    curve="encoder over padding", scaling="padding")
                for sigma in (0.0, 0.5, 1.0)
            ),
        ),
        {
            "ours": Provider(ours, "ours"),
            EAGER: Provider(theirs("eager"), "eager"),
            SDPA: Provider(theirs("sdpa")),
            COMPILED: Provider(compiled, backward=False, compiles=True),
            "in float64": Provider(one_by_one),
        },
        inputs,
        work,
        reference="in float64",
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
