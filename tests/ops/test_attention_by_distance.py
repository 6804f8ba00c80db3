"""document_attention's window and relative terms: the shared checks, published rules, wrong arguments."""

from __future__ import annotations

from functools import partial
from typing import Any

import places
import pytest
import torch
from distance_cases import (
    TABLES,
    by_distance,
    by_distance_in_loops,
    distance_inputs,
    distance_terms,
    largest_distance_logit,
)
from op_checks import Case, OpChecks, Tensors, place_parameters
from places import Place
from torch import Tensor

from spanbert_kernels.ops import (
    RelativeTerms,
    backends,
    bucketed_index,
    clipped_index,
    document_attention,
    library,
    log_bucketed_index,
)

LACKING = ("cuda",)
ANY = torch.tensor([4, 4, 0, 3, 1, 2, 0, 0, 4], dtype=torch.int32)  # in no order, some rows often


def row(name: str, inputs: Any, *, large: bool = False, compiled: tuple[str, ...] = ("cpu",), **options: Any) -> Case:
    options = {"return_lse": True, **options}

    def terms(tensors: Tensors, _: Tensors, incoming: list[Tensor]) -> dict[str, float]:
        scale = options.get("scale", tensors["q"].shape[2] ** -0.5)
        return distance_terms(tensors, incoming, scale, 1 - options.get("dropout_p", 0.0), options.get("window"))

    def logits(tensors: Tensors) -> float:
        return largest_distance_logit(tensors, options.get("scale"))

    return Case(
        name, inputs, partial(by_distance, **options), partial(by_distance_in_loops, **options), twice=("eager",),
        terms=terms, compiled=compiled, large=large, exponents=("q", "k", *TABLES), logits=logits, lacking=LACKING,
        operators=("distance_attention_forward", "distance_attention_backward"),
    )  # fmt: skip


def given(index: Tensor, *tables: str, **fields: Any) -> Any:
    return partial(distance_inputs, index=index, tables=tables, **fields)


class TestShared(OpChecks):
    operation = "document_attention"
    emulated = ("window", "beyond the reach")
    cases = (
        row("window", partial(distance_inputs, lengths=(3, 0, 1, 5)), window=1, compiled=()),
        row("window of one", distance_inputs, window=0, large=True),
        row("bias", given(clipped_index(2), "bias"), large=True),
        row("keys", given(clipped_index(2), "keys"), large=True),
        row("queries", given(log_bucketed_index(4, 6), "queries"), large=True),
        row("no documents", given(ANY, *TABLES, lengths=()), compiled=()),
        row("all, dropout", given(ANY, *TABLES, seed=3), window=2, dropout_p=0.3, scale=0.7),
        row(
            "beyond the reach",
            given(torch.tensor([3, 1, 2]), *TABLES, lengths=(5, 0, 1), heads=1, seed=8),
            compiled=(),
            dropout_p=0.3,
        ),
        # Whole vectors, blocks of rows and of distances, and dimensions that leave a rest.
        row("two blocks", given(clipped_index(30), *TABLES, lengths=(70, 5), heads=1, dim=19), large=True),
        row("window, blocks", partial(distance_inputs, lengths=(150, 40), heads=1, dim=16), window=20, large=True),
        row(
            "logarithmic",
            given(log_bucketed_index(32, 80), "keys", "queries", lengths=(3, 150), heads=1, dim=8, seed=6),
            large=True,
            dropout_p=0.1,
        ),
        row("reversed", given(clipped_index(40).flip(0), "keys", "queries", lengths=(45,), dim=8), large=True),
        row("buckets", given(bucketed_index(16, 40), "bias", lengths=(33, 0, 90), dim=8), large=True, window=70),
    )


def compared(ours: Tensor, theirs: Tensor) -> None:
    """The index over more distances than it has entries, against a matrix of rows `[queries, keys]` of theirs."""
    length, reach = len(theirs), len(ours) // 2
    distance = torch.arange(length) - torch.arange(length)[:, None]
    assert torch.equal(ours[distance.clamp(-reach, reach) + reach].long(), theirs)


def test_the_rules_that_published_models_were_trained_with() -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    length = 600
    distance = torch.arange(length) - torch.arange(length)[:, None]
    compared(bucketed_index(), MPNetEncoder.relative_position_bucket(distance))
    for buckets, most in ((16, 40), (64, 500)):  # T5's
        compared(bucketed_index(buckets, most), MPNetEncoder.relative_position_bucket(distance, buckets, most))
    rows = torch.zeros(1, length, 1)
    for buckets, most in ((256, 512), (8, 30), (256, 300)):
        theirs = build_relative_position(rows, rows, buckets, most)[0]
        compared(log_bucketed_index(buckets, most), (theirs + buckets).clamp(0, 2 * buckets - 1))
    for most in (512, 20):
        theirs = build_relative_position(rows, rows)[0]
        compared(clipped_index(most), (theirs + most).clamp(0, 2 * most - 1))


