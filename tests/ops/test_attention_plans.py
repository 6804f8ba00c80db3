"""Plans of attention: what they hold is their own and fits together."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from op_checks import Place, every_backend
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from spanbert_kernels.ops import (
    AttentionPlan,
    attention_plans,
    cross_document_attention,
    document_attention,
    document_attention_qkv,
    plan_attention,
)
from spanbert_kernels.ops.attention import work

everywhere = every_backend("document_attention")


@everywhere
def test_a_plan_does_not_follow_what_is_written_to_its_tensors(backend: str) -> None:
    given = {
        "cu_seqlens": torch.tensor([0, 2, 3, 5]),
        "cu_clusters": torch.tensor([0, 3]),
        "links": (torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 0])),
    }
    q, k, v = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(1)).unbind()
    alone = plan_attention(given["cu_seqlens"])
    linked = plan_attention(**given, queries="tokens", keys="tokens")
    options = {**given, "queries": "tokens", "keys": "tokens", "backend": backend}
    expected = (
        document_attention(q, k, v, given["cu_seqlens"], backend=backend),
        cross_document_attention(q, k, v, **options),
    )
    for tensor in (given["cu_seqlens"], given["cu_clusters"], *given["links"]):
        tensor.zero_()
    assert torch.equal(document_attention(q, k, v, alone, backend=backend), expected[0])
    assert torch.equal(cross_document_attention(q, k, v, linked, backend=backend), expected[1])


def bad(error: type[Exception], text: str, **changes: Any) -> Any:
    return pytest.param(error, text, changes, id=text[:40])


IN_A_CLUSTER = {"cu_clusters": torch.tensor([0, 2]), "include_self": False}


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        bad(ValueError, "keys must be 'tokens' without cu_clusters, got 'banana'", keys="banana"),
        bad(ValueError, 'keys must be "anchors" or "tokens", got \'banana\'', keys="banana", **IN_A_CLUSTER),
        bad(ValueError, "include_self must be True without cu_clusters, got False", include_self=False),
        bad(TypeError, "include_self must be True or False, got int: 1", include_self=1),
        bad(
            ValueError, "links must be None without cu_clusters", links=(torch.tensor([0, 0, 0]), torch.tensor([0])[:0])
        ),
        bad(ValueError, "must end with the number of tokens, 4, but ends with 5", num_tokens=4),
        bad(TypeError, "num_tokens must be an integer, got float: 5.0", num_tokens=5.0),
        bad(ValueError, "max_seqlen is 2, but document 0 has 3 tokens", max_seqlen=2),
        bad(ValueError, "max_seqlen must be at least 0, got -1", max_seqlen=-1),
        bad(ValueError, "max_documents is 3, but the largest cluster has 1", max_documents=3),
        bad(ValueError, "max_documents is 3, but the largest cluster has 2", max_documents=3, **IN_A_CLUSTER),
        bad(ValueError, r"cu_seqlens\[2\] = 2 comes after 3", cu_seqlens=torch.tensor([0, 3, 2]), num_tokens=2),
        bad(ValueError, "the number of documents, 2, but ends with 3", cu_clusters=torch.tensor([0, 3])),
        bad(
            ValueError,
            "document 0 links to document 5, but there are 2",
            links=(torch.tensor([0, 1, 1]), torch.tensor([5])),
            **IN_A_CLUSTER,
        ),
    ],
)
def test_fields_that_do_not_fit(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"cu_seqlens": torch.tensor([0, 3, 5]), "num_tokens": 5, **changes}
    with pytest.raises(error, match=text):
        AttentionPlan(**fields)


def test_a_plan_made_by_hand_need_not_know_how_long_documents_are() -> None:
    q, k, v = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(1)).unbind()
    offsets = torch.tensor([0, 3, 5])
    for backend in ("eager", None):
        found = document_attention(q, k, v, AttentionPlan(cu_seqlens=offsets, num_tokens=5), backend=backend)
        assert torch.equal(found, document_attention(q, k, v, offsets, backend=backend))


@every_backend("document_attention")
@pytest.mark.parametrize("planned", [False, True], ids=["offsets", "plan"])
def test_a_wrong_max_seqlen_that_nobody_can_look_at_changes_no_bit(
    planned: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: kernels for short documents would leave the rest of the first one out."""
    if backend == "eager":
        pytest.skip("an index out of range raises there")
    offsets = torch.tensor([0, 40, 43])
    leaves = [x.requires_grad_() for x in torch.randn(3, 43, 1, 16, generator=torch.Generator().manual_seed(2))]

    def run(**options: Any) -> tuple[Tensor, ...]:
        sight, given = offsets, options
        if planned:
            sight, given = AttentionPlan(cu_seqlens=offsets, num_tokens=43, **options), {}
        output = document_attention(*leaves, sight, **given, backend=backend)
        assert isinstance(output, Tensor)
        return output, *torch.autograd.grad(output.square().sum(), leaves)

    expected = run()
    monkeypatch.setattr(attention_plans, "can_look", lambda offsets: False)
    for found, exact in zip(run(max_seqlen=20), expected, strict=True):
        assert torch.equal(found, exact)


