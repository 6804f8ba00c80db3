"""The arithmetic of 8 to 512 GPUs: what it says of bytes is what the code sends, of times what a pencil finds."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import readme_tables
import torch
import torch.distributed as dist
from efficiency import clusters, page, training
from efficiency.encoding import CorpusCosts
from efficiency.links import H200S, Links
from efficiency.predicted import BERT_BASE, MINILM, EncoderShape, PredictedTimes, predicted
from roof import keeping
from torch.distributed import _compute_bucket_assignment_by_size
from transformers import BertConfig, BertModel

from spanbert_kernels.ops import distributed_plans

NOWHERE = Links(float("inf"), float("inf"), 1.0, 0.0, (0.0, 0.0), (0.0, 0.0))
SMALL = EncoderShape(layers=2, hidden=4, inner=8, heads=1, vocabulary=10, positions=4)


@pytest.fixture(scope="module")
def times() -> PredictedTimes:
    record = keeping.load(keeping.newest())
    return predicted(record.rows("now"), record.content["card"], record.content["reached"])


@pytest.mark.parametrize(
    "module",
    [
        *(f"efficiency.{name}" for name in ("links", "predicted", "encoding", "training", "clusters", "page")),
        *(f"corpus_encoding.{name}" for name in ("documents", "recording", "plan")),
    ],
)
def test_examples(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        (BERT_BASE, BertConfig()),
        (MINILM, BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)),
    ],
)
def test_weights_and_buckets_are_those_of_the_model(shape: EncoderShape, config: BertConfig) -> None:
    with torch.device("meta"):
        model = BertModel(config)
    sizes = [each.numel() for each in model.parameters()]
    assert [*shape.embeddings, *shape.layer * shape.layers, *shape.pooler] == sizes
    backwards = [torch.empty(size) for size in reversed(sizes)]
    indices, _ = _compute_bucket_assignment_by_size(backwards, [training.FIRST_BUCKET, training.BUCKET])
    ours = training.buckets([(0.0, training.GRADIENT * size) for size in reversed(sizes)])
    assert [size for _, size in ours] == [sum(4 * backwards[place].numel() for place in each) for each in indices]


@dataclass(frozen=True)
class AllAlike:
    """Ranks of which each has what this one has."""

    group: Any
    size: int = 64
    rank: int = 5

    def after(self, steps: int) -> int:
        return (self.rank + steps) % self.size

    def agree(self, numbers: Sequence[int], failed: Exception | None = None) -> list[list[int]]:
        assert failed is None
        return [list(numbers)] * self.size

    def gathered_lists(self, numbers: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
        return [numbers] * self.size


@pytest.fixture
def group() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("keys", ["anchors", "tokens"])
def test_bytes_are_those_that_the_plan_sends(group: Any, monkeypatch: pytest.MonkeyPatch, keys: Any) -> None:
    monkeypatch.setattr(distributed_plans, "Ranks", AllAlike)
    documents, length = 3, 7
    offsets = torch.arange(documents + 1) * length
    plan = distributed_plans.agreed_plan(group, offsets, torch.tensor([0, documents]), "tokens", keys)
    k = torch.zeros(documents * length, BERT_BASE.heads, BERT_BASE.hidden // BERT_BASE.heads, dtype=torch.bfloat16)
    assert tuple(clusters.sent(keys, documents, length, 64, page.ROW)) == tuple(plan.bytes_sent(k))


@dataclass(frozen=True)
class Slow(Links):
    """A second for each thing that is sent, however large."""

    def gather(self, size: float, gpus: int) -> float:
        return 1.0

    def reduce(self, size: float, gpus: int) -> float:
        return 1.0


def test_what_hides_behind_work_and_what_does_not() -> None:
    """By pencil: work of 10 a layer forward and 20 backward, all gradients in one bucket, or a unit a layer."""
    step = training.StepOfOne(embedding=(1.0, 2.0), layer=(10.0, 20.0), optimizer=0.0)
    alone = 1 + 2 * 10 + 2 * 20 + 2
    assert training.data_parallel(step, SMALL, Slow(), 1) == alone
    assert training.data_parallel(step, SMALL, Slow(), 8) == alone + 1
    # The root's weights before all, and after the forward the last layer's; at the end the root's gradients.
    assert training.fully_sharded(step, SMALL, Slow(), 8, 8) == 1 + alone + 1 + 1
    quick = training.StepOfOne(embedding=(0.0, 0.0), layer=(0.1, 0.1), optimizer=0.0)
    # Nothing but what is sent, one after the other: weights of root and layers, of the layers again, and gradients.
    assert training.fully_sharded(quick, SMALL, Slow(), 8, 8) == pytest.approx(3 + 2 + 3, abs=0.5)
    large = replace(SMALL, vocabulary=training.BUCKET // 16)  # a bucket of its own, and one for the rest
    assert training.data_parallel(quick, large, Slow(), 8) == pytest.approx(0.4 + 1, abs=0.01)


def test_nothing_is_lost_where_sending_takes_no_time(times: PredictedTimes) -> None:
    for gpus in page.GPUS:
        tokens = gpus * 32_768
        found = training.efficiencies(times, BERT_BASE, NOWHERE, gpus, tokens)
        assert found[0] == pytest.approx(1, abs=0.03)  # but for the optimizer, which each GPU runs for all weights
        assert found[1] == pytest.approx(1, abs=0.001)
        now = training.efficiencies(times, BERT_BASE, H200S, gpus, tokens)
        assert all(one < other for one, other in zip(now, found, strict=True))


def test_what_breaks_first_in_a_corpus(times: PredictedTimes) -> None:
    costs = CorpusCosts(gpu=50e-6, read=4e-6, send=1e-6, receive=1e-6, work=49e-6, tokenize=250e-6, digest=1e-6)
    assert costs.tokenizers == 3
    assert costs.efficiency(1, 1, False) == pytest.approx(50 / 251)
    assert costs.efficiency(1, 3, False) == pytest.approx(50 / 101)
    assert costs.efficiency(100, 3, False) == pytest.approx(0.5 / 6)  # one process reads
    assert costs.efficiency(100, 3, True) == pytest.approx(0.5 / 2)  # one process hashes


def test_a_figure_that_changes_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is the one of the records, `test_readme` says."""
    before = readme_tables.efficiency()
    load = readme_tables.corpus_records.load

    def slower(path: Any) -> dict[str, Any]:
        record = load(path)
        for each in record["measurements"]:
            if each["what"] == "stages":
                each["stages"]["work"] *= 2
        return record

    monkeypatch.setattr(readme_tables.corpus_records, "load", slower)
    after = readme_tables.efficiency()
    assert len(after.splitlines()) == len(before.splitlines())
    assert sum(a != b for a, b in zip(after.splitlines(), before.splitlines(), strict=True)) >= len(page.GPUS)
