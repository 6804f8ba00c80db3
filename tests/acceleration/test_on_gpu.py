"""Inference launch by launch, as on a GPU: Triton's kernels in its interpreter, on tensors of a CPU."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from agreement import assert_agrees
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from spanbert_kernels import accelerate, ops, restore
from spanbert_kernels.acceleration import gpu_program
from spanbert_kernels.acceleration.gpu_program import Relaunch
from spanbert_kernels.nn import Packing
from spanbert_kernels.ops import library
from spanbert_kernels.ops.repeats import Launched

pytest.importorskip("triton", reason="Triton is not installed")
if not library.interpreted():
    pytest.skip("Triton is not in its interpreter", allow_module_level=True)

from transformers import BertConfig, BertModel, MegatronBertConfig, MegatronBertModel, RobertaConfig, RobertaModel

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
# Views and fresh memory are no launches.
FREE = ("view", "unbind", "t", "transpose", "empty", "slice", "select", "detach", "alias", "unsqueeze", "expand")
# What the interpreter does, and operators that are but Triton's kernels, which are counted as such.
NO_OWN = (
    *("copy_", "_to_copy", "set_", "document_attention_forward_triton"),
    *("dropout_add_layer_norm_forward_triton", "bias_gelu_forward_triton"),
)


class Launches(TorchDispatchMode):
    """Counts operators that start work on a GPU, Triton's with the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name.lstrip("_").removeprefix("unsafe_").removeprefix("new_") not in FREE and name not in NO_OWN:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def triton_alone() -> Iterator[None]:
    with ops.backends.use("triton"):
        yield


def batch() -> dict[str, Tensor]:
    ids = torch.arange(14).view(2, 7) + 5
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def model_of(kind: type, config: type, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(config(**{"num_hidden_layers": 2, **SIZES, **options})).eval()


def states(model: Any) -> Tensor:
    given = batch()
    with torch.no_grad():
        found: Tensor = model(**given).last_hidden_state[given["attention_mask"] != 0]
    return found


@pytest.mark.parametrize(
    ("kind", "config"), [(BertModel, BertConfig), (MegatronBertModel, MegatronBertConfig)], ids=["post", "pre"]
)
def test_same_states(kind: type, config: type) -> None:
    model = model_of(kind, config)
    expected, report = states(model), accelerate(model)
    torch.testing.assert_close(states(model), expected, rtol=1e-4, atol=1e-5)
    assert report.calls == {"packed-inference": 1}
    assert "query, key and value in one" in str(report)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_embeddings_are_one_pass(train: bool) -> None:
    """Of BERT, with the gradients of its tables; RoBERTa's positions have a row that gets none."""
    given = {**batch(), "token_type_ids": torch.tensor([0, 1]).expand(7, 2).T}
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for kind, config, ours in ((BertModel, BertConfig, True), (RobertaModel, RobertaConfig, not train)):
        torch.manual_seed(0)
        options = {"type_vocab_size": 2, "pad_token_id": 0, **without, **SIZES}
        model = kind(config(num_hidden_layers=1, **options)).train(train)
        twin = copy.deepcopy(model)
        accelerate(model)
        with torch.set_grad_enabled(train):
            expected = twin(**given).last_hidden_state[given["attention_mask"] != 0]
            with ops.backends.record() as ran:
                found = model(**given).last_hidden_state[given["attention_mask"] != 0]
        assert (("embedding_layer_norm", "triton") in ran) is ours
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if train:
            tables = [[*each.embeddings.parameters()] for each in (model, twin)]
            grads = [torch.autograd.grad(r.square().sum(), t) for r, t in zip((found, expected), tables, strict=True)]
            for ours_, theirs in zip(*grads, strict=True):
                torch.testing.assert_close(ours_, theirs, rtol=1e-3, atol=1e-3)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Relaunch]:
    """What is launched on other tensors than at first."""
    run, found = Relaunch.__call__, []
    monkeypatch.setattr(Relaunch, "__call__", lambda launch, *given: (found.append(launch), run(launch, *given)))
    return found


