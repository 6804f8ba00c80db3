"""The loss of answers is over real tokens: the same whatever a row is batched with, and on every path."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from spanbert_kernels import SpanBERTForQuestionAnswering, accelerate
from spanbert_kernels.models.encoders import kind_on
from tests.models.conftest import TINY

LENGTHS = [6, 3, 5]
STARTS, ENDS = torch.tensor([5, 0, 2]), torch.tensor([5, 2, 99])  # one ends beyond its row


def model_on(encoder_type: str) -> Any:
    kind = kind_on(SpanBERTForQuestionAnswering, encoder_type)
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return kind(kind.config_class(**{**TINY, **dropout, "num_labels": 2}, pad_token_id=0)).train()


def rows(side: str) -> dict[str, Tensor]:
    ids = torch.randint(1, 40, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    mask = mask if side == "right" else mask.flip(1)
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def answers(side: str) -> dict[str, Tensor]:
    moved = torch.tensor(LENGTHS[0]) - torch.tensor(LENGTHS) if side == "left" else torch.zeros(3).long()
    return {"start_positions": STARTS + moved, "end_positions": ENDS + moved}


def states(model: Any, side: str, **given: Any) -> list[Tensor]:
    model.zero_grad()
    loss = model(**rows(side), **answers(side), **given).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("encoder_type", ["bert", "roberta", "electra"])
def test_both_paths_have_one_loss(encoder_type: str, side: str) -> None:
    model = model_on(encoder_type)
    expected = states(model, side)
    report = accelerate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = states(model, side)
    assert report.last_path == "packed-training"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder_type", ["bert", "roberta"])
@pytest.mark.parametrize("row", [0, 1])
def test_a_row_has_its_loss_whatever_it_is_batched_with(row: int, encoder_type: str) -> None:
    model, batch, labels = model_on(encoder_type), rows("right"), answers("right")
    given = {name: torch.nn.functional.pad(tensor, (0, 4)) for name, tensor in batch.items()}
    alone = {name: tensor[:, : LENGTHS[row]] for name, tensor in batch.items()}
    padded, bare = (
        model(**{name: tensor[row, None] for name, tensor in {**each, **labels}.items()}).loss
        for each in (given, alone)
    )
    torch.testing.assert_close(padded, bare)


def test_without_a_mask_every_token_is_real_and_a_tuple_is_what_was_asked_for() -> None:
    model, batch, labels = model_on("bert"), rows("right"), answers("right")
    ids = batch["input_ids"]
    expected = model(ids, torch.ones_like(ids), **labels)
    assert torch.equal(model(ids, **labels).loss, expected.loss)
    loss, start, end = model(ids, **labels, return_dict=False)
    assert torch.equal(loss, expected.loss)
    assert torch.equal(start, expected.start_logits)
    assert torch.equal(end, expected.end_logits)
    assert model(ids).loss is None
    assert len(model(ids, return_dict=False)) == 2
