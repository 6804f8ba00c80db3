"""The parts of a layer, however its Linears are laid out, give the same on every way through it."""

from __future__ import annotations

import pytest
import torch
from agreement import PADDING, encoder
from torch import Tensor, nn

from spanbert_kernels.acceleration import training
from spanbert_kernels.acceleration.attention import Batch
from spanbert_kernels.acceleration.families import family_of
from spanbert_kernels.acceleration.fused import FusedLayers
from spanbert_kernels.acceleration.inference import SeparateLayers
from spanbert_kernels.acceleration.linears import PLAIN
from spanbert_kernels.acceleration.parts import EncoderParts, Joint, LayerParts
from spanbert_kernels.acceleration.structure import Structure
from spanbert_kernels.nn.packing import Packing

MASK = PADDING["right"]
PACKING = Packing.from_mask(MASK, *MASK.shape, "cpu")


def layer() -> LayerParts:
    model = encoder()
    family = family_of(model)
    assert family is not None
    structure = Structure.read(model, family)
    assert isinstance(structure, Structure)
    return structure.parts.layers[0]


def all_ways(parts: LayerParts) -> list[Tensor]:
    hidden = torch.randn(PACKING.num_tokens, 32, generator=torch.Generator().manual_seed(3))
    ours, batch = EncoderParts([parts]), Batch(PACKING)
    found = [training.run_layers(ours, 0, 1, hidden, batch), SeparateLayers(ours, PLAIN).run(0, 1, hidden, batch)]
    fused = FusedLayers.of(ours, "float32")
    return found if fused is None else [*found, fused.run(0, 1, hidden, batch)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_one_linear_for_queries_keys_and_values(groups: int, bias: bool) -> None:
    """One output after the other, or those of a head beside each other."""
    parts = layer()
    projections = parts.projections.linears
    joined = nn.Linear(32, 96, bias=bias)
    with torch.no_grad():
        for name in ("weight", "bias") if bias else ("weight",):
            by_group = [getattr(each, name).unflatten(0, (groups, -1)) for each in projections]
            getattr(joined, name).copy_(torch.stack(by_group, dim=1).flatten(0, 2))
        for each in () if bias else projections:
            each.bias = None
        expected = all_ways(parts)
        found = all_ways(parts._replace(projections=Joint((joined,), 3, groups)))
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_one_linear_for_the_activation_and_its_gate() -> None:
    parts = layer()
    wide = nn.Linear(32, 64), nn.Linear(32, 64)
    joined = nn.Linear(32, 128)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([each.weight for each in wide]))
        joined.bias.copy_(torch.cat([each.bias for each in wide]))
        expected = all_ways(parts._replace(up=Joint(wide, 2)))
        found = all_ways(parts._replace(up=Joint((joined,), 2)))
        plain = all_ways(parts._replace(up=Joint(wide[:1], 1)))
    for ours, theirs, other in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours, expected[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(ours, other, atol=1e-2)