# Lists of a GPU's kernels.

OFFSETS = torch.tensor([0, 3, 3, 73, 137, 337, 401, 401, 402, 531] + [531 + 10 * n for n in range(1, 12)])
CLUSTERS = torch.tensor([0, 2, 2, 9, 20])


def spread(tensor: Tensor) -> Tensor:
    """The tensor, every second number of another."""
    return torch.stack([tensor] * 2, 1)[:, 0]


@pytest.mark.parametrize(
    ("offsets", "clusters", "num_tokens", "anchors"),
    [
        pytest.param(OFFSETS, None, 641, (False, False), id="documents"),
        pytest.param(OFFSETS.int(), CLUSTERS, 641, (False, True), id="clusters"),
        pytest.param(
            torch.stack([OFFSETS] * 2, 1)[:, 0],
            torch.stack([CLUSTERS] * 2, 1).int()[:, 0],
            641,
            (True, False),
            id="views",
        ),
        pytest.param(OFFSETS, CLUSTERS, 0, (True, True), id="anchors"),
        pytest.param(torch.tensor([5, 900, -3, 64, 10**12]), None, 500, (False, False), id="no offsets"),
        pytest.param(torch.tensor([0]), None, 130, (False, False), id="no documents"),
    ],
)
def test_one_kernel_makes_the_lists(
    offsets: Tensor, clusters: Tensor | None, num_tokens: int, anchors: tuple[bool, bool]
) -> None:
    lists = pytest.importorskip("spanbert_kernels.ops.attention.triton_lists", reason="Triton is not installed")
    documents, query_tiles, key_tiles = lists.make_lists(offsets, clusters, num_tokens, *anchors)
    expected = work.bounds_of_documents(offsets, clusters, num_tokens, *anchors)
    tiles = work.tiles_of_documents(expected, num_tokens, *anchors)
    assert torch.equal(documents, expected)
    assert torch.equal(query_tiles, tiles[0])
    assert torch.equal(key_tiles, tiles[1][:0] if anchors[0] == anchors[1] else tiles[1])


