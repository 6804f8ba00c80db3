"""BERT-base on a GPU, in bfloat16: the accelerated model beside transformers' own, on real tokens.

Medians over cold caches, as triton.testing.do_bench takes them. The reference is transformers' eager model in float64,
document by document where that fits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from batches import padded_batch
from bench_attention_on_gpu import log_normal
from encoders import EAGER, SDPA, initial
from measuring import assert_agrees
from on_gpu import DTYPE, Comparison
from registry import BOTH, FORWARD
from torch import Tensor

from spanbert_kernels import accelerate

pytestmark = pytest.mark.gpu
WORKLOADS: dict[str, tuple[int, ...]] = {
    "256 x 128": (128,) * 256,
    "256 log-normal": log_normal(256),
    "one sentence of 24": (24,),
}


@dataclass(frozen=True)
class EncoderCase:
    """A batch on the GPU, and models that share nothing, so that each can be let go."""

    lengths: Tensor
    batch: dict[str, Tensor]

    @classmethod
    def of(cls, lengths: tuple[int, ...]) -> EncoderCase:
        made = torch.tensor(lengths)
        return cls(made, {name: tensor.cuda() for name, tensor in padded_batch(made).items()})

    def model(self, attention: str, dtype: torch.dtype) -> Any:
        model = copy.deepcopy(initial()).to("cuda", dtype)
        model.set_attn_implementation(attention)
        return model

    def states(self, model: Any) -> Tensor:
        with torch.inference_mode():
            states: Tensor = model(**self.batch).last_hidden_state
            return states[self.batch["attention_mask"].bool()]

    def exact(self) -> Tensor:
        model = self.model("eager", torch.float64)
        with torch.inference_mode():
            rows = zip(self.batch["input_ids"], self.lengths.tolist(), strict=True)
            return torch.cat([model(ids[None, :length]).last_hidden_state[0] for ids, length in rows])


@pytest.mark.headline
@pytest.mark.parametrize("name", WORKLOADS)
def test_encoder_on_gpu(keep_row: Callable[..., None], gpu_ceilings: dict[str, float], name: str) -> None:
    case = EncoderCase.of(WORKLOADS[name])
    reference = case.exact()
    tokens, weights = int(case.lengths.sum()), sum(each.numel() for each in initial().encoder.parameters())
    pairs = 4 * 768 * 12 * int(case.lengths.square().sum())
    axes = {"tokens": tokens, "documents": len(case.lengths)}
    moved = (weights + 2 * 12 * tokens * 768) * DTYPE.itemsize
    operations = 2 * tokens * weights + pairs
    comparison = Comparison("encoder", name, FORWARD, axes, moved, operations, gpu_ceilings, reference)
    theirs = {EAGER: case.model("eager", DTYPE), SDPA: case.model("sdpa", DTYPE)}
    eager = case.states(theirs[EAGER])
    accelerated = case.model("sdpa", DTYPE)
    report = accelerate(accelerated)
    allowed = assert_agrees(case.states(accelerated), eager, reference)
    comparison.measure("accelerate", "ours", lambda: case.states(accelerated), allowed=allowed, path=report.last_path)
    captured = case.model("sdpa", DTYPE)
    report = accelerate(captured, cuda_graphs=True)
    for _ in range(2):  # captured, then replayed, unless there are too many tokens
        allowed = assert_agrees(case.states(captured), eager, reference)
    if "replayed" in str(report.last_path):
        way = partial(case.states, captured)
        comparison.measure("accelerate, CUDA graphs", "ours", way, allowed=allowed, path=report.last_path)
    for way, model in theirs.items():
        kind = "eager" if way == EAGER else "peer"
        comparison.measure(way, kind, lambda model=model: case.states(model), graph=False)
    keep_row(comparison.row())


STEPS: dict[str, tuple[int, ...]] = {"64 log-normal": log_normal(64), "32 x 512": (512,) * 32}
COMPARED = 61  # of the gradients every so many numbers


class Step:
    """A training step as people take it: weights in float32, autocast to bfloat16, gradients of every weight."""

    def __init__(self, case: EncoderCase, attention: str, dtype: torch.dtype = torch.float32) -> None:
        self.case, self.dtype = case, dtype
        self.model = case.model(attention, dtype).train()
        generator = torch.Generator("cuda").manual_seed(0)
        shape = (int(case.lengths.sum()), self.model.config.hidden_size)
        self.incoming = torch.randn(shape, generator=generator, device="cuda")

    def run(self, dropout: float = 0.0) -> None:
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        self.model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", DTYPE, enabled=self.dtype == torch.float32):
            states = self.model(**self.case.batch).last_hidden_state
        states[self.case.batch["attention_mask"].bool()].backward(self.incoming.to(states.dtype))

    def gradients(self) -> Tensor:
        """Without dropout, whose masks differ."""
        self.run()
        found = [each.grad.flatten() for each in self.model.encoder.parameters()]
        return torch.cat(found)[::COMPARED]


@pytest.mark.headline
@pytest.mark.parametrize("name", STEPS)
def test_training_on_gpu(keep_row: Callable[..., None], gpu_ceilings: dict[str, float], name: str) -> None:
    case = EncoderCase.of(STEPS[name])
    exact = Step(case, "eager", torch.float64)
    reference = exact.gradients()
    del exact
    torch.cuda.empty_cache()
    tokens, weights = int(case.lengths.sum()), sum(each.numel() for each in initial().encoder.parameters())
    pairs = 4 * 768 * 12 * int(case.lengths.square().sum())
    axes = {"tokens": tokens, "documents": len(case.lengths), "dropout": 0.1}
    # The weights twice and their gradients; what is kept of the tokens at least.
    moved = (3 * weights + 4 * 12 * tokens * 768) * DTYPE.itemsize
    operations = 3 * 2 * tokens * weights + 3.5 * pairs
    comparison = Comparison("encoder_training", name, BOTH, axes, moved, operations, gpu_ceilings, reference)
    eager = Step(case, "eager")
    plain = eager.gradients()
    ours = Step(case, "sdpa")
    report = accelerate(ours.model)
    allowed = assert_agrees(ours.gradients(), plain, reference)
    ways = {"accelerate": ("ours", ours), EAGER: ("eager", eager), SDPA: ("peer", Step(case, "sdpa"))}
    for way, (kind, step) in ways.items():
        more = {"allowed": allowed, "path": report.last_path} if kind == "ours" else {}
        comparison.measure(way, kind, step.gradients, timed=partial(step.run, 0.1), **more)
        step.model.zero_grad(set_to_none=True)
    keep_row(comparison.row())
