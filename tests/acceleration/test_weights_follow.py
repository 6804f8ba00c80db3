"""Repacked weights follow their parameters: whatever happens between two calls is in the second one's result."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from agreement import PADDING, assert_agrees, encoder, in_float64, inputs
from torch import Tensor, nn

from spanbert_kernels import accelerate, restore
from spanbert_kernels.acceleration import weights
from spanbert_kernels.acceleration.forward import PackedForward

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
MASK = PADDING["right"]
Edit = Callable[[Any], object]


@pytest.fixture(params=["fused", "onednn", "plain"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In one call every parameter is copied, with oneDNN every weight, without it only those that are joined."""
    monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", "fused" if request.param == "fused" else "separate")
    with torch.backends.mkldnn.flags(enabled=request.param == "onednn"):
        yield


def states(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs(MASK)).last_hidden_state


def dense(model: Any) -> nn.Linear:
    return model.encoder.layer[1].intermediate.dense


def optimiser_step(kind: type[torch.optim.Optimizer], **options: Any) -> Edit:
    """One step with gradients that were there before, so that no call in between frees the packed weights."""

    def edit(model: Any) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        kind(model.parameters(), lr=0.01, **options).step()

    return edit


def load_state_dict(model: Any) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def load_state_dict_by_assignment(model: Any) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()}, assign=True)


def in_place(model: Any) -> None:
    with torch.no_grad():
        dense(model).weight[3, 5] += 1.0


def of_query_in_place(model: Any) -> None:
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight[3, 5] += 1.0


def data_assigned(model: Any) -> None:
    dense(model).weight.data = dense(model).weight.data * 1.5


