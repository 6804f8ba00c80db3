"""sentence-transformers' pooling modes over packed tokens: the vectors and gradients of its own over padded ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from acceleration.agreement import seeded
from torch import Tensor
from transformers import BertConfig, BertModel

import spanbert_kernels as sk
from spanbert_kernels.acceleration.span_layers import OriginalPath
from spanbert_kernels.integrations.sentence_transformers import make_pooling, pooled
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.testing import assert_as_exact_as_eager

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
MASKS = {
    "right": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]],
    "left": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]],
    "empty row": [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]],
    "a hole": [[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1]],
    "none": [[1, 1, 1], [1, 1, 1]],
}


def padded(hidden: Tensor, mask: Tensor, mode: str, prompt: int) -> Tensor:
    """What the package's documentation says of a mode, row by row: `[B, L, H]`, `[B, L]` -> `[B, H]`."""
    rows = []
    for tokens, real in zip(hidden, mask.bool(), strict=True):
        places = real.nonzero()[:, 0]
        weights = places - (places[0] if len(places) else 0)
        kept = tokens[places[weights >= prompt]]
        weights = (weights[weights >= prompt] + 1)[:, None].to(hidden.dtype)
        if len(kept) == 0:
            rows.append(torch.full_like(tokens[0], -torch.inf if mode == "max" else 0.0))
            continue
        rows.append(
            {
                "cls": lambda kept, weights: kept[0],
                "lasttoken": lambda kept, weights: kept[-1],
                "max": lambda kept, weights: kept.max(0).values,
                "mean": lambda kept, weights: kept.mean(0),
                "mean_sqrt_len_tokens": lambda kept, weights: kept.sum(0) / len(kept) ** 0.5,
                "weightedmean": lambda kept, weights: (kept * weights).sum(0) / weights.sum(),
            }[mode](kept, weights)
        )
    return torch.stack(rows)


@pytest.mark.parametrize("prompt", [0, 2])
@pytest.mark.parametrize("name", MASKS)
def test_every_mode(name: str, prompt: int) -> None:
    mask = torch.tensor(MASKS[name])
    packing = Packing.from_mask(mask, *mask.shape, mask.device)
    states = torch.randn(*mask.shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    modes = MODES[1:] if prompt else MODES
    results = []
    for pool in ("theirs", "ours"):
        leaf = states.clone().requires_grad_()
        if pool == "ours":
            found = pooled(packing.pack(leaf), packing, modes, prompt)
        else:
            found = torch.cat([padded(leaf, mask, mode, prompt) for mode in modes], -1)
        found.masked_fill(found.isinf(), 0).square().sum().backward()
        results.append((found.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_added_up_in_more(dtype: torch.dtype) -> None:
    mask = torch.ones(2, 200, dtype=torch.long)
    packing = Packing.from_mask(mask, 2, 200, mask.device)
    states = (torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(0)) * 40 + 100).to(dtype)
    modes = ("mean", "mean_sqrt_len_tokens", "weightedmean")
    found = pooled(packing.pack(states), packing, modes, 0)
    exact = torch.cat([padded(states.double(), mask, mode, 0) for mode in modes], -1)
    eager = torch.cat([padded(states.float(), mask, mode, 0) for mode in modes], -1).to(dtype)
    assert found.dtype == dtype
    assert_as_exact_as_eager(found, eager, exact)


@pytest.fixture(scope="module")
def encoder() -> BertModel:
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = seeded(lambda: BertModel(config)).eval()
    sk.accelerate(model)
    return model


def features_of(encoder: BertModel, mask: Tensor, inference: bool = False) -> dict[str, Any]:
    ids = torch.randint(5, 30, mask.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(inference):
        states = encoder(ids, mask).last_hidden_state
    return {"attention_mask": mask, "token_embeddings": states}


def layer(mode: str = "mean", include_prompt: bool = True) -> Any:
    return make_pooling(SimpleNamespace(pooling_mode=mode, include_prompt=include_prompt))


@pytest.mark.parametrize("inference", [False, True])
def test_it_takes_what_the_encoder_padded(encoder: BertModel, inference: bool) -> None:
    mask = torch.tensor(MASKS["right"])
    features = features_of(encoder, mask, inference)
    expected = padded(features["token_embeddings"], mask, "mean", 0)
    given = dict(features)
    found = layer()(given)
    assert found is given
    torch.testing.assert_close(found["sentence_embedding"], expected)
    with torch.inference_mode(inference):
        features["token_embeddings"].mul_(2)
    with pytest.raises(OriginalPath, match="that no accelerated encoder returned with this mask"):
        layer()(features)


def test_what_the_package_pools_itself(encoder: BertModel) -> None:
    mask = torch.tensor(MASKS["right"])
    features = features_of(encoder, mask)
    prompts = {"prompt_length": torch.tensor([2, 2, 2])}
    for more, pool, text in (
        ({"attention_mask": mask.clone()}, layer(), "with this mask"),
        ({"token_embeddings": features["token_embeddings"] * 1}, layer(), "no accelerated encoder"),
        ({"attention_mask": mask[:, :4]}, layer(), "a mask of another length"),
        ({"token_weights_sum": mask.sum(1)}, layer(), "token_weights_sum of another module"),
        ({"cls_token_embeddings": mask}, layer("cls"), "cls_token_embeddings of another module"),
        (prompts, layer("cls", include_prompt=False), "the first token behind a prompt"),
    ):
        with pytest.raises(OriginalPath, match=text):
            pool({**features, **more})
    found = layer(include_prompt=False)({**features, **prompts})["sentence_embedding"]
    torch.testing.assert_close(found, padded(features["token_embeddings"], mask, "mean", 2))


def test_batches_that_come_packed() -> None:
    tokens = torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(0))
    features = {"token_embeddings": tokens, "cu_seq_lens_q": torch.tensor([0, 3, 7], dtype=torch.int32)}
    for mode in MODES:
        found = layer(mode)(dict(features))["sentence_embedding"]
        rows = [padded(part[None], torch.ones(1, len(part)), mode, 0) for part in (tokens[0, :3], tokens[0, 3:])]
        torch.testing.assert_close(found, torch.cat(rows))
