"""prune_spans: the published choice on both backends, budgets per document, the edges."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning import best, defined, published, spans_to_prune
from torch import Tensor

from spanbert_kernels import host
from spanbert_kernels.ops import backends, enumerate_spans, plan_spans, prune_spans
from spanbert_kernels.ops.backends import BackendUnavailable

NAMES = ("cpu", "eager")


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and host.load() is not None:
        pytest.skip(str(host.load()))
    return str(request.param)


def here() -> list[str]:
    return [name for name in NAMES if name == "eager" or host.load() is None]


def stack(starts: list[int], ends: list[int]) -> Tensor:
    return torch.tensor([starts, ends], dtype=torch.int64).reshape(2, -1).T


@settings(max_examples=100, deadline=None)
@given(spans=spans_to_prune(), k=st.integers(0, 70))
def test_the_published_choice(spans: tuple[list[int], list[int], list[float]], k: int) -> None:
    starts, ends, scores = spans
    for name in here():
        with backends.record() as calls:
            kept = prune_spans(stack(starts, ends), torch.tensor(scores), k, backend=name)
            all_kinds = prune_spans(stack(starts, ends), torch.tensor(scores), k, non_crossing=False, backend=name)
        assert calls == [("prune_spans", name)] * 2
        assert kept.dtype == torch.int64
        assert kept.tolist() == published(starts, ends, scores, k)
        assert all_kinds.tolist() == best(starts, ends, scores, k)


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.tuples(spans_to_prune(), st.integers(0, 20)), max_size=4),
    empty_after=st.integers(0, 4),
    order=st.randoms(),
)
def test_each_document_has_its_own_budget(documents: list[Any], empty_after: int, order: Any) -> None:
    """All at once is each document on its own, whatever the order of the spans."""
    documents = [*documents[:empty_after], None, *documents[empty_after:]]
    offsets, rows, expected, budgets = [0], [], [], []
    for document in documents:
        begin = offsets[-1]
        (starts, ends, scores), k = document or (([], [], []), 3)
        offsets.append(begin + max([0, *(e + 1 for e in ends), *(s + 1 for s in starts)]))
        first = len(rows)
        rows += [(s + begin, e + begin, score) for s, e, score in zip(starts, ends, scores, strict=True)]
        expected += [first + row for row in published(starts, ends, scores, k)]
        budgets.append(k)
    # Documents are shuffled into each other, each in its own order: of equal scores the earlier span wins.
    owner = [sum(start >= offset for offset in offsets[1:]) for start, _, _ in rows]
    turns = sorted(owner, key=lambda _: order.random())
    queues = {d: [row for row in range(len(rows)) if owner[row] == d] for d in owner}
    place = [queues[d].pop(0) for d in turns]
    spans = torch.tensor([rows[row][:2] for row in place], dtype=torch.int64).reshape(-1, 2)
    scores = torch.tensor([rows[row][2] for row in place])
    for name in here():
        kept = prune_spans(spans, scores, torch.tensor(budgets), cu_seqlens=torch.tensor(offsets), backend=name)
        assert [place[row] for row in kept.tolist()] == expected


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    widest=st.sampled_from([3, 40, 200]),
    score=st.sampled_from(["distinct", "ties", "one"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shares=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    non_crossing=st.booleans(),
    of_sentence=st.sampled_from([None, None, 0, 1, 7]),
    of_start=st.sampled_from([None, None, 0, 1, 2]),
)
def test_the_definition_on_more_than_a_round(
    seed: int,
    widest: int,
    score: str,
    dtype: torch.dtype,
    shares: list[int],
    non_crossing: bool,
    of_sentence: int | None,
    of_start: int | None,
) -> None:
    """Spans enough that only some are ranked at first, in groups that fill sooner and later."""
    generator = torch.Generator().manual_seed(seed)
    count, tokens = 2500, 300
    document = torch.randint(len(shares), (count,), generator=generator)
    start = torch.randint(tokens, (count,), generator=generator)
    end = (start + torch.randint(widest + 1, (count,), generator=generator)).clamp(max=(start // 100 + 1) * 100)
    start, end = start + document * tokens, end + document * tokens
    scores = torch.randn(count, generator=generator, dtype=dtype)
    scores = {"distinct": scores, "ties": scores.round(), "one": scores * 0}[score]
    scores[torch.randint(count, (20,), generator=generator)] = torch.inf
    scores[torch.randint(count, (20,), generator=generator)] = -torch.inf
    budgets, offsets = torch.tensor(shares), torch.arange(len(shares) + 1) * tokens
    limits, options = [(document, budgets)], {}
    if of_sentence is not None:
        sentences = torch.arange(0, len(shares) * tokens + 1, 100)
        limits.append((start // 100, torch.full((len(sentences),), of_sentence)))
        options |= {"cu_sentences": sentences, "k_sentence": of_sentence}
    if of_start is not None:
        limits.append((start, torch.full((len(shares) * tokens + 1,), of_start)))
        options["k_start"] = of_start
    expected = defined(start, end, scores, limits, non_crossing)
    for name in here():
        kept = prune_spans(
            torch.stack([start, end - 1], 1), scores, budgets, non_crossing, cu_seqlens=offsets, backend=name, **options
        )
        assert torch.equal(kept, expected)


def test_a_sentence_and_a_start_keep_their_best(backend: str) -> None:
    spans, scores = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 3], [2, 2]]), torch.tensor([1.0, 2, 3, 4, 5])
    cu_sentences = torch.tensor([0, 2, 4], dtype=torch.int32)

    def kept(k: int | None, **options: Any) -> list[int]:
        return prune_spans(spans, scores, k, backend=backend, **options).tolist()  # type: ignore[no-any-return]

    assert kept(None, cu_sentences=cu_sentences, k_sentence=1) == [2, 4]
    assert kept(3, cu_sentences=cu_sentences, k_sentence=torch.tensor([3, 1])) == [1, 2, 4]
    assert kept(None, k_start=1) == [1, 2, 4]
    assert kept(2, k_start=1) == [2, 4]
    far = torch.tensor([[-5, -9], [2**60, 2**60 + 1], [2**60, 2**60], [-5, -9]])
    assert prune_spans(far, scores[:4], None, k_start=1, backend=backend).tolist() == [3, 2]
    assert kept(None, cu_sentences=cu_sentences, k_sentence=2, k_start=1) == [1, 2, 4]


def test_one_number_is_every_documents_budget(backend: str) -> None:
    spans, scores = torch.tensor([[0, 0], [1, 1], [2, 2], [3, 3], [4, 4]]), torch.tensor([1.0, 2, 3, 4, 5])
    cu_seqlens = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    assert prune_spans(spans, scores, 1, cu_seqlens=cu_seqlens, backend=backend).tolist() == [2, 4]
    assert prune_spans(spans, scores, torch.tensor([2, 1, 0]), cu_seqlens=cu_seqlens, backend=backend).tolist() == [
        1,
        2,
    ]
    assert prune_spans(spans, scores, 3, backend=backend).tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("kept", "other", "crosses"),
    [
        ((2, 5), (4, 7), True),
        ((2, 5), (0, 3), True),
        ((2, 5), (5, 6), True),
        ((2, 5), (1, 2), True),
        ((2, 5), (6, 7), False),
        ((2, 5), (0, 1), False),
        ((2, 5), (2, 5), False),
        ((2, 5), (2, 3), False),
        ((2, 5), (4, 5), False),
        ((2, 5), (2, 8), False),
        ((2, 5), (0, 5), False),
        ((2, 5), (3, 4), False),
        ((2, 5), (0, 9), False),
        ((2, 5), (4, 3), False),
    ],
)
def test_what_crosses(backend: str, kept: tuple[int, int], other: tuple[int, int], crosses: bool) -> None:
    spans = torch.tensor([other, kept])
    found = prune_spans(spans, torch.tensor([1.0, 2.0]), 2, backend=backend).tolist()
    assert sorted(found) == ([1] if crosses else [0, 1])


def test_ties_go_to_the_earlier_span_and_equal_spans_keep_their_order(backend: str) -> None:
    spans = torch.tensor([[3, 4], [0, 1], [1, 2], [0, 1], [3, 4]])
    assert prune_spans(spans, torch.zeros(5), 2, backend=backend).tolist() == [1, 0]
    assert prune_spans(spans, torch.tensor([0.0, -0.0, 0.0, 0.0, 0.0]), 9, backend=backend).tolist() == [1, 3, 0, 4]
    assert prune_spans(spans, torch.zeros(5), 3, non_crossing=False, backend=backend).tolist() == [1, 2, 0]


def test_a_span_without_tokens_crosses_none_and_takes_a_place(backend: str) -> None:
    spans = torch.tensor([[0, 5], [3, 2], [-7, -8], [4, 9]])
    scores = torch.tensor([3.0, 2.0, 1.0, 4.0])
    assert prune_spans(spans, scores, 4, backend=backend).tolist() == [2, 1, 3]
    assert prune_spans(spans, scores, 2, backend=backend).tolist() == [1, 3]


def test_fewer_than_asked_for_and_none(backend: str) -> None:
    spans = torch.tensor([[0, 2], [1, 3], [2, 4]])
    assert prune_spans(spans, torch.tensor([1.0, 2.0, 1.0]), 3, backend=backend).tolist() == [1]
    assert prune_spans(spans, torch.ones(3), 0, backend=backend).tolist() == []
    nothing = prune_spans(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0), 5, backend=backend)
    assert nothing.dtype == torch.int64
    assert nothing.shape == (0,)
    offsets, budgets = torch.tensor([0]), torch.zeros(0, dtype=torch.int64)
    none = prune_spans(torch.zeros(0, 2).long(), torch.zeros(0), budgets, cu_seqlens=offsets, backend=backend)
    assert none.shape == (0,)


def test_minus_infinity_ranks_last_and_may_be_kept(backend: str) -> None:
    spans, scores = torch.tensor([[0, 0], [1, 1], [2, 2]]), torch.tensor([-torch.inf, -1e30, torch.inf])
    assert prune_spans(spans, scores, 2, backend=backend).tolist() == [1, 2]
    assert prune_spans(spans, scores, 3, backend=backend).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_dtypes_strides_plans_and_ends(backend: str, dtype: torch.dtype, index: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    plan = enumerate_spans(torch.tensor([0, 5, 25]), max_width=6)
    pairs = plan.pairs()
    scores = torch.randn(len(plan), generator=generator).to(dtype)
    expected = published(pairs[:, 0].tolist(), pairs[:, 1].tolist(), scores.tolist(), 12)
    wide = torch.full((len(plan), 5), -(10**9), dtype=index)
    wide[:, 1::2] = pairs.to(index)
    spaced = torch.full((len(plan), 3), torch.nan, dtype=dtype)
    spaced[:, 1] = scores
    half_open = pairs + torch.tensor([0, 1])
    for spans, options in (
        (wide[:, 1::2], {}),
        (plan, {}),
        (plan_spans(pairs.to(index)), {}),
        (half_open.to(index), {"end_inclusive": False}),
    ):
        found = prune_spans(spans, spaced[:, 1], 12, backend=backend, **options)  # type: ignore[arg-type]
        assert found.tolist() == expected


def test_scores_that_differ_in_float64_alone(backend: str) -> None:
    spans, scores = torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 1.0 + 2e-16], dtype=torch.float64)
    assert prune_spans(spans, scores, 1, backend=backend).tolist() == [1]


def test_positions_that_lie_far_apart(backend: str) -> None:
    far = 2**60
    spans = torch.tensor([[far, far + 10], [far + 5, far + 20], [0, 3], [2, far - 1], [far, far]])
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    assert prune_spans(spans, scores, 5, backend=backend).tolist() == [2, 4, 0]


def test_many_spans_wide_and_narrow() -> None:
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(0, 900, (20_000,), generator=generator)
    ends = starts + (torch.rand(20_000, generator=generator) ** 6 * (900 - starts)).long()
    scores = torch.randint(0, 50, (20_000,), generator=generator).float()
    expected = published(starts.tolist(), ends.tolist(), scores.tolist(), 1500)
    for name in here():
        assert prune_spans(torch.stack([starts, ends], 1), scores, 1500, backend=name).tolist() == expected


def test_scores_that_need_a_gradient_and_inputs_left_alone(backend: str) -> None:
    spans, scores = torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0], requires_grad=True)
    copies = spans.clone(), scores.detach().clone()
    kept = prune_spans(spans, scores, 1, backend=backend)
    assert not kept.requires_grad
    scores[kept].sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [0, 1]
    budgets, offsets = torch.tensor([1, 1]), torch.tensor([0, 1, 2])
    prune_spans(spans, scores, budgets, cu_seqlens=offsets, backend=backend)
    assert torch.equal(spans, copies[0])
    assert torch.equal(scores.detach(), copies[1])
    assert budgets.tolist() == [1, 1]
    assert offsets.tolist() == [0, 1, 2]


def test_a_compiled_model_may_call_it(backend: str) -> None:
    def best_spans(scores: Tensor) -> Tensor:
        doubled = scores * 2
        return doubled[prune_spans(torch.tensor([[0, 1], [1, 2], [3, 3]]), doubled, 2, backend=backend)]

    compiled = torch.compile(best_spans, backend="aot_eager")
    assert compiled(torch.tensor([1.0, 3.0, 2.0])).tolist() == [6.0, 4.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_tensors_on_a_gpu() -> None:
    spans = torch.tensor([[0, 1], [1, 2], [1, 1]], device="cuda")
    kept = prune_spans(spans, torch.tensor([1.0, 2.0, 0.5], device="cuda"), 2)
    assert kept.device.type == "cuda"
    assert kept.tolist() == [2, 1]


def test_without_the_host_module(monkeypatch: pytest.MonkeyPatch) -> None:
    spans, scores = torch.tensor([[0, 0]]), torch.ones(1)
    monkeypatch.setitem(backends._own_loaders, ("prune_spans", "cpu"), lambda: "the host module was not built: why")
    backends._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="prune_spans: backend 'cpu' is passed over: the host module was not built"):
        assert prune_spans(spans, scores, 1).tolist() == [0]
    with pytest.raises(BackendUnavailable, match="the host module was not built: why"):
        prune_spans(spans, scores, 1, backend="cpu")
    assert backends.refusals()["cpu"]["prune_spans"] == "the host module was not built: why"
    assert backends.refusals()["cpu"]["packed_linear"] != "the host module was not built: why"
    backends._warn_once.cache_clear()


def test_without_the_library_of_the_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if host.load() is not None:
        pytest.skip(str(host.load()))
    monkeypatch.setitem(backends._LOADERS, "cpu", lambda: "not built")
    with warnings.catch_warnings(), backends.record() as calls:
        warnings.simplefilter("error")
        prune_spans(torch.tensor([[0, 0]]), torch.ones(1), 1)
    assert calls == [("prune_spans", "cpu")]


SPANS, SCORES, OFFSETS = torch.tensor([[0, 1], [2, 4]]), torch.zeros(2), torch.tensor([0, 2, 5])


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (TypeError, "spans must be int32 or int64, got torch.float32", {"spans": SPANS.float()}),
        (ValueError, r"spans must have shape \[N, 2\], got \[2, 1\]", {"spans": SPANS[:, :1]}),
        (TypeError, "scores must be floating point, got torch.int64", {"scores": SCORES.long()}),
        (TypeError, "scores must be a tensor .* got list", {"scores": [0.0, 1.0]}),
        (ValueError, r"scores must have shape \[N\], got \[2, 1\]", {"scores": SCORES[:, None]}),
        (ValueError, r"one score for each of 2 spans, got \[3\]", {"scores": torch.zeros(3)}),
        (ValueError, r"scores\[1\] is NaN", {"scores": torch.tensor([1.0, torch.nan])}),
        (ValueError, "k must be at least 0, got -1", {"k": -1}),
        (ValueError, "k must be at least 0, got -2", {"k": torch.tensor([1, -2]), "cu_seqlens": OFFSETS}),
        (ValueError, "k as a tensor .* needs cu_seqlens", {"k": torch.tensor([1, 2])}),
        (ValueError, r"each of 2 documents, got \[3\]", {"k": torch.tensor([1, 2, 3]), "cu_seqlens": OFFSETS}),
        (TypeError, "k must be int32 or int64", {"k": torch.tensor([1.0, 2.0]), "cu_seqlens": OFFSETS}),
        (ValueError, "span 1 covers tokens -1 to 3, but tokens start at 0", {"spans": torch.tensor([[0, 1], [-1, 3]])}),
        (ValueError, "span 1 covers tokens 2 to 4, not in one document", {"cu_seqlens": torch.tensor([0, 3, 5])}),
        (ValueError, "span 1 covers tokens 2 to 4, not in one document", {"cu_seqlens": torch.tensor([0, 2, 4])}),
        (ValueError, "span 0 covers tokens 0 to 1, not in one document", {"cu_seqlens": torch.tensor([0])}),
        (ValueError, "cu_seqlens must start with 0", {"cu_seqlens": torch.tensor([1, 5])}),
        (ValueError, "k is None, and so are k_sentence and k_start", {"k": None}),
        (ValueError, "cu_sentences and k_sentence come together", {"k_sentence": 1}),
        (ValueError, "k_sentence must be at least 0, got -1", {"cu_sentences": OFFSETS, "k_sentence": -1}),
        (ValueError, "span 1 .* not in one sentence", {"cu_sentences": torch.tensor([0, 3, 5]), "k_sentence": 1}),
        (ValueError, "k_start must be at least 0, got -1", {"k_start": -1}),
        (ValueError, "has no backend 'triton'; it has cpu, eager", {"backend": "triton"}),
    ],
)
def test_bad_arguments(backend: str, error: type[Exception], text: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        prune_spans(**{"spans": SPANS, "scores": SCORES, "k": 2, "backend": backend, **arguments})
