import pytest
import torch

from spanbert_kernels.nn import Packing

MASKS = {
    "right": [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]],
    "left": [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]],
    "middle": [[1, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]],
    "empty row": [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]],
    "nothing real": [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    "nothing padded": [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
}


@pytest.fixture(params=MASKS.values(), ids=MASKS.keys())
def mask(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.tensor(request.param)


def test_pack_takes_the_real_tokens_in_order(mask: torch.Tensor) -> None:
    packing = Packing.from_mask(mask, 3, 4, "cpu")
    padded = torch.randn(3, 4, 5)
    assert torch.equal(packing.pack(padded), padded[mask.bool()])
    assert packing.num_tokens == int(mask.sum())


def test_offsets_and_positions(mask: torch.Tensor) -> None:
    packing = Packing.from_mask(mask, 3, 4, "cpu")
    assert packing.cu_seqlens.dtype == torch.int32
    assert packing.cu_seqlens.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert packing.max_seqlen == int(mask.sum(1).max())
    assert packing.positions().tolist() == mask.nonzero()[:, 1].tolist()
    assert (packing.indices is None) == bool(mask.all())


@pytest.mark.parametrize("name", MASKS)
def test_holes_are_found_on_request(name: str) -> None:
    assert Packing.from_mask(torch.tensor(MASKS[name]), 3, 4, "cpu").contiguous
    packing = Packing.from_mask(torch.tensor(MASKS[name]), 3, 4, "cpu", look_for_holes=True)
    assert packing.contiguous == (name != "middle")


def test_pad_restores_and_puts_zeros_at_padding(mask: torch.Tensor) -> None:
    packing = Packing.from_mask(mask, 3, 4, "cpu")
    padded = torch.randn(3, 4, 5)
    restored = packing.pad(packing.pack(padded))
    assert torch.equal(restored, padded * mask.unsqueeze(-1))


def test_pack_and_pad_are_differentiable(mask: torch.Tensor) -> None:
    packing = Packing.from_mask(mask, 3, 4, "cpu")
    padded = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(packing.num_tokens, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(packing.pack, padded)
    assert torch.autograd.gradcheck(packing.pad, packed)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_any_mask_dtype(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert Packing.from_mask(mask.to(dtype), 2, 3, "cpu").indices.tolist() == [0, 1, 4, 5]


def test_no_mask_means_no_padding_and_no_copy() -> None:
    packing = Packing.from_mask(None, 2, 3, "cpu")
    padded = torch.randn(2, 3, 4)
    assert packing.indices is None
    assert packing.cu_seqlens.tolist() == [0, 3, 6]
    assert packing.max_seqlen == 3
    assert packing.pack(padded).data_ptr() == padded.data_ptr()
    assert packing.pad(packing.pack(padded)).data_ptr() == padded.data_ptr()
    assert packing.positions().tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("with_mask", [False, True])
def test_nothing_at_all(batch: int, length: int, with_mask: bool) -> None:
    mask = torch.ones(batch, length) if with_mask else None
    packing = Packing.from_mask(mask, batch, length, "cpu")
    assert packing.cu_seqlens.tolist() == [0] * (batch + 1)
    assert packing.num_tokens == packing.max_seqlen == 0 or batch == 0
    assert packing.pad(packing.pack(torch.zeros(batch, length, 2))).shape == (batch, length, 2)


@pytest.mark.parametrize(("batch", "length"), [(2, 3), (0, 3)])
def test_wrong_shape_names_both(batch: int, length: int) -> None:
    with pytest.raises(ValueError, match=rf"\[{batch}, {length}\], got \[2, 1, 1, 3\]"):
        Packing.from_mask(torch.ones(2, 1, 1, 3), batch, length, "cpu")
