"""cross_document_attention, 12 heads of 64: tokens with the tokens of the other documents, anchors with anchors."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
import torch.nn.functional as F
from baselines import CompiledFlexAttention, attention_masked, attention_per_cluster
from torch import Tensor
from turns import Goal, assert_agrees

from spanbert_kernels import ops
from spanbert_kernels.nn import CrossDocumentMixer
from spanbert_kernels.ops.cross_document_attention.reference import cross_document_attention as eager_attention

HEADS, HEAD_DIM = 12, 64
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
DENSE, CLUSTERS, FLEX = "SDPA, dense mask", "SDPA per cluster, mask", "FlexAttention, compiled"


class Tokens:
    """8 clusters of 10 documents of 64 tokens, and who sees whom among them."""

    def __init__(self) -> None:
        self.cu_seqlens = torch.arange(0, 8 * 10 * 64 + 1, 64)
        self.cu_clusters = torch.arange(0, 81, 10)
        self.plan = ops.plan_attention(self.cu_seqlens, self.cu_clusters, "tokens", "tokens")
        self.rows = int(self.cu_seqlens[-1])
        self.document = torch.arange(self.rows) // 64
        self.offsets = self.cu_seqlens[self.cu_clusters].tolist()
        index = torch.arange(self.rows)
        self.mask = self.sees(index[:, None], index[None, :])
        self.masks = [self.mask[a : a + 640, a : a + 640].clone() for a in self.offsets[:-1]]
        generator = torch.Generator().manual_seed(0)
        self.qkv = torch.randn(self.rows, 3, HEADS, HEAD_DIM, generator=generator)
        self.grad = torch.randn(self.rows, HEADS, HEAD_DIM, generator=generator)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        first, second = self.document[query], self.document[key]
        return (first // 10 == second // 10) & (first != second)

    def ours(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = ops.cross_document_attention(q, k, v, self.plan)
        assert isinstance(result, Tensor)
        return result

    def dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_masked(q, k, v, self.mask)

    def per_cluster(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_per_cluster(q, k, v, self.offsets, self.masks)


@DTYPES
@torch.inference_mode()
def test_tokens_forward(compare: Callable[..., None], dtype: torch.dtype) -> None:
    case = Tokens()
    q, k, v = case.qkv.to(dtype).unbind(1)
    exact = case.per_cluster(q.double(), k.double(), v.double())
    eager = case.per_cluster(q, k, v)
    flex = CompiledFlexAttention(case.document, case.sees)
    torch.testing.assert_close(flex(q, k, v), eager, rtol=2e-2, atol=2e-2)
    compare(
        lambda: case.ours(q, k, v),
        {
            CLUSTERS: lambda: case.per_cluster(q, k, v),
            FLEX: lambda: flex(q, k, v),
            DENSE: lambda: case.dense(q, k, v),
        },
        error=assert_agrees(case.ours(q, k, v), eager, exact),
        goals=(Goal(9, against=DENSE), Goal(2, against=FLEX), Goal(1.2, against=CLUSTERS)),
    )


@DTYPES
def test_tokens_forward_and_backward(compare: Callable[..., None], dtype: torch.dtype) -> None:
    case = Tokens()

    def gradient(way: Callable[..., Tensor], dtype: torch.dtype = dtype) -> Tensor:
        leaf = case.qkv.to(dtype, copy=True).requires_grad_()
        way(*leaf.unbind(1)).backward(case.grad.to(dtype))
        assert leaf.grad is not None
        return leaf.grad

    error = assert_agrees(gradient(case.ours), gradient(case.per_cluster), gradient(case.per_cluster, torch.float64))
    compare(
        lambda: gradient(case.ours),
        {CLUSTERS: lambda: gradient(case.per_cluster), DENSE: lambda: gradient(case.dense)},
        error=error,
        goals=(Goal(6, against=DENSE), Goal(1.2, against=CLUSTERS)),
    )


class Anchors:
    """200 clusters of 3 .. 20 documents of 4 tokens; the anchors' queries, keys and values."""

    def __init__(self, dtype: torch.dtype) -> None:
        sizes = torch.from_numpy(numpy.random.default_rng(0).integers(3, 21, 200))
        self.cu_clusters = F.pad(sizes.cumsum(0), (1, 0))
        self.documents = int(self.cu_clusters[-1])
        self.cu_seqlens = torch.arange(0, 4 * self.documents + 1, 4)
        self.plan = ops.plan_attention(self.cu_seqlens, self.cu_clusters)
        generator = torch.Generator().manual_seed(0)
        shape = (self.documents, 3, HEADS, HEAD_DIM)
        self.qkv = torch.randn(shape, generator=generator).to(dtype)
        self.grad = torch.randn(self.documents, HEADS, HEAD_DIM, generator=generator).to(dtype)
        # The padded batch [C, largest], and the documents that each one sees there.
        place = torch.arange(int(sizes.max()))
        self.real = place < sizes[:, None]
        self.visible = self.real[:, None, None, :] & ~torch.eye(len(place), dtype=torch.bool)

    def ours(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = ops.cross_document_attention(q, k, v, self.plan)
        assert isinstance(result, Tensor)
        return result

    def padded(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Padded with masks, in plain PyTorch."""
        batch = q.new_zeros(*self.real.shape, 3, HEADS, HEAD_DIM)
        batch[self.real] = torch.stack((q, k, v), 1)
        query, key, value = batch.permute(2, 0, 3, 1, 4)  # [C, heads, documents, head_dim]
        scores = query @ key.mT * HEAD_DIM**-0.5
        weights = scores.masked_fill(~self.visible, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2)[self.real]

    def padded_by_sdpa(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = q.new_zeros(*self.real.shape, 3, HEADS, HEAD_DIM)
        batch[self.real] = torch.stack((q, k, v), 1)
        parts = batch.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(*parts, attn_mask=self.visible).transpose(1, 2)[self.real]

    def exact(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sight = (self.cu_seqlens, self.cu_clusters, "anchors", "anchors", False, None, "joint", HEAD_DIM**-0.5)
        return eager_attention(q.double(), k.double(), v.double(), *sight, 0.0, None)[0]


@DTYPES
@torch.inference_mode()
def test_anchors_forward(compare: Callable[..., None], dtype: torch.dtype) -> None:
    case = Anchors(dtype)
    q, k, v = case.qkv.unbind(1)
    torch.testing.assert_close(case.padded_by_sdpa(q, k, v), case.padded(q, k, v), rtol=2e-2, atol=2e-2)
    compare(
        lambda: case.ours(q, k, v),
        {"padded, masked": lambda: case.padded(q, k, v), "padded SDPA": lambda: case.padded_by_sdpa(q, k, v)},
        error=assert_agrees(case.ours(q, k, v), case.padded(q, k, v), case.exact(q, k, v)),
        goals=(Goal(4, against="padded, masked"),),
    )


@DTYPES
def test_anchors_forward_and_backward(compare: Callable[..., None], dtype: torch.dtype) -> None:
    case = Anchors(dtype)

    def gradient(way: Callable[..., Tensor], dtype: torch.dtype = dtype) -> Tensor:
        leaf = case.qkv.to(dtype, copy=True).requires_grad_()
        way(*leaf.unbind(1)).backward(case.grad.to(dtype))
        assert leaf.grad is not None
        return leaf.grad

    error = assert_agrees(gradient(case.ours), gradient(case.padded), gradient(case.exact, torch.float64))
    compare(
        lambda: gradient(case.ours),
        {"padded, masked": lambda: gradient(case.padded), "padded SDPA": lambda: gradient(case.padded_by_sdpa)},
        error=error,
        goals=(Goal(4, against="padded, masked"),),
    )


@torch.inference_mode()
def test_anchors_sub_layer(compare: Callable[..., None]) -> None:
    """Gather, LayerNorm, QKV, attention, projection, gate and the addition in place, against its products alone."""
    case, size = Anchors(torch.float32), HEADS * HEAD_DIM
    torch.manual_seed(0)
    mixer = CrossDocumentMixer(size, HEADS).eval()
    torch.nn.init.constant_(mixer.gate, 0.5)
    hidden = torch.randn(int(case.cu_seqlens[-1]), size)
    anchors = hidden[case.cu_seqlens[1:] - 1]
    scratch = hidden.clone()

    def matrix_products() -> None:
        F.linear(anchors, mixer.query.weight)
        F.linear(anchors, mixer.key_value.weight)
        F.linear(anchors, mixer.output.weight)

    double = CrossDocumentMixer(size, HEADS).eval().double()
    double.load_state_dict({name: value.double() for name, value in mixer.state_dict().items()})
    with ops.backends.use("eager"):
        exact = double(hidden.double(), case.cu_seqlens, case.cu_clusters)
        eager = mixer(hidden, case.cu_seqlens, case.cu_clusters)

    def ours() -> Tensor:
        return mixer(scratch, case.plan, inplace=True)

    error = assert_agrees(ours().clone(), eager, exact)

    def eager_way() -> Tensor:
        with ops.backends.use("eager"):
            return mixer(hidden, case.cu_seqlens, case.cu_clusters)

    compare(
        ours,
        {"eager": eager_way},
        error=error,
        floors={"its matrix products": matrix_products},
        goals=(Goal(at_most=1.15, against="its matrix products"),),
    )
