"""An encoder that was changed inside keeps the effect of the change: it runs on transformers' own path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import PADDING, assert_original, encoder, inputs
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from spanbert_kernels import accelerate
from spanbert_kernels.acceleration import AccelerationWarning

MASK = PADDING["right"]


class Adapter(nn.Module):
    """A Linear that was wrapped, as adapter libraries do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = linear, nn.Linear(32, 2, bias=False), nn.Linear(2, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def twice(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def add_adapter(model: Any) -> None:
    torch.manual_seed(5)
    attention = model.encoder.layer[1].attention.self
    attention.value = Adapter(attention.value)


def add_forward_hook(model: Any) -> None:
    model.encoder.layer[0].output.dense.register_forward_hook(twice)


def add_pre_hook(model: Any) -> None:
    model.encoder.layer[0].register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))


def add_embedding_hook(model: Any) -> None:
    model.embeddings.register_forward_hook(twice)


def add_parametrization(model: Any) -> None:
    torch.manual_seed(5)
    parametrizations.weight_norm(model.encoder.layer[0].output.dense)


def replace_a_forward(model: Any) -> None:
    model.encoder.layer[0].intermediate.dense.forward = lambda x: torch.cat((x, x), -1)


def replace_an_embedding(model: Any) -> None:
    class Scaled(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    model.embeddings.word_embeddings = Scaled.from_pretrained(model.embeddings.word_embeddings.weight.detach())


def add_a_module(model: Any) -> None:
    model.encoder.layer[0].adapter = nn.Linear(2, 2)


def become_a_decoder(model: Any) -> None:
    model.config.is_decoder = True


INSIDES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "adapter": ("attention.self.value is a ", add_adapter),
    "forward hook": ("a Linear inside has hooks", add_forward_hook),
    "pre-hook": ("a BertLayer inside has hooks", add_pre_hook),
    "embedding hook": ("a BertEmbeddings inside has hooks", add_embedding_hook),
    "parametrization": ("output.dense is a ", add_parametrization),
    "own embedding": ("its embeddings hold a ", replace_an_embedding),
    "another module": ("a layer holds adapter", add_a_module),
    "decoder": ("causal attention", become_a_decoder),
}


@pytest.mark.parametrize("name", INSIDES)
@pytest.mark.parametrize("used", [False, True])
def test_changes_after_acceleration(name: str, used: bool) -> None:
    reason, change = INSIDES[name]
    model, batch = encoder(), inputs(MASK)
    accelerate(model)
    if used:
        with torch.no_grad():
            model(**batch)
    change(model)
    assert_original(model, reason, **batch)


@pytest.mark.parametrize("used", [False, True])
def test_a_forward_replaced_inside(used: bool) -> None:
    model, batch = encoder(), inputs(MASK)
    expected = encoder()
    accelerate(model)
    if used:
        model(**batch)
    for each in (model, expected):
        replace_a_forward(each)
    with torch.no_grad(), pytest.warns(AccelerationWarning, match="the forward of a Linear inside was replaced"):
        assert torch.equal(model(**batch)[0], expected(**batch)[0])


def test_a_hook_that_is_removed_again() -> None:
    model, batch = encoder(), inputs(MASK)
    report = accelerate(model)
    handle = model.encoder.layer[0].output.dense.register_forward_hook(twice)
    with torch.no_grad():
        with pytest.warns(AccelerationWarning, match="hooks"):
            model(**batch)
        handle.remove()
        model(**batch)
    assert report.last_path == "packed-inference"


@pytest.mark.parametrize("used", [False, True])
def test_backward_hooks_are_called(used: bool) -> None:
    model, batch = encoder(), inputs(MASK)
    accelerate(model)
    if used:
        model(**batch)
    calls: list[int] = []
    model.encoder.layer[0].register_full_backward_hook(lambda *_: calls.append(1))
    with pytest.warns(AccelerationWarning, match="hooks"):
        model(**batch).last_hidden_state.sum().backward()
    assert calls == [1]


def test_hooks_that_transformers_leaves_mean_nothing() -> None:
    """It captures hidden states by hooks that stay, and trains adapters' inputs by another."""
    model, batch = encoder(), inputs(MASK)
    with torch.no_grad():
        model(**batch, output_hidden_states=True)
    assert model.encoder.layer[0]._forward_hooks
    model.enable_input_require_grads()
    model.requires_grad_(False)
    report = accelerate(model)
    assert model(**batch).last_hidden_state.requires_grad
    assert report.calls == {"packed-training (gradients are on)": 1}


def test_hooks_on_the_encoder_itself_are_called() -> None:
    model, batch = encoder(), inputs(MASK)
    report = accelerate(model)
    model.register_forward_hook(lambda module, args, output: output.last_hidden_state * 2)
    with torch.no_grad():
        assert torch.equal(model(**batch), 2 * model.forward(**batch).last_hidden_state)
    assert report.calls == {"packed-inference": 2}