class Launches(TorchDispatchMode):
    """Notes the operators that launch a kernel on a GPU; views and empty tensors need none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view and "empty" not in function.name():
            self.names.append(function.name().split("::")[1])
        return function(*args, **(kwargs or {}))


def test_a_call_without_a_plan_launches_one_kernel_more() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    names = ["attention_lists_triton", "document_attention_forward_triton"]
    with FakeTensorMode():
        q = torch.empty(70, 2, 16, device="cuda")
        offsets, clusters = (torch.empty(count, dtype=torch.int32, device="cuda") for count in (5, 3))
        with Launches() as alone:
            document_attention(q, q, q, offsets)
        with Launches() as among_others:
            cross_document_attention(q, q, q, offsets, clusters, "tokens", "tokens")
    assert alone.names == among_others.names == names


# Queries, keys and values in one tensor.


@every_backend("document_attention")
@pytest.mark.parametrize("planned", [False, True], ids=["offsets", "plan"])
def test_one_tensor_for_all_three_gives_the_same_bits(planned: bool, backend: str) -> None:
    offsets = torch.tensor([0, 3, 20, 21])
    sight = plan_attention(offsets) if planned else offsets
    values = torch.randn(21, 3, 2, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    options: dict[str, Any] = {"dropout_p": 0.3, "seed": torch.tensor([7]), "return_lse": True, "backend": backend}
    together = document_attention_qkv(values, sight, **options)
    apart = document_attention(*values.unbind(1), sight, **options)
    for output, alone in zip(together, apart, strict=True):
        assert torch.equal(output, alone)
    [expected] = torch.autograd.grad(apart[0].square().sum(), values)
    with Launches() as backward:
        [found] = torch.autograd.grad(together[0].square().sum(), values)
    assert torch.equal(found, expected)
    if backend == "triton":
        assert "document_attention_qkv_backward_triton" in backward.names
        assert not {"stack", "cat"} & set(backward.names), "one kernel has written it"
    with torch.no_grad():
        assert torch.equal(document_attention_qkv(values, sight, **options)[0], apart[0])


def test_what_is_not_three_in_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"qkv must have shape \[T, 3, heads, head_dim\], got \[5, 2, 2, 4\]"):
        document_attention_qkv(torch.zeros(5, 2, 2, 4), torch.tensor([0, 5]))


@pytest.mark.parametrize("backend", [Place("triton", "interpreter")], indirect=True, ids=str)
@pytest.mark.parametrize(
    "together", [pytest.param(False, id="apart", marks=pytest.mark.slow), pytest.param(True, id="one tensor")]
)
def test_what_dropout_keeps_is_left_for_the_backward_without_changing_a_bit(together: bool, backend: str) -> None:
    offsets = torch.tensor([0, 3, 132])
    values = torch.randn(132, 3, 1, 16, generator=torch.Generator().manual_seed(1)).half().requires_grad_()
    options: dict[str, Any] = {"dropout_p": 0.3, "seed": torch.tensor([7]), "backend": backend}

    def run(plan: AttentionPlan) -> tuple[list[str], list[Tensor]]:
        with Launches() as launches:
            if together:
                output = document_attention_qkv(values, plan, **options)
            else:
                output = document_attention(*values.unbind(1), plan, **options)
            [gradient] = torch.autograd.grad(output.sum(), values)
        return launches.names, [output, gradient]

    names, found = run(plan_attention(offsets))
    others, expected = run(AttentionPlan(cu_seqlens=offsets, num_tokens=132))
    assert all(map(torch.equal, found, expected))
    assert "document_attention_words_forward_triton" in names
    assert "document_attention_words_forward_triton" not in others


@pytest.mark.slow
def test_operators_that_leave_what_dropout_keeps() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    importlib.import_module("spanbert_kernels.ops.document_attention.triton")
    q, lse, words = torch.zeros(133, 1, 16).half(), torch.zeros(1, 133), torch.zeros(3, 1, 133, 4).short()
    made = plan_attention(torch.tensor([0, 3, 133])).work(True)
    call = (*made, 1.0, 0.3, torch.tensor([7]))
    operators = torch.ops.spanbert_kernels
    utilities = ("test_schema", "test_faketensor")
    for operator, tensors in (
        (operators.document_attention_words_forward_triton, (q, q, q)),
        (operators.document_attention_words_backward_triton, (q, q, q, q, lse, words)),
    ):
        torch.library.opcheck(operator, (*tensors, *call), test_utils=utilities)
