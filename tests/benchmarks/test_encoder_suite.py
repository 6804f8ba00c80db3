"""The encoder's suite on a small model: what is compared, and what is timed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

import spanbert_kernels

SMALL = {"vocab_size": 30000, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 64, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(spanbert_kernels, "__path__", list(spanbert_kernels.__path__))  # to which suites add theirs
    import bench_encoder
    import encoders

    def forget() -> None:
        for made in (encoders.initial, encoders.rounded, encoders.exact_states):
            made.cache_clear()

    monkeypatch.setitem(encoders.MODELS, encoders.BERT, ("BertModel", SMALL))
    forget()
    yield bench_encoder
    forget()


@pytest.mark.parametrize("name", ["ours", "transformers, sdpa"])
def test_a_step_is_compared_without_dropout_and_timed_with_it(suite: ModuleType, name: str) -> None:
    import registry
    from bench_encoder_training import STEP, SUITE

    step = dataclasses.replace(STEP, options={**STEP.options, "documents": 2, "dropout": 0.5})
    way = registry.ready(SUITE, step, name)
    compared = way.results(way.run())
    timed = [way.results(way.timed()) for _ in range(2)]
    assert not torch.equal(timed[0], timed[1])
    assert not torch.equal(timed[0], compared)
    torch.testing.assert_close(way.results(way.run()), compared)
    assert way.output is not None
    assert way.output().grad_fn is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_against_float32_weights(suite: ModuleType, dtype: torch.dtype) -> None:
    import registry

    row = next(each for each in suite.SUITE.workloads if (each.name, each.dtype) == (suite.MIDDLE, dtype))
    exact, ours, eager = (
        registry.ready(suite.SUITE, row, name, precision)
        for name, precision in (("in float64", torch.float64), ("ours", None), (suite.EAGER, None))
    )
    reference = exact.results(exact.run())
    assert reference.shape == (352 * 32,)
    whole = copy.deepcopy(suite.initial()).double()(**suite.inputs(row, dtype).given["batch"]).last_hidden_state
    mask = suite.inputs(row, dtype).given["batch"]["attention_mask"].bool()
    torch.testing.assert_close(reference, whole[mask].flatten())
    for way in (ours, eager):
        error = (way.results(way.run()).double() - reference).abs().max()
        assert 0 < error < (1e-5 if dtype == torch.float32 else 0.1)


def test_models_share_their_weights(suite: ModuleType) -> None:
    first, second = (suite.model_of(torch.float32, attention) for attention in ("eager", "sdpa"))
    assert first is not second
    assert all(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.config._attn_implementation != second.config._attn_implementation