@pytest.mark.parametrize("shared", [True, False], ids=["shared projections", "own projections"])
def test_it_is_the_attention_of_deberta(shared: bool) -> None:
    """Both ways round of the terms, in their class and in ours, on a document as long as the table and more."""
    from transformers import DebertaV2Config
    from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

    config = DebertaV2Config(
        hidden_size=8, num_attention_heads=2, relative_attention=True, position_buckets=4, max_relative_positions=9,
        pos_att_type=["p2c", "c2p"], share_att_key=shared, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(1)
    module = DisentangledSelfAttention(config).double()
    hidden, table = torch.randn(1, 30, 8).double(), torch.randn(8, 8).double().requires_grad_()
    expected, _ = module(hidden, torch.ones(1, 1, 30, 30), rel_embeddings=table)

    def heads(projection: str, rows: Tensor) -> Tensor:
        return getattr(module, projection)(rows).view(-1, 2, 4)

    q, k, v = (heads(name, hidden[0]) for name in ("query_proj", "key_proj", "value_proj"))
    key_table, query_table = ("key_proj", "query_proj") if shared else ("pos_key_proj", "pos_query_proj")
    terms = RelativeTerms(log_bucketed_index(4, 9), None, heads(key_table, table), heads(query_table, table))
    found = document_attention(q, k, v, torch.tensor([0, 30]), scale=12**-0.5, relative=terms)
    # They take the root of 12 in float32.
    torch.testing.assert_close(found.flatten(1), expected[0], rtol=1e-6, atol=1e-7)
    grads = [torch.autograd.grad(x.square().sum(), table, retain_graph=True)[0] for x in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6)


everywhere = pytest.mark.parametrize(
    "backend",
    place_parameters(("cpu", "eager", "triton"), (Place("cpu"), Place("eager"), Place("triton", "interpreter"))),
    indirect=True,
)


@everywhere
def test_what_a_window_leaves_out_may_be_anything(backend: str) -> None:
    """Token 40 is NaN and infinite: none but those that see it have it in outputs and gradients."""
    tensors = distance_inputs(1, lengths=(100,), dim=8)
    leaves = [tensors[name].float() for name in "qkv"]
    expected = document_attention(*leaves, tensors["cu_seqlens"], window=3, backend=backend)
    for leaf, value in zip(leaves, (torch.nan, torch.inf, torch.nan), strict=True):
        leaf[40] = value
        leaf.requires_grad_()
    output = document_attention(*leaves, tensors["cu_seqlens"], window=3, backend=backend)
    far = (torch.arange(100) - 40).abs()
    torch.testing.assert_close(output[far > 3], expected[far > 3])
    assert output[far <= 3].isnan().all()
    for grad in torch.autograd.grad(output[far > 3].sum(), leaves):
        assert grad[far > 6].isfinite().all()


@everywhere
def test_a_window_as_wide_as_the_documents_is_none(backend: str) -> None:
    tensors = distance_inputs(1, lengths=(20, 1, 7), dim=8)
    tensors = {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    expected = document_attention(**tensors, backend=backend)
    for window in (19, 2**31 - 1):
        found = document_attention(**tensors, window=window, backend=backend)
        torch.testing.assert_close(found, expected)


@pytest.mark.skipif(library.cpu_isa() is None, reason="the CPU library is not built")
class TestCpuKernels:
    def test_gradients_of_tables_are_the_same_bits_for_any_number_of_threads(self) -> None:
        """Documents enough for two parts of the sums."""
        lengths = (150, 0, 200, 90)
        tensors = distance_inputs(1, index=log_bucketed_index(16, 60), tables=TABLES, lengths=lengths, dim=8)
        leaves = {name: x.requires_grad_() for name, x in tensors.items() if x.is_floating_point()}

        def results(backend: str) -> list[Tensor]:
            output = by_distance(**tensors, window=130, dropout_p=0.1, seed=torch.tensor([4]), backend=backend)
            incoming = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).double()
            return [output, *torch.autograd.grad(output, list(leaves.values()), incoming)]

        expected = results("cpu")
        for value, eager in zip(expected, results("eager"), strict=True):
            torch.testing.assert_close(value, eager, rtol=1e-10, atol=1e-10)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            for value, first in zip(results("cpu"), expected, strict=True):
                assert torch.equal(value, first), f"with {threads} threads"

    def test_a_long_document_is_cut_into_pieces(self) -> None:
        """Of 512 queries; the second has keys before it that the window lets in, or all."""
        tensors = distance_inputs(1, index=clipped_index(20), tables=TABLES, lengths=(550,), heads=1, dim=8)
        for window in (None, 40):
            found, expected = (by_distance(**tensors, window=window, backend=name) for name in ("cpu", "eager"))
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    def test_what_a_window_costs_grows_with_the_tokens(self) -> None:
        """Pairs of a query and a key that are multiplied, of one document that becomes longer, forward and backward."""
        met = torch.ops.spanbert_kernels.document_attention_pairs_met

        def pairs(length: int) -> int:
            q, before = torch.zeros(length, 1, 4, requires_grad=True), met()
            document_attention(q, q, q, torch.tensor([0, length]), window=64, backend="cpu").sum().backward()
            return int(met()) - before

        assert pairs(2048) - pairs(1024) == pairs(3072) - pairs(2048)
        assert pairs(1024) <= 2 * 1024 * (2 * 64 + 32)


def test_triton_takes_blocks_by_pieces_and_distances_beyond_the_reach_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place("triton", "interpreter")
    if (reason := places.unavailable(place)) is not None:
        pytest.skip(reason)
    from spanbert_kernels.ops.attention import triton_by_distance

    monkeypatch.setattr(triton_by_distance, "MOST_PIECES", 2)
    tensors = distance_inputs(1, index=torch.tensor([1, 0, 2]), tables=TABLES, lengths=(70, 0, 3, 1), heads=1)
    leaves = {name: x.float().requires_grad_() for name, x in tensors.items() if x.is_floating_point()}

    def results(backend: str) -> list[Tensor]:
        output = by_distance(**{**tensors, **leaves}, dropout_p=0.3, seed=torch.tensor([4]), backend=backend)
        return [output, *torch.autograd.grad(output.square().sum(), list(leaves.values()))]

    with places.at(place):
        found = results("triton")
    for value, expected in zip(found, results("eager"), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-4)


def bad(error: type[Exception], text: str, **changes: Any) -> Any:
    return pytest.param(error, text, changes, id=text[:40])


INDEX = clipped_index(2)


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        bad(ValueError, "window must be at least 0, got -1", window=-1),
        bad(TypeError, r"relative must be RelativeTerms, got tuple: \(1, 2\)", relative=(1, 2)),
        bad(ValueError, "relative must have a table: bias, keys or queries", relative=RelativeTerms(INDEX)),
        bad(TypeError, "relative.index must be int32 or int64, got torch.float32",
            relative=RelativeTerms(INDEX.float(), torch.zeros(4, 2))),
        bad(ValueError, "relative.index must have an odd number of entries, 2 . reach . 1, got 4",
            relative=RelativeTerms(INDEX[:4], torch.zeros(4, 2))),
        bad(TypeError, "relative.index is on meta, but q is on cpu",
            relative=RelativeTerms(INDEX.to("meta"), torch.zeros(4, 2))),
        bad(ValueError, "relative.index must name rows of tables with 3, but names row 3",
            relative=RelativeTerms(INDEX, torch.zeros(3, 2))),
        bad(ValueError, "relative.index must name rows of tables with 4, but names row -1",
            relative=RelativeTerms(INDEX - 1, torch.zeros(4, 2))),
        bad(ValueError, r"relative.bias must be \[rows, heads\] with \[2\] as q has, got \[4, 3\]",
            relative=RelativeTerms(INDEX, torch.zeros(4, 3))),
        bad(TypeError, "relative.keys is torch.float64, but q is torch.float32",
            relative=RelativeTerms(INDEX, None, torch.zeros(4, 2, 4).double())),
        bad(ValueError, r"relative.queries must be .* with \[2, 4\] as q has, got \[4, 2, 5\]",
            relative=RelativeTerms(INDEX, None, None, torch.zeros(4, 2, 5))),
        bad(ValueError, r"relative.bias must have rows, got \[0, 2\]",
            relative=RelativeTerms(INDEX, torch.zeros(0, 2))),
        bad(ValueError, "same number of rows, got {'relative.keys': 4, 'relative.queries': 5}",
            relative=RelativeTerms(INDEX, None, torch.zeros(4, 2, 4), torch.zeros(5, 2, 4))),
    ],
)  # fmt: skip
def test_bad_arguments(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    q = torch.zeros(5, 2, 4)
    with pytest.raises(error, match=text):
        document_attention(q, q, q, torch.tensor([0, 5]), **changes)


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, "buckets must be even, got 33", lambda: bucketed_index(33)),
        (ValueError, "max_distance must be at least 9, got 8", lambda: bucketed_index(32, 8)),
        (ValueError, "max_distance must be at least 6, got 5", lambda: log_bucketed_index(8, 5)),
        (ValueError, "max_distance must be at least 1, got 0", lambda: clipped_index(0)),
    ],
)
def test_bad_indices(error: type[Exception], text: str, call: Any) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("backend", LACKING)
def test_who_has_no_kernel_says_so(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._LOADERS, backend, lambda: None)
    monkeypatch.setitem(backends.DEVICES, backend, "cpu")
    q = torch.zeros(5, 2, 4)
    with pytest.raises(backends.BackendUnavailable, match="it has no kernel for a window or relative terms"):
        document_attention(q, q, q, torch.tensor([0, 5]), window=1, backend=backend)  # type: ignore[call-overload]
