"""Attention on a GPU, in bfloat16, 12 heads of 64, against its floor and what PyTorch has, each peer named.

Forward, and forward with backward; every figure twice: kernels one after the other, and replayed from a CUDA graph,
which leaves out what the host takes. Medians over cold caches, as triton.testing.do_bench takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
import pytest
import torch
import torch.nn.functional as F
from baselines import CompiledFlexAttention, attention_padded
from measuring import assert_agrees
from on_gpu import DTYPE, Comparison, headlines_first
from registry import BOTH, FORWARD
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.ops.documents import document_of

pytestmark = pytest.mark.gpu
BACKENDS = ("cuda", "triton")
HEADS, HEAD_DIM = 12, 64


@dataclass(frozen=True)
class AttentionLoad:
    """Lengths of the documents; with `cluster`, runs of so many see each other and not themselves."""

    lengths: tuple[int, ...]
    cluster: int = 0


def log_normal(documents: int) -> tuple[int, ...]:
    drawn = numpy.random.default_rng(0).lognormal(4.6, 0.6, documents).round().clip(8, 512)
    return tuple(int(length) for length in drawn)


WORKLOADS = {
    "1024 x 32": AttentionLoad((32,) * 1024),
    "256 x 128": AttentionLoad((128,) * 256),
    "256 log-normal": AttentionLoad(log_normal(256)),
    "64 x 512": AttentionLoad((512,) * 64),
    "32 clusters x 10 x 128, without self": AttentionLoad((128,) * 320, cluster=10),
}


class Case:
    """Tensors and ways of a workload."""

    def __init__(self, load: AttentionLoad) -> None:
        lengths = torch.tensor(load.lengths)
        self.cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int().cuda()
        self.clusters = torch.arange(0, len(lengths) + 1, load.cluster).cuda() if load.cluster else None
        self.longest, self.tokens = int(lengths.max()), int(lengths.sum())
        self.plan = ops.plan_attention(self.cu_seqlens, self.clusters, "tokens", "tokens")
        document = document_of(self.cu_seqlens, self.tokens)
        self.document, self.group = document, document // max(1, load.cluster)
        # Without the documents themselves where there are clusters.
        own, groups = lengths.square().sum(), lengths.view(-1, load.cluster or 1).sum(1).square().sum()
        self.pairs = int(groups - own if load.cluster else own)
        generator = torch.Generator().manual_seed(0)
        self.qkv = torch.randn(self.tokens, 3, HEADS, HEAD_DIM, generator=generator).to("cuda", DTYPE)
        self.grad = torch.randn(self.tokens, HEADS, HEAD_DIM, generator=generator).to("cuda", DTYPE)
        self.mask = torch.arange(self.longest, device="cuda") < lengths.cuda()[:, None]

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        same = self.group[query] == self.group[key]
        return same if self.clusters is None else same & (self.document[query] != self.document[key])

    def ours(self, q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        attend = ops.document_attention if self.clusters is None else ops.cross_document_attention
        result = attend(q, k, v, self.plan, backend=backend)
        assert isinstance(result, Tensor)
        return result

    def varlen(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        result = varlen_attn(q, k, v, self.cu_seqlens, self.cu_seqlens, self.longest, self.longest)
        return result[0] if isinstance(result, tuple) else result

    def padded(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = q.new_zeros(*self.mask.shape, 3, HEADS, HEAD_DIM)
        batch[self.mask] = torch.stack((q, k, v), 1)
        return attention_padded(*batch.permute(2, 0, 3, 1, 4), self.mask).transpose(1, 2)[self.mask]

    def peers(self) -> dict[str, Callable[..., Tensor]]:
        """What PyTorch has; FlexAttention's block mask is made beforehand."""
        flex = CompiledFlexAttention(self.document, self.sees)
        if self.clusters is not None:
            return {"FlexAttention, compiled": flex}
        return {"varlen_attn": self.varlen, "FlexAttention, compiled": flex, "SDPA padded, with packing": self.padded}

    def result(self, way: Callable[..., Tensor], backward: bool, dtype: torch.dtype = DTYPE) -> Tensor:
        leaf = self.qkv.to(dtype).requires_grad_(backward)
        output = way(*leaf.unbind(1))
        return torch.autograd.grad(output, leaf, self.grad.to(dtype))[0] if backward else output


HEADLINES = ("64 x 512", "256 x 128", "256 log-normal", "32 clusters x 10 x 128, without self")


@pytest.mark.parametrize("name", headlines_first(WORKLOADS, HEADLINES))
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_attention_on_gpu(
    keep_row: Callable[..., None], gpu_ceilings: dict[str, float], name: str, backward: bool
) -> None:
    case = Case(WORKLOADS[name])

    def by_eager(dtype: torch.dtype) -> Tensor:
        return case.result(lambda q, k, v: case.ours(q, k, v, "eager"), backward, dtype)

    reference, eager = by_eager(torch.float64), by_eager(DTYPE)
    # q, k, v and the output once; backward: those, the incoming gradient and three gradients.
    moved = (12 if backward else 4) * case.tokens * HEADS * HEAD_DIM * DTYPE.itemsize
    # Two products forward, five more backward, as on a CPU.
    operations = (3.5 if backward else 1.0) * 4 * case.pairs * HEADS * HEAD_DIM
    axes = {"tokens": case.tokens, "documents": len(case.cu_seqlens) - 1}
    suite = "document_attention" if case.clusters is None else "cross_document_attention"
    direction = BOTH if backward else FORWARD
    comparison = Comparison(suite, name, direction, axes, moved, operations, gpu_ceilings, reference)
    for backend in BACKENDS:
        reason = ops.backends.refusal(backend, "cuda", DTYPE)
        if reason is not None:
            comparison.refuse(backend, "ours", reason)
            continue

        def run(backend: str = backend) -> Tensor:
            return case.result(lambda q, k, v: case.ours(q, k, v, backend), backward)

        allowed = assert_agrees(run(), eager, reference)
        comparison.measure(backend, "ours", run, graph=True, allowed=allowed)
    comparison.measure("eager", "eager", lambda: by_eager(DTYPE))
    for peer, way in case.peers().items():
        try:
            comparison.measure(peer, "peer", lambda way=way: case.result(way, backward), graph=True)
        except (RuntimeError, ImportError, NotImplementedError) as error:
            comparison.refuse(peer, "peer", str(error).splitlines()[0])
    keep_row(comparison.row())
