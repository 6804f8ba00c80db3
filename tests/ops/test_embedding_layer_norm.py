"""embedding_layer_norm: the shared checks, the row that gets no gradient, what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from embedding_cases import EmbeddingConditions, embedding_by_formula, embedding_inputs
from op_checks import Case, OpChecks, every_backend

from spanbert_kernels.ops import embedding_layer_norm

EPS = 1e-3


def row(name: str, *, dropout_p: float = 0.0, large: bool = False, **shapes: Any) -> Case:
    options, conditions = {"dropout_p": dropout_p, "eps": EPS}, EmbeddingConditions(dropout_p, EPS)
    return Case(
        name,
        partial(embedding_inputs, **shapes),
        partial(embedding_layer_norm, **options),
        partial(embedding_by_formula, **options),
        terms=conditions.terms,
        logits=conditions.logits,
        twice=("eager",),
        compiled=(),
        large=large,
    )


class TestShared(OpChecks):
    operation = "embedding_layer_norm"
    cases = (
        row("three tables"),
        row("dropout", dropout_p=0.4, seed=-(2**62) - 3, tables=2),
        row("one table, no bias", tables=1, bias=False),
        row("no columns", columns=0),
        # More columns than a chunk of Triton's has, with a rest of one, and rows that leave one in a program.
        row("chunks", rows=5, columns=513, large=True),
    )


@every_backend("embedding_layer_norm")
def test_no_rows(backend: Any) -> None:
    table, weight = torch.ones(3, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    output = embedding_layer_norm(torch.zeros(0, dtype=torch.long), table, weight, backend=backend)
    assert output.shape == (0, 4)
    assert not any(grad.any() for grad in torch.autograd.grad(output.sum(), (table, weight)))


@every_backend("embedding_layer_norm")
def test_the_row_of_padding_gets_no_gradient(backend: Any) -> None:
    given: dict[str, Any] = embedding_inputs(2, tables=2)
    given = {name: each.float() if each.is_floating_point() else each for name, each in given.items()}
    given["token_ids"], given["position_ids"] = torch.tensor([0, 3, 3, 0, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 2])
    tables = [given[name].requires_grad_() for name in ("token_table", "position_table")]
    output = embedding_layer_norm(**given, padding_idx=3, eps=EPS, backend=backend)
    of_tokens, of_positions = torch.autograd.grad(output.square().sum(), tables)
    assert of_tokens.any(1).tolist() == [True, True, True, *[False] * 6]
    assert of_positions.any(1).tolist() == [True, True, True, False, False]


def good_call() -> dict[str, Any]:
    """What the test of wrong kinds of arguments begins from."""
    ids, seeded = torch.tensor([0, 1, 2, 1]), {"dropout_p": 0.5, "seed": torch.tensor([1])}
    tables = {f"{name}_table": torch.ones(3, 4) for name in ("token", "position", "type")}
    all_ids = {f"{name}_ids": ids for name in ("token", "position", "type")}
    return {**tables, **all_ids, "weight": torch.ones(4), "bias": torch.ones(4), "padding_idx": 1, **seeded}


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        (ValueError, r"token_ids must be in 0 \.\. 2, got 3", {"token_ids": torch.tensor([0, 1, 3, 1])}),
        (ValueError, r"type_ids must be in 0 \.\. 2, got -1", {"type_ids": torch.tensor([0, 1, -1, 1])}),
        (ValueError, r"position_ids must be \[4\], got \[3\]", {"position_ids": torch.tensor([0, 1, 2])}),
        (ValueError, "position_table must be given where position_ids is", {"position_table": None}),
        (ValueError, "type_table must have 4 columns, got 5", {"type_table": torch.ones(3, 5)}),
        (TypeError, "weight is torch.float16, but token_table is torch.float32", {"weight": torch.ones(4).half()}),
        (ValueError, "padding_idx must be at most 2, got 3", {"padding_idx": 3}),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        embedding_layer_norm(**{**good_call(), **changes})
