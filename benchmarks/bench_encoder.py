"""BERT-base through `accelerate`, against transformers with both of its attention implementations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from batches import BATCHES, VOCABULARY
from torch import Tensor
from transformers import BertConfig, BertModel
from turns import Goal, assert_agrees

from spanbert_kernels import accelerate

GOALS = {
    ("16 documents", torch.float32): [Goal(at_least=3.5)],
    ("16 documents", torch.bfloat16): [Goal(at_least=2.6)],
    ("one sentence of 24", torch.float32): [Goal(at_least=1.8)],
    ("16 x 128", torch.float32): [Goal(at_least=1.3)],
}


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=VOCABULARY)).eval()


def three_models(base: Any, dtype: torch.dtype) -> tuple[Any, Any, dict[str, Any]]:
    """An accelerated copy, its report, and transformers' own, by attention implementation."""
    model = copy.deepcopy(base).to(dtype)
    theirs = {}
    for name in ("sdpa", "eager"):
        theirs[name] = copy.deepcopy(model)
        theirs[name].set_attn_implementation(name)
    return model, accelerate(model), theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", BATCHES)
@torch.inference_mode()
def test_inference(compare: Callable[..., None], base: Any, name: str, dtype: torch.dtype) -> None:
    batch = BATCHES[name]()
    ours, report, theirs = three_models(base, dtype)

    def run(model: Any) -> Tensor:
        return model(**batch).last_hidden_state[batch["attention_mask"].bool()]

    error = assert_agrees(run(ours), run(theirs["eager"]), run(copy.deepcopy(theirs["eager"]).double()))
    compare(
        lambda: ours(**batch),
        {f"transformers, {each}": lambda model=model: model(**batch) for each, model in theirs.items()},
        error=error,
        goals=GOALS.get((name, dtype), ()),
        path=lambda: report.last_path,
    )


def test_training_step(compare: Callable[..., None], base: Any) -> None:
    """Forward and backward with BERT's dropout. The gate compares gradients without it: the masks differ."""
    batch = BATCHES["16 documents"]()
    mask = batch["attention_mask"].bool()
    ours, report, theirs = three_models(base, torch.float32)
    grad = torch.randn(int(mask.sum()), 768, generator=torch.Generator().manual_seed(1))

    def step(model: Any) -> Tensor:
        model.zero_grad()
        states = model(**batch).last_hidden_state[mask]
        states.backward(grad.to(states.dtype))
        return model.encoder.layer[0].intermediate.dense.weight.grad

    error = assert_agrees(step(ours), step(theirs["eager"]), step(copy.deepcopy(theirs["eager"]).double()))
    for model in (ours, *theirs.values()):
        model.train()
    compare(
        lambda: step(ours),
        {f"transformers, {each}": lambda model=model: step(model) for each, model in theirs.items()},
        error=error,
        path=lambda: report.last_path,
    )