def names_of(node: Any) -> set[str]:
    """The functions of a graph of autograd's."""
    found, rest = {}, [node]
    while rest:
        node = rest.pop()
        if node is not None and node not in found:
            found[node] = node.name()
            rest += [before for before, _ in node.next_functions]
    return set(found.values())


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_autocast_rounds_products_alone(train: bool) -> None:
    """Sums, norms and what goes from layer to layer stay in float32, as in transformers; our kernels make them."""
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = model_of(BertModel, BertConfig, num_hidden_layers=1, initializer_range=0.3, **without).train(train)
    exact, twin, given = copy.deepcopy(model).double(), copy.deepcopy(model), batch()
    real = given["attention_mask"] != 0
    report, found = accelerate(model), []
    with torch.set_grad_enabled(train), ops.backends.record() if train else nullcontext([]) as ran:
        for each, autocast in ((model, True), (twin, True), (exact, False)):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found.append(each(**given).last_hidden_state[real])
    assert report.last_path == ("packed-training" if train else "packed-inference")
    assert found[0].dtype == torch.float32
    assert (found[0] != found[0].bfloat16()).any()
    assert_agrees(*(states_of_one.detach() for states_of_one in found))
    if train:
        ours = ("embedding_layer_norm", "dropout_add_layer_norm", "bias_gelu", "dropout_add_layer_norm")
        assert [(name, backend) for name, backend in ran if name in ours] == [(name, "triton") for name in ours]
        assert {"QkvAttentionBackward", "UnbindBackward0"} & names_of(found[0].grad_fn) == {"QkvAttentionBackward"}
        weights = (each.encoder.layer[0].intermediate.dense for each in (model, twin, exact))
        grads = [torch.autograd.grad(r.sum(), [w.weight, w.bias]) for r, w in zip(found, weights, strict=True)]
        for gradients in zip(*grads, strict=True):
            assert_agrees(*gradients)


