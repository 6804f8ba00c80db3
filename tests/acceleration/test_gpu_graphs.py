"""CUDA graphs of an encoder's layers: buckets, what they read, when they are captured anew, and on a GPU the graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from agreement import assert_agrees
from torch import Tensor, nn

from spanbert_kernels import accelerate, ops, restore
from spanbert_kernels.acceleration import AccelerationWarning, gpu_graphs
from spanbert_kernels.acceleration.attention import Batch
from spanbert_kernels.acceleration.gpu_graphs import Bucket, Graphs
from spanbert_kernels.nn import Packing
from spanbert_kernels.ops import library

pytest.importorskip("triton", reason="Triton is not installed")

from transformers import BertConfig, BertModel, MegatronBertConfig, MegatronBertModel

# Of rows behind the last token, which nobody reads.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
CAPTURED, REPLAYED = (f"packed-inference (CUDA graph of 16 tokens {done})" for done in ("captured", "replayed"))
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40, "num_hidden_layers": 1}


class StandIn:
    """What a graph does, on a CPU: once captured, it runs the same again."""

    device_type = "cpu"
    fails = False

    def __init__(self, function: Callable[[], object], pool: Any) -> None:
        if self.fails:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        self.replay = function

    @staticmethod
    def new_pool() -> None:
        return None


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not library.interpreted():
        pytest.skip("Triton is not in its interpreter")
    monkeypatch.setattr(gpu_graphs, "CudaGraph", StandIn)
    with ops.backends.use("triton"):
        yield


def model_of(kind: type = BertModel, config: type = BertConfig, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(config(**{**SIZES, **options})).eval()


def batch_of(*lengths: int, device: str = "cpu") -> dict[str, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.arange(mask.numel()).view(mask.shape) % 30 + 5
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def states(model: Any, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**given).last_hidden_state[given["attention_mask"] != 0]
    return found


@pytest.mark.parametrize(
    ("lengths", "bucket"),
    [
        ((1,), (16, 1, 16)),
        ((16, 1, 1), (32, 4, 16)),
        ((128, 1), (144, 2, 128)),
        ((129,), (144, 1, 0)),
        ((100,) * 10, (1024, 16, 128)),
        ((1025,), (1152, 1, 0)),
    ],
)
def test_buckets(lengths: tuple[int, ...], bucket: tuple[int, int, int]) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    assert Bucket.of(Packing.from_offsets(offsets, None, sum(lengths))) == bucket


@pytest.mark.usefixtures("stand_in")
def test_replays_give_each_batch_its_own_states() -> None:
    """Also behind rows that hold NaN, and those of a batch do not change with the next one's."""
    model = model_of()
    batches = [batch_of(*lengths) for lengths in ((3, 1, 2), (4, 4, 4), (2, 5, 1), (7,))]
    expected = [states(model, given) for given in batches]
    report, found = accelerate(model, cuda_graphs=True), []
    for index, given in enumerate(batches):
        with torch.inference_mode(index == 0), torch.no_grad():  # what is kept serves in it and outside
            found.append(model(**given).last_hidden_state)
        graphs = model.forward._packed_layers.graphs
        if index == 2:
            assert graphs._room[1][:5].tolist() == [0, 2, 7, 8, 8]
        graphs._room[0].fill_(torch.nan)
    assert dict(report.calls) == {CAPTURED: 2, REPLAYED: 2}
    assert [*graphs.kept] == [(16, 4, 16), (16, 1, 16)]
    for ours, theirs, given in zip(found, expected, batches, strict=True):
        torch.testing.assert_close(ours[given["attention_mask"] != 0], theirs, rtol=1e-4, atol=1e-5)
    assert "16 tokens in 4" in str(report)


@pytest.mark.usefixtures("stand_in")
def test_graphs_are_captured_anew_where_what_they_read_lies_elsewhere() -> None:
    model, given = model_of(), batch_of(3, 2)
    report, layer = accelerate(model, cuda_graphs=True), model.encoder.layer[0]
    for path in (CAPTURED, REPLAYED, CAPTURED):
        found, twin = states(model, given), copy.deepcopy(model)
        assert report.last_path == path
        restore(twin)
        torch.testing.assert_close(found, states(twin, given), rtol=1e-4, atol=1e-5)
        assert len(model.forward._packed_layers.graphs.kept) == 1
        if path == CAPTURED:
            layer.attention.self.query.weight.data.mul_(2)  # in place
        else:
            layer.output.LayerNorm.weight = nn.Parameter(torch.rand(16))
    layers, dense = model.forward._packed_layers, layer.attention.output.dense
    seen = [layers._addresses()]

    def change(owner: Any, name: str, value: Any) -> None:
        setattr(owner, name, value)
        layers._follow_biases()
        seen.append(layers._addresses())
        assert seen[-1] not in seen[:-1], name

    change(dense.weight, "data", dense.weight.data.t())
    change(dense.weight, "data", dense.weight.data.double())
    change(dense, "bias", None)
    change(layer.attention.self.key, "bias", None)
    change(layer.output.LayerNorm, "eps", 0.1)
    change(layer.attention.self, "scaling", 0.5)