def data_in_place(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def data_of_one_row(model: Any) -> None:
    """A row that holds one of the sampled elements; see `weights` for what is not seen."""
    dense(model).weight.data[0].add_(1.0)


def data_in_place_to_nan(model: Any) -> None:
    dense(model).weight.data.fill_(torch.nan)


def parameter_replaced(model: Any) -> None:
    dense(model).weight = nn.Parameter(dense(model).weight.detach() * 1.5)


def parameter_replaced_at_the_same_place(model: Any) -> None:
    """The old weight is freed first, so that the allocator may give the same address out again."""
    new = dense(model).weight.detach().mul(1.5).numpy().tobytes()
    shape = dense(model).weight.shape
    dense(model).weight = None
    dense(model).weight = nn.Parameter(torch.frombuffer(bytearray(new), dtype=torch.float32).view(shape).clone())


def tied(model: Any) -> None:
    dense(model).weight = model.encoder.layer[0].intermediate.dense.weight


def linear_replaced(model: Any) -> None:
    model.encoder.layer[0].output.dense = nn.Linear(64, 32)


def layer_replaced(model: Any) -> None:
    model.encoder.layer[0] = copy.deepcopy(model.encoder.layer[1])


def layer_removed(model: Any) -> None:
    del model.encoder.layer[1]


def layers_swapped(model: Any) -> None:
    layers = model.encoder.layer
    layers[0], layers[1] = layers[1], layers[0]


def activation_replaced(model: Any) -> None:
    model.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()


def activation_becomes_a_function(model: Any) -> None:
    intermediate = model.encoder.layer[0].intermediate
    del intermediate.intermediate_act_fn
    intermediate.intermediate_act_fn = torch.tanh


def biases_and_norms(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "encoder" in name:
            parameter.data.add_(0.1)


def query_bias_removed(model: Any) -> None:
    model.encoder.layer[0].attention.self.query.bias = None


def norm_epsilon(model: Any) -> None:
    model.encoder.layer[0].output.LayerNorm.eps = 0.5


def embeddings(model: Any) -> None:
    model.embeddings.word_embeddings.weight.data.mul_(1.5)


def resized_embeddings(model: Any) -> None:
    model.resize_token_embeddings(70, mean_resizing=False)
    model.embeddings.word_embeddings.weight.data.mul_(1.5)


def swapped_tensors(model: Any) -> None:
    torch.utils.swap_tensors(dense(model).weight, nn.Parameter(dense(model).weight.detach() * 1.5))


EDITS: list[Edit] = [
    optimiser_step(torch.optim.SGD),
    optimiser_step(torch.optim.AdamW),
    optimiser_step(torch.optim.AdamW, fused=True),
    optimiser_step(torch.optim.AdamW, foreach=True),
    load_state_dict,
    load_state_dict_by_assignment,
    in_place,
    of_query_in_place,
    data_assigned,
    data_in_place,
    data_of_one_row,
    parameter_replaced,
    parameter_replaced_at_the_same_place,
    tied,
    linear_replaced,
    layer_replaced,
    layer_removed,
    layers_swapped,
    activation_replaced,
    activation_becomes_a_function,
    biases_and_norms,
    query_bias_removed,
    norm_epsilon,
    embeddings,
    resized_embeddings,
    swapped_tensors,
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_edits_are_noticed(edit: Edit) -> None:
    model = encoder()
    report = accelerate(model)
    before = states(model)
    edit(model)
    after = states(model)
    assert not torch.equal(after, before)
    # A copy of a model leaves the packed weights behind.
    assert torch.equal(after, states(copy.deepcopy(model)))
    assert report.calls == {"packed-inference": 2}
    restore(model)
    with torch.no_grad():
        eager, reference = model(**inputs(MASK))[0], in_float64(model)(**inputs(MASK))[0]
    assert_agrees(after[MASK], eager[MASK], reference[MASK])


def test_an_activation_that_is_a_function_replaced_by_another() -> None:
    model = encoder()
    activation_becomes_a_function(model)
    accelerate(model)
    before = states(model)
    model.encoder.layer[0].intermediate.intermediate_act_fn = torch.sigmoid
    after = states(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, states(copy.deepcopy(model)))


def test_weights_that_are_no_parameters() -> None:
    """Some wrappers delete the parameter and set a tensor in its place."""
    model, expected = encoder(), encoder()
    report = accelerate(model)
    accelerate(expected)
    weight = dense(model).weight.detach().clone()
    del dense(model).weight
    dense(model).weight = weight
    assert torch.equal(states(model), states(expected))
    weight.mul_(1.5)
    dense(expected).weight.data.mul_(1.5)
    assert torch.equal(states(model), states(expected))
    assert report.calls == {"packed-inference": 2}


def test_nan_comes_through_and_goes_again() -> None:
    model = encoder()
    accelerate(model)
    before = states(model)
    kept = dense(model).weight.detach().clone()
    data_in_place_to_nan(model)
    assert states(model)[MASK].isnan().all()
    dense(model).weight.data.copy_(kept)
    assert torch.equal(states(model), before)


def test_to_dtype_and_back() -> None:
    model = encoder()
    report = accelerate(model)
    before = states(model)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        model.to(dtype)
        after = states(model)
        assert after.dtype == dtype
        assert torch.equal(after, states(copy.deepcopy(model)))
    assert not torch.equal(after, before)
    assert report.calls == {"packed-inference": 4, "packed-training": 1}  # float64 runs through the modules


def test_parameters_of_inference_mode() -> None:
    """They have no version counter; an edit that touches all of them is still seen."""
    with torch.inference_mode():
        model = encoder()
        accelerate(model)
        before = states(model)
        for parameter in model.parameters():
            parameter.mul_(0.9)
        after = states(model)
        assert not torch.equal(after, before)
        assert torch.equal(after, states(copy.deepcopy(model)))


def forward_of(model: Any) -> PackedForward:
    forward: PackedForward = model.forward
    return forward


def test_weights_are_packed_once() -> None:
    model = encoder()
    accelerate(model)
    states(model)
    first = forward_of(model)._packed_layers
    assert first is not None
    states(model)
    assert forward_of(model)._packed_layers is first


@pytest.mark.parametrize("event", ["training", "moved"])
def test_packed_weights_are_freed(event: str) -> None:
    model = encoder()
    accelerate(model)
    states(model)
    packed = weakref.ref(forward_of(model)._packed_layers)
    if event == "training":
        model(**inputs(MASK)).last_hidden_state.sum().backward()
    else:
        in_place(model)
        states(model)
    gc.collect()
    assert packed() is None


def test_copies_and_pickles_leave_packed_weights_behind() -> None:
    model = encoder()
    size = len(pickle.dumps(model))
    accelerate(model)
    states(model)
    assert forward_of(model)._packed_layers is not None
    assert forward_of(copy.deepcopy(model))._packed_layers is None
    parameters = sum(p.numel() * p.element_size() for layer in model.encoder.layer for p in layer.parameters())
    assert len(pickle.dumps(model)) - size < parameters / 10


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 5), (4, 4), (64, 32), (1000, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_samples_are_spread_and_see_signs_of_zero(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.zeros(shape, dtype=dtype)
    sample = weights._sample(weight)
    assert len(sample) == min(weight.numel(), weights.SAMPLES_PER_TENSOR)
    before = sample.clone()
    weight.neg_()
    assert (sample != before).all()
    if shape[0] >= weights.SAMPLES_PER_TENSOR:
        marked = torch.arange(weight.numel(), dtype=torch.float32).view(shape)
        rows = weights._sample(marked).view(torch.float32).long() // shape[1]
        assert len(rows.unique()) == weights.SAMPLES_PER_TENSOR
        assert rows.max() >= shape[0] * 3 // 4