def test_a_batch_like_one_before_only_launches(launched: list[Relaunch], monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings, the documents' list and four a layer, on other tensors."""
    model = model_of(BertModel, BertConfig)
    model.encoder.layer[1].output.LayerNorm.weight.data.uniform_()
    expected = states(model)
    accelerate(model)
    monkeypatch.setattr(gpu_program, "in_one_launch", lambda offsets: True)
    states(model)
    assert len(launched) == 1 + 4  # the first layer's second norm, and the second layer
    launched.clear()
    torch.testing.assert_close(states(model), expected, rtol=1e-4, atol=1e-5)
    assert len(launched) == 1 + 1 + 2 * 4
    # Which kernels cannot read as they lie are copied before, by the way around.
    model.encoder.layer[1].output.LayerNorm.bias = nn.Parameter(torch.zeros(17)[1:])
    launched.clear()
    torch.testing.assert_close(states(model), expected, rtol=1e-4, atol=1e-5)
    assert len(launched) == 1 + 1 + 4


def test_a_launch_on_a_part_of_a_list_is_repeated_on_that_part_of_another() -> None:
    """Batches of many tokens have launches that are cut by their documents' lengths."""
    x, tiles, found = torch.zeros(4), torch.zeros(6, 2, dtype=torch.int32), []

    def again(*values: Any, stream: int) -> None:
        found.append((*values, stream))

    launched = Launched(again, (x, (tiles[2:], tiles, 7), tiles[4:], "rest"), compiled=True)
    launch = Relaunch(launched, (x, tiles))
    assert launch.fits
    for stream in (3, 4):
        launch(stream, (1000, 2000))
        assert found.pop() == (1000, (2016, 2000, 7), 2032, "rest", stream)
    assert not Relaunch(launched, (x,)).fits
    assert not Relaunch(launched._replace(compiled=False), (x, tiles)).fits


def test_documents_of_other_lengths_are_told_apart() -> None:
    """Batches of as many tokens and documents launch the same on other lists."""
    model, twin = (model_of(BertModel, BertConfig, num_hidden_layers=1) for _ in range(2))
    report = accelerate(model)
    ids = torch.arange(6)[None] + 5
    for lengths in ((1, 5), (4, 2)):
        offsets = torch.tensor([0, *lengths]).cumsum(0).int()
        packing = Packing.from_offsets(offsets, None, 6)
        given = {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "position_ids": packing.places()[None]}
        with torch.no_grad():
            found = model(ids, **given).last_hidden_state[0]
            parts = zip(ids[0].split(lengths), found.split(lengths), strict=True)
            for tokens, states_of_tokens in parts:
                torch.testing.assert_close(states_of_tokens, twin(tokens[None]).last_hidden_state[0])
    assert set(report.calls) == {"packed-inference"}


def test_whatever_is_done_to_parameters_is_followed() -> None:
    model = model_of(BertModel, BertConfig, num_hidden_layers=1)
    accelerate(model)
    with torch.inference_mode():
        model(**batch())
    states(model)  # what is kept of the other call serves here too
    layer, names = model.encoder.layer[0], list(model.state_dict())
    attention = layer.attention.self

    def check() -> None:
        fresh = copy.deepcopy(model)
        restore(fresh)
        torch.testing.assert_close(states(model), states(fresh), rtol=1e-4, atol=1e-5)

    with torch.no_grad():
        attention.query.weight.mul_(2)
        attention.key.weight.data.mul_(-1)  # counted nowhere
        attention.value.bias = nn.Parameter(torch.ones(16))
    check()
    assert list(model.state_dict()) == names
    torch.testing.assert_close(states(copy.deepcopy(model)), states(model))
    for bias in (None, nn.Parameter(torch.ones(16))):  # which goes and comes
        attention.value.bias = layer.attention.output.dense.bias = bias
        layer.intermediate.dense.bias = None if bias is None else nn.Parameter(torch.ones(32))
        check()


def launches_of(layers: int, train: bool) -> Counter[str]:
    """Of a call behind the first."""
    from triton.runtime import interpreter

    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertModel(BertConfig(num_hidden_layers=layers, **SIZES, **without)).train(train)
    accelerate(model)
    with torch.set_grad_enabled(train):
        model(**batch())
    with torch.set_grad_enabled(train), pytest.MonkeyPatch.context() as patch, Launches() as found:
        run = interpreter.GridExecutor.__call__

        def counted(executor: Any, *args: Any, **kwargs: Any) -> None:
            found.names[executor.fn.__name__] += 1
            run(executor, *args, **kwargs)

        patch.setattr(interpreter.GridExecutor, "__call__", counted)
        model(**batch())
    return found.names


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_launches_of_a_layer(train: bool) -> None:
    launches = launches_of(2, train)
    launches.subtract(launches_of(1, train))
    once = {"attention_forward": 1, "norm_forward": 2, "addmm": 3, "mm": 1, "gelu_forward": 1}
    assert {name: count for name, count in launches.items() if count} == once | ({"cat": 2} if train else {})


class Reads(TorchFunctionMode):
    """Notes what makes the host wait for a GPU."""

    NAMES = ("tolist", "item", "cpu", "numpy", "equal", "nonzero", "__bool__", "__int__", "__index__", "__float__")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in self.NAMES or (func.__name__ == "to" and "cpu" in args):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_padded_batch_is_read_once() -> None:
    model, given = model_of(BertModel, BertConfig), batch()  # with a pooler, whose token must be real
    accelerate(model)
    given["attention_mask"][0, 0] = 0
    for reason in ("padding in some row", None):
        with Reads() as reads:
            prepared = model.forward._prepare_call((), given)
        assert reads.names == ["tolist"]
        assert (reason in prepared) if reason else not isinstance(prepared, str)
        given["attention_mask"][0, 0] = 1


def test_a_packed_batch_is_not_read_and_its_longest_document_not_believed() -> None:
    with FakeTensorMode():  # has no values to read
        packing = Packing.from_offsets(torch.empty(3, dtype=torch.int32, device="cuda"), 20, 43)
        documents = packing.documents
    assert (packing.max_seqlen, documents.max_seqlen, documents.num_tokens) == (43, 0, 43)


@pytest.mark.slow
def test_inference_on_a_gpu_compiles_to_one_graph() -> None:
    """Traced with tensors that say they are on a GPU and have no values: one operator, and nothing is read."""
    with torch.device("meta"):
        model = BertModel(BertConfig(num_hidden_layers=1, **SIZES), add_pooling_layer=False).eval()
    mode, device, graphs = FakeTensorMode(), torch.device("cuda", 0), []

    def on_gpu(tensor: Tensor) -> Tensor:
        return FakeTensor(mode, tensor.detach().to("meta"), device)

    for module in model.modules():
        module._parameters.update({name: nn.Parameter(on_gpu(each)) for name, each in module._parameters.items()})
    accelerate(model)

    def twice(ids: Tensor, mask: Tensor) -> Any:
        return model(ids, attention_mask=mask).last_hidden_state * 2

    def note(graph: Any, inputs: Any) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    torch._dynamo.reset()
    with mode, torch.no_grad():
        output = torch.compile(twice, backend=note, fullgraph=True)(*map(on_gpu, batch().values()))
    torch._dynamo.reset()
    assert (output.device, output.shape, output.dtype) == (device, (2, 7, 16), torch.float32)
    assert graphs == [["spanbert_kernels.accelerated_encoder", "<built-in function mul>"]]
