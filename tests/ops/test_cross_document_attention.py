"""cross_document_attention: the shared checks over every mode, then who sees whom."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from attention_loops import cross_document_attention_by_loop, cross_score_terms, largest_logit
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import Case, OpChecks, Tensors, every_backend
from places import Place, gpu_blocks
from torch import Tensor

from spanbert_kernels.ops import cross_document_attention

LENGTHS = (2, 0, 3, 1, 2, 1)  # document 1 is empty, document 3 is alone in its cluster
CLUSTERS = (0, 3, 4, 4, 6)  # the third cluster is empty


def cross_inputs(
    size: int,
    *,
    queries: str = "anchors",
    keys: str = "anchors",
    lengths: tuple[int, ...] = LENGTHS,
    clusters: tuple[int, ...] = CLUSTERS,
    seed: int | None = None,
    links: tuple[tuple[int, ...], ...] | None = None,
    heads: int = 2,
    dim: int = 3,
) -> Tensors:
    generator = torch.Generator().manual_seed(size)
    cu_seqlens = torch.tensor([0, *(size * length for length in lengths)]).cumsum(0)
    rows = {"anchors": len(lengths), "tokens": int(cu_seqlens[-1])}

    def randn(side: str) -> Tensor:
        return torch.randn(rows[side], heads, dim, generator=generator, dtype=torch.float64)

    tensors = {"q": 2 * randn(queries), "k": randn(keys), "v": randn(keys)}
    tensors |= {"cu_seqlens": cu_seqlens, "cu_clusters": torch.tensor(clusters)}
    if seed is not None:
        tensors["seed"] = torch.tensor([seed])
    if links is not None:
        tensors["indptr"] = torch.tensor([0, *(len(row) for row in links)]).cumsum(0)
        tensors["indices"] = torch.tensor([j for row in links for j in row], dtype=torch.int64)
    return tensors


def with_links(tensors: Tensors) -> dict[str, Any]:
    rest: dict[str, Any] = {name: t for name, t in tensors.items() if name not in ("indptr", "indices")}
    if "indptr" in tensors:
        rest["links"] = (tensors["indptr"], tensors["indices"])
    return rest


def row(
    name: str,
    *,
    build: dict[str, Any] | None = None,
    compiled: bool = False,
    queries: str = "anchors",
    keys: str = "anchors",
    large: bool = False,
    **options: Any,
) -> Case:
    sides = {"queries": queries, "keys": keys}
    options = {"return_lse": options.get("normalize") != "pairwise", "return_weights": True, **sides, **options}
    inputs = partial(cross_inputs, **sides, **(build or {}))
    call, oracle = partial(cross_document_attention, **options), partial(cross_document_attention_by_loop, **options)

    def terms(tensors: Tensors, _: Tensors, incoming: list[Tensor]) -> dict[str, float]:
        kept = {name: options[name] for name in ("normalize", "include_self", "dropout_p", "scale") if name in options}
        return cross_score_terms(**tensors, **sides, **kept, grad=incoming[0])

    def logits(tensors: Tensors) -> float:
        return largest_logit(tensors["q"], tensors["k"], options.get("scale"))

    name_of = (
        "cross_document_attention_pairwise_{}" if options.get("normalize") == "pairwise" else "document_attention_{}"
    )
    weighed = options["return_weights"] and options.get("normalize") != "pairwise"
    operators = (
        name_of.format("forward"),
        *["cross_document_attention_weights"] * weighed,
        name_of.format("backward"),
    )
    compilers = ("cpu",) if compiled else ()
    return Case(
        name,
        inputs,
        call,
        oracle,
        arguments=with_links,
        terms=terms,
        operators=operators,
        compiled=compilers,
        large=large,
        exponents=("q", "k"),
        logits=logits,
    )


MODES = [
    row(
        f"{queries} x {keys}{', self' if own else ''}, {normalize}",
        queries=queries,
        keys=keys,
        include_self=own,
        normalize=normalize,
    )
    for queries in ("anchors", "tokens")
    for keys in ("anchors", "tokens")
    for own in (False, True)
    for normalize in ("joint", "pairwise")
]
LINKS = ((2, 0), (0, 2), (0,), (3,), (), (4, 5))  # self-links, links to the empty document 1 and from it, no link


TILES = {"lengths": (66, 0, 3, 129), "clusters": (0, 4), "seed": 8}  # documents of two and three tiles
# So many small clusters that a task of the CPU kernels takes all heads; the 2nd document of each sees the last alone.
MANY = {
    "lengths": (1, 2, 0, 3) * 36,
    "clusters": tuple(range(0, 145, 4)),
    "heads": 3,
    "dim": 33,
    "seed": 5,
    "links": tuple((d + 2,) if d % 4 == 1 else (d - d % 4, d - d % 4 + 1, d - d % 4 + 3) for d in range(144)),
}
# One cluster, most of whose documents do not see each other: short ones and longer ones, links to both and from both.
SPARSE = {
    "lengths": (1, 40, 0, 30) * 8,
    "clusters": (0, 32),
    "dim": 19,
    "seed": 4,
    "links": tuple(((d + 4) % 32, (d + 1) % 32) if d % 9 else () for d in range(32)),
}


class TestShared(OpChecks):
    operation = "cross_document_attention"
    emulated = ("anchors x anchors, joint", "links, tokens", "dropout, pairwise")
    cases = (
        *MODES,
        row("links", build={"links": LINKS}),
        row("links, tokens", build={"links": LINKS}, compiled=True, queries="tokens", keys="tokens", include_self=True),
        row("links, pairwise", build={"links": LINKS}, keys="tokens", include_self=True, normalize="pairwise"),
        row("whole vectors", build={"dim": 16}, queries="tokens", keys="tokens"),
        row("dropout", build={"seed": 2**61 + 5}, keys="tokens", dropout_p=0.3),
        row(
            "dropout, pairwise",
            build={"seed": -9, "lengths": (2, 0, 3, 1), "clusters": (0, 3, 4)},
            queries="tokens",
            keys="tokens",
            dropout_p=0.3,
            normalize="pairwise",
        ),
        row("scale, output alone", scale=0.3, return_lse=False, return_weights=False, include_self=True),
        row("tiles", build=TILES, large=True, queries="tokens", keys="tokens", dropout_p=0.2),
        row(
            "tiles, links",
            build={**TILES, "links": ((3, 2), (), (3,), (0, 3))},
            large=True,
            queries="tokens",
            keys="tokens",
            dropout_p=0.2,
        ),
        row(
            "tiles, pairwise",
            build=TILES,
            large=True,
            queries="tokens",
            keys="tokens",
            dropout_p=0.2,
            normalize="pairwise",
        ),
        row("many clusters", build={**MANY, "links": None}, large=True),
        row("many clusters, links", build=MANY, large=True, queries="tokens", keys="tokens", dropout_p=0.2),
        *(
            row(
                f"sparse links, {queries} x {keys}, {normalize}",
                build=SPARSE,
                large=True,
                queries=queries,
                keys=keys,
                dropout_p=0.2,
                normalize=normalize,
            )
            for queries, keys, normalize in (
                ("tokens", "tokens", "joint"),
                ("tokens", "tokens", "pairwise"),
                ("anchors", "tokens", "joint"),
                ("tokens", "anchors", "pairwise"),
            )
        ),
        row("no documents", build={"lengths": (), "clusters": (0,)}, keys="tokens"),
        row("empty documents", build={"lengths": (0, 0, 0), "clusters": (0, 2, 3)}, queries="tokens", keys="tokens"),
    )


def make(**options: Any) -> dict[str, Any]:
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in cross_inputs(1, **options).items()}
    return with_links(tensors)


def outputs_of(arguments: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = cross_document_attention(**arguments, **options, return_lse=True, return_weights=True)
    assert isinstance(found, tuple)
    output, lse, weights = found
    return output, lse, weights


@pytest.mark.parametrize("normalize", ["joint", "pairwise"])
@pytest.mark.parametrize("keys", ["anchors", "tokens"])
def test_document_weights_sum_to_one_or_to_zero(keys: str, normalize: str) -> None:
    found = cross_document_attention(
        **make(keys=keys), keys=keys, normalize=normalize, dropout_p=0.5, return_weights=True
    )
    weights = found[1]
    assert weights.shape == (6, 2, 3)
    assert weights.dtype == torch.float32
    # Documents 1 (empty) and 3 (alone) see nothing.
    torch.testing.assert_close(weights.sum(2), torch.tensor([1.0, 0, 1, 0, 1, 1])[:, None].expand(6, 2))


def test_a_lone_document_gives_zero_and_an_infinite_log_sum_exp() -> None:
    arguments = make()
    leaves = {n: arguments[n].requires_grad_() for n in "qkv"}
    output, lse, weights = outputs_of(arguments)
    assert not output[3].any()
    assert not weights[3].any()
    assert (lse[:, 3] == -torch.inf).all()
    assert not lse.requires_grad
    assert not weights.requires_grad
    for grad in torch.autograd.grad(output.sum(), list(leaves.values())):
        assert not grad[3].any()
        assert grad.isfinite().all()


def test_a_self_link_loses_to_include_self_false() -> None:
    links = ((0, 2), (), (0,), (), (4,), (5,))
    _, _, weights = outputs_of(make(links=links))
    assert weights[0, 0].tolist() == [0, 0, 1]
    assert not weights[4:].any()
    _, _, weights = outputs_of(make(links=links), include_self=True)
    assert (weights[0, 0] > 0).tolist() == [True, False, True]
    assert weights[4, 0].tolist() == [1, 0, 0]


def test_one_key_of_one_document_is_returned_as_it_is() -> None:
    """Documents 4 and 5 see only each other: a softmax over one anchor is 1."""
    arguments = make()
    output = outputs_of(arguments)[0]
    torch.testing.assert_close(output[4:], arguments["v"][[5, 4]])


def test_an_empty_documents_row_reaches_nothing() -> None:
    expected = outputs_of(make(), include_self=True)
    arguments = make()
    for name in "qkv":
        arguments[name][1] = torch.nan
    leaves = [arguments[name].requires_grad_() for name in "qkv"]
    found = outputs_of(arguments, include_self=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert not found[0][1].any()
    for grad in torch.autograd.grad(found[0].sum(), leaves):
        assert grad.isfinite().all()
        assert not grad[1].any()


@every_backend("cross_document_attention")
def test_clusters_do_not_see_each_other(backend: Any) -> None:
    expected = outputs_of(make(), backend=backend)[0]
    arguments = make()
    for name in "qkv":
        arguments[name][4:] = torch.inf
    output = outputs_of(arguments, backend=backend)[0]
    torch.testing.assert_close(output[:4], expected[:4])
    assert not output[4:].isfinite().all()


@pytest.mark.parametrize("dim", [20, pytest.param(140, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", [Place("triton", "interpreter")], indirect=True, ids=str)
def test_anchors_of_many_clusters_in_blocks_of_a_gpu(backend: Any, dim: int) -> None:
    """Blocks have documents of several clusters, and a cluster those of several blocks."""
    arguments = make(lengths=(1, 0, 2, 1) * 10, clusters=(0, 3, 3, 22, 23, 40), heads=1, dim=dim, seed=5)
    empty, poisoned = torch.arange(1, 40, 4), 18
    for name in "qkv":
        arguments[name][empty] = torch.nan
    arguments["v"][poisoned] = torch.inf
    options: dict[str, Any] = {"dropout_p": 0.3, "return_lse": True}
    double = {n: t.double() if t.is_floating_point() else t for n, t in arguments.items()}
    leaves = [[given[name].requires_grad_() for name in "qkv"] for given in (double, arguments)]
    expected = cross_document_attention(**double, **options, backend="eager")
    incoming = torch.randn(arguments["q"].shape, generator=torch.Generator().manual_seed(1))
    of_expected = torch.autograd.grad(expected[0], leaves[0], incoming.double())
    with gpu_blocks():
        found = cross_document_attention(**arguments, **options, backend=backend)
        of_found = torch.autograd.grad(found[0], leaves[1], incoming)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs.float(), equal_nan=True)
    alone = [poisoned, *range(3), *range(22, 40)]
    finite = found[0].isfinite().all(2).flatten()
    assert finite[alone].all()
    assert not finite.all()
    for mine, theirs in zip(of_found, of_expected, strict=True):
        real = [*range(3), *range(22, 40)]
        assert mine[real].isfinite().all()
        torch.testing.assert_close(mine[real], theirs[real].float())


def test_pairwise_gives_anchors_no_gradient_for_queries_and_keys() -> None:
    arguments = make()
    q = arguments["q"].requires_grad_()
    output = cross_document_attention(**arguments, normalize="pairwise")
    assert isinstance(output, Tensor)
    assert not torch.autograd.grad(output.sum(), q)[0].any()


@pytest.mark.parametrize("normalize", ["joint", "pairwise"])
def test_documents_with_scores_far_apart(normalize: str) -> None:
    """A document whose scores are 1000 lower has its own softmax; in a joint one it has no weight."""
    q, v = torch.ones(3, 1, 1), torch.tensor([0.0, 2.0, 8.0]).view(3, 1, 1)
    k = torch.tensor([0.0, 1000.0, 0.0]).view(3, 1, 1)
    offsets = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 3])
    output = cross_document_attention(q, k, v, *offsets, normalize=normalize, scale=1.0)
    assert isinstance(output, Tensor)
    assert output.flatten().tolist() == ([2.0, 4.0, 2.0] if normalize == "joint" else [5.0, 4.0, 1.0])


def test_the_seed_is_drawn_from_torch() -> None:
    arguments = make(queries="tokens", keys="tokens")

    def call() -> Tensor:
        output = cross_document_attention(**arguments, queries="tokens", keys="tokens", dropout_p=0.5)
        assert isinstance(output, Tensor)
        return output

    torch.manual_seed(1)
    first, second = call(), call()
    torch.manual_seed(1)
    assert torch.equal(call(), first)
    assert not torch.equal(first, second)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.data())
def test_any_documents_clusters_and_links(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 3), max_size=6))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(lengths)), max_size=3)))
    clusters = (0, *cuts, len(lengths)) if lengths or cuts else (0,)
    bounds = [(a, b) for a, b in itertools.pairwise(clusters) for _ in range(a, b)]
    links = tuple(tuple(data.draw(st.sets(st.integers(a, b - 1)))) for a, b in bounds)
    sides = {
        "queries": data.draw(st.sampled_from(["anchors", "tokens"])),
        "keys": data.draw(st.sampled_from(["anchors", "tokens"])),
    }
    options = {
        **sides,
        "include_self": data.draw(st.booleans()),
        "normalize": data.draw(st.sampled_from(["joint", "pairwise"])),
    }
    tensors = cross_inputs(1, **sides, lengths=tuple(lengths), clusters=clusters, links=links)
    found = cross_document_attention(**with_links(tensors), **options, return_weights=True)
    expected = cross_document_attention_by_loop(**tensors, **options)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-6, atol=1e-6)


def test_int32_and_int64_give_the_same() -> None:
    arguments = make(links=LINKS)
    narrow = {n: t.int() if isinstance(t, Tensor) and t.dtype == torch.int64 else t for n, t in arguments.items()}
    narrow["links"] = tuple(t.int() for t in arguments["links"])
    for a, b in zip(outputs_of(arguments), outputs_of(narrow), strict=True):
        assert torch.equal(a, b)


def bad(error: type[Exception], text: str, **changes: Any) -> Any:
    return pytest.param(error, text, changes, id=text[:40])


def csr(*rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    tensors = cross_inputs(1, links=rows)
    return tensors["indptr"], tensors["indices"]


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        bad(ValueError, 'queries must be "anchors" or "tokens", got \'rows\'', queries="rows"),
        bad(TypeError, 'keys must be "anchors" or "tokens", got NoneType', keys=None),
        bad(ValueError, 'normalize must be "joint" or "pairwise", got \'sum\'', normalize="sum"),
        bad(ValueError, "return_lse needs normalize=\"joint\", got 'pairwise'", normalize="pairwise", return_lse=True),
        bad(ValueError, r"q must have shape \[rows, heads, head_dim\], got \[6, 6\]", q=torch.zeros(6, 6)),
        bad(ValueError, r"q must have one row per document \(6\), got 5", q=torch.zeros(5, 2, 3)),
        bad(ValueError, r"k must have one row per token \(9\), got 6", keys="tokens"),
        bad(TypeError, "v is torch.float16, but q is torch.float32", v=torch.zeros(6, 2, 3).half()),
        bad(TypeError, "k is on meta, but q is on cpu", k=torch.zeros(6, 2, 3, device="meta")),
        bad(ValueError, r"cu_seqlens\[2\] = 1 comes after 2", cu_seqlens=torch.tensor([0, 2, 1, 5, 6, 8, 9])),
        bad(ValueError, r"cu_clusters\[2\] = 2 comes after 3", cu_clusters=torch.tensor([0, 3, 2, 6])),
        bad(
            ValueError,
            "cu_clusters must end with the number of documents, 6, but ends with 5",
            cu_clusters=torch.tensor([0, 5]),
        ),
        bad(ValueError, "cu_clusters must start with 0, got 1", cu_clusters=torch.tensor([1, 6])),
        bad(
            TypeError,
            "cu_clusters is on meta, but cu_seqlens is on cpu",
            cu_clusters=torch.zeros(2, device="meta").long(),
        ),
        bad(ValueError, "document 0 links to document 6, but there are 6", links=csr((6,), (), (), (), (), ())),
        bad(ValueError, "document 1 links to document -1", links=csr((), (-1,), (), (), (), ())),
        bad(
            ValueError, "document 2 of cluster 0 links to document 3 of cluster 1", links=csr((), (), (3,), (), (), ())
        ),
        bad(ValueError, r"one offset per document and one more \(7\), got 6", links=csr((), (), (), (), ())),
        bad(
            ValueError,
            "must end with the number of links, 0, but ends with 1",
            links=(csr((0,), (), (), (), (), ())[0], torch.zeros(0).long()),
        ),
        bad(
            TypeError,
            r"links\[1\] must be int32 or int64, got torch.float32",
            links=(torch.zeros(7).long(), torch.zeros(0)),
        ),
        bad(
            TypeError,
            r"links\[0\] is on meta, but cu_seqlens is on cpu",
            links=(torch.zeros(7, device="meta").long(), torch.zeros(0).long()),
        ),
        bad(ValueError, r"dropout_p must be in \[0, 1\), got 2", dropout_p=2),
        bad(ValueError, "cross_document_attention has no backend 'gpu'; it has ", backend="gpu"),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        cross_document_attention(**{**make(), **changes})