@pytest.mark.usefixtures("stand_in")
def test_the_latest_used_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_graphs, "MOST_GRAPHS", 2)
    graphs = Graphs(None)
    with torch.no_grad():
        for tokens in (3, 20, 4, 40):
            hidden, batch = torch.rand(tokens, 2), Batch(Packing.from_mask(None, 1, tokens, "cpu"))
            assert torch.equal(graphs.run(lambda rows, _: rows * 2, "here", hidden, batch), hidden * 2)
    assert [bucket.tokens for bucket in graphs.kept] == [16, 48]


@pytest.mark.usefixtures("stand_in")
def test_what_is_not_captured_is_launched_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, graphs = torch.rand(5, 2), Graphs(None)
    batch, double = Batch(Packing.from_mask(None, 1, 5, "cpu")), lambda rows, _: rows * 2

    def reason(**differences: Any) -> str:
        with torch.set_grad_enabled(differences.get("grad", False)):
            assert torch.equal(graphs.run(double, "here", hidden, differences.get("batch", batch)), hidden * 2)
        assert not graphs.kept
        return graphs.path.removeprefix("launched one by one: ")

    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in reason()
    assert "gradients are on" in reason(grad=True)
    assert "see each other" in reason(batch=Batch(batch.packing, linked=batch.packing.documents))
    with monkeypatch.context() as patch:
        patch.setattr(gpu_graphs, "MOST_TOKENS", 4)
        assert "more than 4 tokens" in reason()
    monkeypatch.setattr(StandIn, "fails", True)
    for _ in range(2):  # it is not tried again
        assert reason() == "a graph could not be captured (operation not permitted)"
        monkeypatch.setattr(StandIn, "fails", False)
    with pytest.raises(ValueError, match="repack=False leaves none"):
        accelerate(nn.Module(), cuda_graphs=True, repack=False)


@pytest.mark.usefixtures("stand_in")
def test_an_encoder_says_what_its_graphs_cannot_do() -> None:
    deep, other, given = model_of(num_hidden_layers=2), model_of(MegatronBertModel, MegatronBertConfig), batch_of(3, 2)
    report = accelerate(deep, cuda_graphs=True)
    with torch.no_grad():
        deep(**given, output_hidden_states=True)
    assert report.last_path == "packed-inference (launched one by one: states between layers were asked for)"
    accelerate(other, cuda_graphs=True)
    with pytest.warns(AccelerationWarning, match=r"no CUDA graph is captured: its layers are not built as BERT's"):
        states(other, given)


def test_an_encoder_on_a_cpu_says_that_it_has_none() -> None:
    model = model_of()
    report = accelerate(model, cuda_graphs=True)
    with pytest.warns(AccelerationWarning, match="not on a GPU"):
        states(model, batch_of(3, 2))
    assert report.last_path == "packed-inference"


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """Captured and replayed with other tokens, other documents and weights changed in place, on two streams."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=128, num_attention_heads=2, intermediate_size=256, vocab_size=40)
    model = BertModel(config).eval().to("cuda", torch.float16)
    eager, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    report = accelerate(model, cuda_graphs=True)
    batches = [batch_of(*lengths, device="cuda") for lengths in ((30, 2), (20, 11), (200, 3), (31, 1))] * 2
    streams = (torch.cuda.current_stream(), torch.cuda.Stream())
    torch.cuda.synchronize()

    def check(found: list[Tensor]) -> None:
        torch.cuda.synchronize()
        for given, ours in zip(batches, found, strict=False):
            assert_agrees(ours, states(eager, given), states(exact, given))

    found = []
    for index, given in enumerate(batches):
        with torch.cuda.stream(streams[index % 2]):
            found.append(states(model, given))
    check(found)
    captured = sum(count for path, count in report.calls.items() if path.endswith("captured)"))
    replayed = sum(count for path, count in report.calls.items() if path.endswith("replayed)"))
    assert (captured, replayed) == (2, 6)
    with torch.no_grad():
        for each in (model, eager, exact):
            each.encoder.layer[3].attention.self.value.weight.mul_(3)
    check([states(model, batches[0])])
    assert str(report.last_path).endswith("replayed)")
