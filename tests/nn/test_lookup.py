"""Rows of a large table: PyTorch's own bits, forward and backward, and everything else left to PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_checks import poisoned_memory
from torch import Tensor

from spanbert_kernels.nn import lookup
from spanbert_kernels.nn.lookup import look_up
from spanbert_kernels.ops import backends

ROWS, SIZE = 2100, 512  # 4.3 MB
needs_kernels = pytest.mark.skipif(
    backends.refusal("cpu", "cpu", torch.float32) is not None, reason="no compiled kernels"
)


def table(dtype: torch.dtype = torch.float32, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


IDS = {
    "one row": torch.tensor([7]),
    "again and again": torch.randint(9, (3, 40), generator=torch.Generator().manual_seed(1)),
    "far apart": torch.randint(ROWS, (300,), generator=torch.Generator().manual_seed(2), dtype=torch.int32),
    "none": torch.zeros(0, dtype=torch.long),
    "all of them": torch.arange(ROWS).flip(0),
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The gradients that come in large memory."""
    found: list[torch.Size] = []
    usual = lookup.large.new_zeros

    def new_zeros(like: Tensor, *shape: int) -> Tensor:
        found.append(torch.Size(shape))
        return usual(like, *shape)

    monkeypatch.setattr(lookup.large, "new_zeros", new_zeros)
    return found


@needs_kernels
@pytest.mark.parametrize("padding_idx", [None, 0, 7, -3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_the_bits_are_pytorch_s(
    ids: Tensor, dtype: torch.dtype, padding_idx: int | None, taken: list[torch.Size]
) -> None:
    one, other = table(dtype, 2 * ROWS), table(dtype, 2 * ROWS)
    with poisoned_memory():
        found = look_up(ids, one, padding_idx)
        grad = torch.linspace(-1, 1, found.numel()).view(found.shape).to(dtype)
        found.backward(grad)
    expected = F.embedding(ids, other, padding_idx)
    expected.backward(grad)
    assert torch.equal(found, expected)
    assert one.grad is not None
    assert other.grad is not None
    assert torch.equal(one.grad, other.grad)
    assert taken == [one.shape]


@needs_kernels
def test_a_table_that_is_read_elsewhere_too() -> None:
    ids, one, other = IDS["far apart"], table(), table()
    for each, way in ((one, look_up), (other, F.embedding)):
        (way(ids, each) @ each[:5].t() + way(ids, each)[:, :5]).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


@needs_kernels
def test_derivatives_of_derivatives() -> None:
    ids, one, other = IDS["again and again"], table(torch.float64), table(torch.float64)
    found = []
    for each, way in ((one, look_up), (other, F.embedding)):
        (first,) = torch.autograd.grad(way(ids, each, 3).square().sum(), each, create_graph=True)
        found.append(torch.autograd.grad(first.pow(3).sum(), each)[0])
    assert torch.equal(*found)


def test_what_is_left_to_pytorch(taken: list[torch.Size]) -> None:
    """A small table, one without a gradient, a call that nobody will ask for gradients, autocast and transforms."""
    ids = torch.tensor([1, 1, 3])
    look_up(ids, table(rows=40)).sum().backward()
    frozen = table().detach()
    assert not look_up(ids, frozen).requires_grad
    with torch.no_grad():
        assert torch.equal(look_up(ids, table()), F.embedding(ids, frozen))
    with torch.autocast("cpu", torch.bfloat16):
        look_up(ids, table()).sum().backward()
    torch.func.grad(lambda each: look_up(ids, each).sum())(frozen)
    assert taken == []


@pytest.mark.parametrize("wrong", [-1, ROWS])
def test_an_id_that_no_row_has(wrong: int) -> None:
    with pytest.raises(IndexError):
        look_up(torch.tensor([0, wrong]), table())
