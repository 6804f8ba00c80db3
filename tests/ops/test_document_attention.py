"""document_attention: the shared checks over its table, then dropout, log-sum-exp and bad arguments."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from attention_loops import document_attention_by_loop, largest_logit, score_terms
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import Case, OpChecks, Tensors, every_backend
from torch import Tensor

from spanbert_kernels.ops import backends, cross_document_attention, document_attention, library

everywhere = every_backend("document_attention")


def attention_inputs(
    size: int, *, lengths: tuple[int, ...] = (3, 0, 1, 2), heads: int = 2, dim: int = 3, seed: int | None = None
) -> Tensors:
    generator = torch.Generator().manual_seed(size)
    cu_seqlens = torch.tensor([0, *(size * length for length in lengths)]).cumsum(0)
    shape = (int(cu_seqlens[-1]), heads, dim)
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name in "qkv"}
    tensors["q"] = 2 * tensors["q"]  # weights far from uniform
    tensors["cu_seqlens"] = cu_seqlens
    if seed is not None:
        tensors["seed"] = torch.tensor([seed])
    return tensors


def row(
    name: str,
    inputs: Any = attention_inputs,
    *,
    compiled: tuple[str, ...] = ("cpu",),
    large: bool = False,
    **options: Any,
) -> Case:
    options = {"return_lse": True, **options}
    call, oracle = partial(document_attention, **options), partial(document_attention_by_loop, **options)

    def terms(tensors: Tensors, _: Tensors, incoming: list[Tensor]) -> dict[str, float]:
        scale = options.get("scale", tensors["q"].shape[2] ** -0.5)
        return score_terms(tensors, incoming, scale, 1 - options.get("dropout_p", 0.0))

    def logits(tensors: Tensors) -> float:
        return largest_logit(tensors["q"], tensors["k"], options.get("scale"))

    return Case(
        name, inputs, call, oracle, twice=("eager",), terms=terms, compiled=compiled, large=large,
        exponents=("q", "k"), logits=logits,
    )  # fmt: skip


class TestShared(OpChecks):
    operation = "document_attention"
    emulated = ("documents", "max_seqlen", "no documents", "no tokens", "tiles", "wide heads")
    cases = (
        row("documents"),
        row("scale", scale=0.7, return_lse=False),
        row("dropout", partial(attention_inputs, seed=-(2**62) - 3), dropout_p=0.3),
        # Without the hint, eager's shapes depend on values, and compiling it takes a quarter of a minute.
        row("max_seqlen", partial(attention_inputs, seed=4), compiled=(), dropout_p=0.3, max_seqlen=9),
        # What is read as whole vectors is not copied first.
        row("whole vectors", partial(attention_inputs, lengths=(5, 0, 9), dim=16), compiled=()),
        row("no documents", partial(attention_inputs, lengths=())),
        row("no tokens", partial(attention_inputs, lengths=(0, 0))),
        # Documents of a tile of the GPU kernels, and of one more.
        row(
            "tiles", partial(attention_inputs, lengths=(64, 3, 65), heads=1, dim=20, seed=6), large=True, dropout_p=0.2
        ),
        row(
            "one tile",
            partial(attention_inputs, lengths=(128, 3, 65), heads=1, dim=20, seed=6),
            large=True,
            dropout_p=0.2,
            max_seqlen=128,
        ),
        row("long", partial(attention_inputs, lengths=(129, 300), heads=1, dim=96), large=True),
        # Two blocks of keys and eleven of queries, and dimensions that leave a rest in every vector.
        row("large", partial(attention_inputs, lengths=(530, 1, 49), dim=37), large=True),
        row(
            "large, dropout",
            partial(attention_inputs, lengths=(7, 520), heads=1, dim=24, seed=9),
            large=True,
            dropout_p=0.1,
        ),
        row("wide heads", partial(attention_inputs, lengths=(20, 13), heads=1, dim=130), large=True),
        # So many short documents that a task of the CPU kernels takes all heads, which it copies in two groups.
        row(
            "many short",
            partial(attention_inputs, lengths=(64, *(3, 0, 1, 9) * 9), heads=7, dim=70, seed=3),
            large=True,
            dropout_p=0.2,
        ),
    )


def make(lengths: tuple[int, ...], heads: int = 2, dim: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = attention_inputs(1, lengths=lengths, heads=heads, dim=dim)
    return tensors["q"].float(), tensors["k"].float(), tensors["v"].float(), tensors["cu_seqlens"]


@everywhere
def test_views_of_one_fused_projection(backend: str) -> None:
    fused = torch.randn(9, 3 * 2 * 4)
    views = fused.view(9, 3, 2, 4).unbind(1)
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
    expected = document_attention(*(x.contiguous() for x in views), cu_seqlens, backend=backend)
    assert torch.equal(document_attention(*views, cu_seqlens, backend=backend), expected)


@everywhere
def test_inf_and_nan_stay_in_their_document(backend: str) -> None:
    q, k, v, cu_seqlens = make((5, 3, 40))
    expected = document_attention(q, k, v, cu_seqlens, backend=backend)
    for tensor in (q, k, v):
        tensor[5] = torch.nan
        tensor[6] = torch.inf
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    output = document_attention(q, k, v, cu_seqlens, backend=backend)
    assert isinstance(output, Tensor)
    assert isinstance(expected, Tensor)
    others = torch.cat([torch.arange(5), torch.arange(8, 48)])
    assert torch.equal(output[others], expected[others])
    assert output[5:8].isnan().all()
    for grad in torch.autograd.grad(output[others].sum(), (q, k, v)):
        assert grad[others].isfinite().all()


@everywhere
def test_large_scores_do_not_overflow(backend: str) -> None:
    q, k, v, cu_seqlens = make((6, 520), heads=1)
    output, lse = document_attention(1000 * q, k, v, cu_seqlens, return_lse=True, backend=backend)
    assert output.isfinite().all()
    assert lse.isfinite().all()


@everywhere
def test_dropout_keeps_the_mean_and_the_rate(backend: str) -> None:
    """With equal weights and values of one, an output is the share of kept keys over 1 - p."""
    length, p = 200, 0.25
    zeros, ones = torch.zeros(length, 2, 1), torch.ones(length, 2, 1)
    cu_seqlens, seed = torch.tensor([0, length]), torch.tensor([2**40 + 17])
    output = document_attention(zeros, zeros, ones, cu_seqlens, dropout_p=p, seed=seed, backend=backend)
    assert isinstance(output, Tensor)
    # 80,000 entries: the standard error of the mean is 0.0020, that of one row's share 0.0408.
    assert abs(float(output.mean()) - 1) < 5 * 0.0021
    assert 0.9 * 0.0408 < float(output.std()) < 1.1 * 0.0408
    assert abs(float(output[:, 0].mean() - output[:, 1].mean())) > 0, "the heads drop different entries"


def test_dropout_is_the_same_on_every_backend() -> None:
    if backends.refusal("cpu", "cpu", torch.float64) is not None:
        pytest.skip("no compiled kernels here")
    zeros, identity = torch.zeros(70, 3, 70, dtype=torch.float64), torch.eye(70, dtype=torch.float64)
    values = identity[:, None].expand(70, 3, 70)
    cu_seqlens, seed = torch.tensor([0, 31, 70]), torch.tensor([-5])
    found = [
        document_attention(zeros, zeros, values, cu_seqlens, dropout_p=0.4, seed=seed, backend=name)
        for name in ("cpu", "eager")
    ]
    dropped = [output == 0 for output in found if isinstance(output, Tensor)]
    inside = torch.block_diag(torch.ones(31, 31), torch.ones(39, 39)).bool()[:, None]
    assert torch.equal(dropped[0], dropped[1])
    assert 0.3 < float((dropped[0] & inside).sum() / (3 * inside.sum())) < 0.5


@everywhere
def test_the_seed_is_drawn_from_torch_and_kept_for_the_backward(backend: str) -> None:
    q, k, v, cu_seqlens = make((30, 12))

    def call() -> tuple[Tensor, Tensor]:
        leaf = v.clone().requires_grad_()
        output = document_attention(q, k, leaf, cu_seqlens, dropout_p=0.5, backend=backend)
        assert isinstance(output, Tensor)
        torch.rand(3)  # the backward draws nothing: it would be thrown off
        return output, torch.autograd.grad(output.sum(), leaf)[0]

    torch.manual_seed(3)
    first, grad = call()
    second, _ = call()
    torch.manual_seed(3)
    again, same_grad = call()
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.equal(grad, same_grad)
    # The output is linear in v: the gradient and the output must have dropped the same entries.
    assert float(first.detach().sum()) == pytest.approx(float((grad * v).sum()), rel=1e-4)


@everywhere
def test_the_output_is_not_kept_for_the_backward(backend: str) -> None:
    q, k, v, cu_seqlens = make((30, 12))
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = document_attention(q.requires_grad_(), k, v, cu_seqlens, backend=backend)
    assert isinstance(output, Tensor)
    assert kept
    assert output.data_ptr() not in kept


@everywhere
def test_log_sum_exp_is_not_differentiable(backend: str) -> None:
    q, k, v, cu_seqlens = make((3, 2))
    _, lse = document_attention(q.requires_grad_(), k, v, cu_seqlens, return_lse=True, backend=backend)
    assert lse.shape == (2, 5)
    assert lse.dtype == torch.float32
    assert not lse.requires_grad


@everywhere
def test_max_seqlen_changes_nothing(backend: str) -> None:
    q, k, v, cu_seqlens = make((3, 0, 5))
    expected = document_attention(q, k, v, cu_seqlens, backend=backend)
    assert torch.equal(document_attention(q, k, v, cu_seqlens, max_seqlen=5, backend=backend), expected)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.integers(0, 12), max_size=6), st.integers(1, 3), st.integers(1, 20), st.integers(0, 1000))
def test_any_lengths(lengths: list[int], heads: int, dim: int, seed: int) -> None:
    if backends.refusal("cpu", "cpu", torch.float64) is not None:
        pytest.skip("no compiled kernels here")
    tensors = attention_inputs(1, lengths=tuple(lengths), heads=heads, dim=dim, seed=seed)
    results = [
        document_attention(**tensors, dropout_p=0.2, return_lse=True, backend=name)  # type: ignore[arg-type]
        for name in ("cpu", "eager")
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def bad(error: type[Exception], text: str, **changes: Any) -> Any:
    return pytest.param(error, text, changes, id=text[:40])


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        bad(ValueError, r"q must have shape \[T, heads, head_dim\], got \[5, 4\]", q=torch.zeros(5, 4)),
        bad(TypeError, "v must be floating point, got torch.int64", v=torch.zeros(5, 2, 4).long()),
        bad(TypeError, "k is torch.float64, but q is torch.float32", k=torch.zeros(5, 2, 4).double()),
        bad(TypeError, "k is on meta, but q is on cpu", k=torch.zeros(5, 2, 4, device="meta")),
        bad(ValueError, r"k must have \[2, 4\] .* got \[3, 4\]", k=torch.zeros(5, 3, 4)),
        bad(ValueError, r"same shape, got \[5, 2, 4\] and \[6, 2, 4\]", v=torch.zeros(6, 2, 4)),
        bad(ValueError, "same number of tokens, got 6 and 5", q=torch.zeros(6, 2, 4)),
        bad(ValueError, "head_dim must be at least 1", **{n: torch.zeros(5, 2, 0) for n in "qkv"}),
        bad(TypeError, "cu_seqlens must be int32 or int64, got torch.float32", cu_seqlens=torch.tensor([0.0, 5.0])),
        bad(ValueError, r"cu_seqlens must have shape .* got \[1, 2\]", cu_seqlens=torch.tensor([[0, 5]])),
        bad(ValueError, "cu_seqlens must hold at least one offset", cu_seqlens=torch.tensor([], dtype=torch.int64)),
        bad(ValueError, "cu_seqlens must start with 0, got 1", cu_seqlens=torch.tensor([1, 5])),
        bad(ValueError, r"ascend, but cu_seqlens\[2\] = 2 comes after 3", cu_seqlens=torch.tensor([0, 3, 2, 5])),
        bad(ValueError, "the number of tokens, 5, but ends with 4", cu_seqlens=torch.tensor([0, 4])),
        bad(TypeError, "cu_seqlens is on meta, but q is on cpu", cu_seqlens=torch.zeros(2, device="meta").long()),
        bad(ValueError, r"dropout_p must be in \[0, 1\), got 1.0", dropout_p=1.0),
        bad(ValueError, r"dropout_p must be in \[0, 1\), got -0.1", dropout_p=-0.1),
        bad(TypeError, "seed must be one int64 number .* torch.int32", dropout_p=0.1, seed=torch.zeros(1).int()),
        bad(TypeError, r"seed must be one int64 number .* \[2\]", dropout_p=0.1, seed=torch.zeros(2).long()),
        bad(TypeError, "seed is on meta", dropout_p=0.1, seed=torch.zeros(1, device="meta").long()),
        bad(ValueError, "document_attention has no backend 'gpu'; it has triton, cuda, cpu, eager", backend="gpu"),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    q, k, v, cu_seqlens = make((3, 2))
    with pytest.raises(error, match=text):
        document_attention(**{"q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens, **changes})


@everywhere
def test_a_max_seqlen_that_is_too_small(backend: str) -> None:
    q, k, v, cu_seqlens = make((3, 2))
    with pytest.raises(ValueError, match="max_seqlen is 2, but document 0 has 3 tokens"):
        document_attention(q, k, v, cu_seqlens, max_seqlen=2, backend=backend)


@pytest.mark.skipif(library.cpu_isa() is None, reason="the CPU library is not built")
def test_which_cpu_kernels_take_a_document() -> None:
    """Up to 128 rows those of small.h, forward and backward, but where a weight of 0 would meet an infinite value."""
    taken = torch.ops.spanbert_kernels.document_attention_heads_taken

    def heads(lengths: tuple[int, ...], **options: Any) -> tuple[int, int]:
        tensors = {
            k: v.float() if v.is_floating_point() else v for k, v in attention_inputs(1, lengths=lengths).items()
        }
        bad = options.pop("bad", None)
        if bad is not None:
            tensors["v"][bad] = torch.inf
        q = tensors["q"].requires_grad_()
        before = taken(True), taken(False)
        result = cross_document_attention if options else document_attention
        result(q, *(tensors[name] for name in ("k", "v", "cu_seqlens")), **options, backend="cpu").sum().backward()
        return taken(True) - before[0], taken(False) - before[1]

    assert heads((5, 128, 1)) == (2 * 2 * 3, 0)
    assert heads((129,)) == (0, 2 * 2)
    assert heads((129, 7)) == (2 * 2, 2 * 2)
    pair = {"cu_clusters": torch.tensor([0, 2]), "queries": "tokens", "keys": "tokens"}
    assert heads((60, 68), **pair) == (2 * 2, 0)
    assert heads((60, 69), **pair) == (0, 2 * 2)
    assert heads((60, 68), bad=0, **pair) == (0, 2 * 2)
