import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.nn import CrossDocumentMixer
from spanbert_kernels.ops import library
from spanbert_kernels.ops.repeats import launches_of

HIDDEN, HEADS = 8, 2
LENGTHS = (3, 0, 2, 4, 1)
CU_SEQLENS = torch.tensor([0, 3, 3, 5, 9, 10], dtype=torch.int32)
CU_CLUSTERS = torch.tensor([0, 3, 4, 5], dtype=torch.int32)  # documents 3 and 4 are alone
MODES = list(itertools.product(("anchors", "tokens"), ("anchors", "tokens"), ("last", "first")))


def trained_mixer(**options: object) -> CrossDocumentMixer:
    torch.manual_seed(0)
    mixer = CrossDocumentMixer(HIDDEN, HEADS, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return mixer


def hidden_states() -> Tensor:
    return torch.randn(int(CU_SEQLENS[-1]), HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def expected(mixer: CrossDocumentMixer, hidden: Tensor) -> Tensor:
    """The sub-layer written out: everything is normalised and projected, and one query after the other attends."""
    mixed = hidden.clone()
    query = mixer.query(mixer.layer_norm(hidden))
    key, value = mixer.key_value(mixer.layer_norm(hidden)).chunk(2, -1)
    spans = [range(int(a), int(b)) for a, b in itertools.pairwise(CU_SEQLENS)]
    pick = {"tokens": list, "anchors": lambda span: [span[-1] if mixer.anchor == "last" else span[0]] if span else []}
    for first, last in itertools.pairwise(CU_CLUSTERS.tolist()):
        for i in range(first, last):
            seen = [t for j in range(first, last) if j != i or mixer.include_self for t in pick[mixer.keys](spans[j])]
            for t in pick[mixer.queries](spans[i]) if seen else []:
                q, k, v = (x.unflatten(-1, (HEADS, -1)) for x in (query[t], key[seen], value[seen]))
                weights = torch.einsum("hd,khd->hk", q, k).div((HIDDEN // HEADS) ** 0.5).softmax(-1)
                attended = torch.einsum("hk,khd->hd", weights, v).flatten()
                mixed[t] = hidden[t] + torch.tanh(mixer.gate) * mixer.output(attended)
    return mixed


@pytest.mark.parametrize(("queries", "keys", "anchor"), MODES)
@pytest.mark.parametrize("include_self", [False, True])
def test_matches_the_definition(queries: str, keys: str, anchor: str, include_self: bool) -> None:
    mixer = trained_mixer(queries=queries, keys=keys, anchor=anchor, include_self=include_self)
    hidden = hidden_states()
    with torch.no_grad():
        torch.testing.assert_close(mixer(hidden, CU_SEQLENS, CU_CLUSTERS), expected(mixer, hidden))


@pytest.mark.parametrize(("queries", "keys", "anchor"), MODES)
def test_fresh_mixer_changes_nothing_and_its_gate_can_be_trained(queries: str, keys: str, anchor: str) -> None:
    mixer = CrossDocumentMixer(HIDDEN, HEADS, queries=queries, keys=keys, anchor=anchor).double()
    hidden = hidden_states()
    mixed = mixer(hidden, CU_SEQLENS, CU_CLUSTERS)
    assert torch.equal(mixed, hidden)
    mixed.square().sum().backward()
    assert mixer.gate.grad.abs().item() > 0


@pytest.mark.parametrize(("queries", "keys", "anchor"), MODES)
def test_only_query_rows_of_clusters_with_company_change(queries: str, keys: str, anchor: str) -> None:
    mixer = trained_mixer(queries=queries, keys=keys, anchor=anchor)
    hidden = hidden_states()
    changed = (mixer(hidden, CU_SEQLENS, CU_CLUSTERS) != hidden).any(1).nonzero().flatten().tolist()
    assert (
        changed
        == {"tokens": [0, 1, 2, 3, 4], "last": [2, 4], "first": [0, 3]}["tokens" if queries == "tokens" else anchor]
    )


@pytest.mark.parametrize(("queries", "keys", "anchor"), MODES)
def test_gradients(queries: str, keys: str, anchor: str) -> None:
    mixer = trained_mixer(queries=queries, keys=keys, anchor=anchor)
    hidden = hidden_states().requires_grad_()

    def run(hidden: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(dict(mixer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(mixer, named, (hidden, CU_SEQLENS, CU_CLUSTERS))

    assert torch.autograd.gradcheck(run, (hidden, *mixer.parameters()))


@pytest.mark.parametrize(("queries", "keys", "anchor"), MODES)
def test_rows_say_where_the_tokens_lie(queries: str, keys: str, anchor: str) -> None:
    mixer = trained_mixer(queries=queries, keys=keys, anchor=anchor)
    hidden = hidden_states()
    rows = torch.randperm(14, generator=torch.Generator().manual_seed(2))[:10]
    scattered = torch.randn(14, HIDDEN, dtype=torch.float64).index_copy(0, rows, hidden)
    mixed = mixer(scattered, CU_SEQLENS, CU_CLUSTERS, rows=rows)
    torch.testing.assert_close(mixed[rows], mixer(hidden, CU_SEQLENS, CU_CLUSTERS))
    others = torch.ones(14, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(mixed[others], scattered[others])


@pytest.mark.parametrize(("queries", "keys", "anchor"), MODES)
def test_empty_documents_take_nothing_from_the_row_they_borrow(queries: str, keys: str, anchor: str) -> None:
    mixer = trained_mixer(queries=queries, keys=keys, anchor=anchor)
    cu_seqlens, cu_clusters = torch.tensor([0, 0, 2, 4, 4, 5]), torch.tensor([0, 5])
    padded = torch.cat((torch.full((1, HIDDEN), torch.nan, dtype=torch.float64), hidden_states()[:5]))
    mixed = mixer(padded, cu_seqlens, cu_clusters, rows=torch.arange(1, 6))
    assert mixed[1:].isfinite().all()
    mixed[1:].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


@pytest.mark.parametrize(("queries", "keys", "anchor"), MODES)
@pytest.mark.parametrize("documents", [0, 2])
def test_no_tokens(queries: str, keys: str, anchor: str, documents: int) -> None:
    mixer = trained_mixer(queries=queries, keys=keys, anchor=anchor)
    hidden = torch.zeros(0, HIDDEN, dtype=torch.float64, requires_grad=True)
    mixed = mixer(hidden, torch.zeros(documents + 1, dtype=torch.int32), torch.tensor([0, documents]))
    assert mixed.shape == (0, HIDDEN)
    padding = torch.randn(3, HIDDEN, dtype=torch.float64)
    rows = torch.zeros(0, dtype=torch.int64)
    mixed = mixer(padding, torch.zeros(documents + 1, dtype=torch.int32), torch.tensor([0, documents]), rows=rows)
    assert torch.equal(mixed, padding)


def test_input_is_not_written_to_and_links_cut_documents_off() -> None:
    mixer = trained_mixer()
    hidden = hidden_states()
    before = hidden.clone()
    links = (torch.tensor([0, 1, 1, 1, 1, 1]), torch.tensor([2]))  # document 0 sees document 2, nobody else anything
    mixed = mixer(hidden, CU_SEQLENS, CU_CLUSTERS, links)
    assert torch.equal(hidden, before)
    assert (mixed != hidden).any(1).nonzero().flatten().tolist() == [2]


def test_weights_say_which_document_decided() -> None:
    mixer = trained_mixer(queries="tokens", keys="tokens")
    mixed, weights = mixer(hidden_states(), CU_SEQLENS, CU_CLUSTERS, return_weights=True)
    assert torch.equal(mixed, mixer(hidden_states(), CU_SEQLENS, CU_CLUSTERS))
    assert weights.shape == (10, HEADS, 3)
    assert weights.dtype == torch.float32
    assert (weights[:5].sum(-1) - 1).abs().max() < 1e-5
    assert weights[5:].abs().max() == 0


def test_anchors_alone_are_projected() -> None:
    mixer = trained_mixer()
    rows = []
    mixer.key_value.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    mixer(hidden_states(), CU_SEQLENS, CU_CLUSTERS)
    assert rows == [len(LENGTHS)]


def test_dropout_only_in_training() -> None:
    mixer = trained_mixer(queries="tokens", keys="tokens", attention_dropout=0.5, dropout=0.5)
    hidden = hidden_states()
    torch.manual_seed(0)
    first, second = (mixer(hidden, CU_SEQLENS, CU_CLUSTERS) for _ in range(2))
    assert not torch.equal(first, second)
    mixer.eval()
    assert torch.equal(mixer(hidden, CU_SEQLENS, CU_CLUSTERS), mixer(hidden, CU_SEQLENS, CU_CLUSTERS))


def test_attention_goes_through_the_operation() -> None:
    with ops.backends.record() as calls:
        trained_mixer()(hidden_states(), CU_SEQLENS, CU_CLUSTERS)
    assert [operation for operation, _ in calls] == ["cross_document_attention"]


@pytest.mark.parametrize("anchor", ["last", "first"])
def test_in_triton_anchors_are_three_launches_beside_the_products(anchor: str) -> None:
    if not library.interpreted():
        pytest.skip("Triton's interpreter is not switched on")
    mixer = trained_mixer(anchor=anchor).float()
    hidden = hidden_states().float()
    rows = torch.tensor([9, 2, 11, 0, 13, 4, 7, 1, 12, 5])
    scattered = torch.full((14, HIDDEN), torch.nan).index_copy(0, rows, hidden)
    arguments = (CU_SEQLENS, CU_CLUSTERS)
    with torch.no_grad():
        expected, weights = mixer(hidden, *arguments, return_weights=True)
        with ops.backends.use("triton"):
            (mixed, found), launched = launches_of(lambda: mixer(hidden, *arguments, return_weights=True))
            version = scattered._version
            assert mixer(scattered, *arguments, rows=rows, inplace=True) is scattered
    assert len(launched) == 4  # one of them of the weights
    assert scattered._version > version
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(found, weights)
    torch.testing.assert_close(scattered[rows], expected)
    assert torch.equal((mixed != hidden).any(1), (expected != hidden).any(1))
    assert torch.equal((scattered[rows] != hidden).any(1), (expected != hidden).any(1))


@pytest.mark.parametrize("why", ["a gradient", "a hook", "dropout"])
def test_in_triton_what_is_watched_goes_through_its_modules(why: str) -> None:
    if not library.interpreted():
        pytest.skip("Triton's interpreter is not switched on")
    mixer = trained_mixer(dropout=0.5 if why == "dropout" else 0.0).float()
    seen = []
    if why == "a hook":
        mixer.layer_norm.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with torch.set_grad_enabled(why == "a gradient"), ops.backends.use("triton"):
        mixed, launched = launches_of(lambda: mixer(hidden_states().float(), CU_SEQLENS, CU_CLUSTERS))
    assert len(launched) == 1
    assert mixed.requires_grad == (why == "a gradient")
    assert seen == [len(LENGTHS)] * (why == "a hook")


@pytest.mark.slow
@pytest.mark.filterwarnings("error:.*lru_cache")
def test_in_triton_a_compiled_sublayer_is_one_graph() -> None:
    if not library.interpreted():
        pytest.skip("Triton's interpreter is not switched on")
    mixer, hidden = trained_mixer().float(), hidden_states().float()
    with torch.no_grad(), ops.backends.use("triton"):
        compiled = torch.compile(mixer, backend="eager", fullgraph=True)(hidden, CU_SEQLENS, CU_CLUSTERS)
        torch.testing.assert_close(compiled, mixer(hidden, CU_SEQLENS, CU_CLUSTERS))


def test_in_triton_kernels_of_the_sublayer_take_rows_of_several_chunks_and_small_gates() -> None:
    if not library.interpreted():
        pytest.skip("Triton's interpreter is not switched on")
    from spanbert_kernels.ops.cross_document_attention.triton_sublayer import add_update, normalized_anchors

    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, 1030, generator=generator) for shape in ((9,), (), ()))
    offsets = torch.tensor([0, 2, 2, 5, 9, 9, 40])  # the last one's end is nobody's: nothing beyond the rows is read
    places, found = normalized_anchors(hidden, offsets[:6], "last", None, weight, bias, 1e-5)
    assert places.tolist() == [1, -1, 4, 8, -1]
    rows = torch.where((places < 0)[:, None], 0.0, hidden[places])
    torch.testing.assert_close(found, F.layer_norm(rows, (1030,), weight, bias, 1e-5))
    assert normalized_anchors(hidden, offsets, "last", None, weight, bias, 1e-5)[0].tolist() == [1, -1, 4, 8, -1, -1]
    nowhere = normalized_anchors(hidden, torch.arange(5), "last", torch.tensor([3, 9, -2]), weight, bias, 1e-5)[0]
    assert nowhere.tolist() == [3, -1, -1, -1]
    for gate in (0.0, -1e-5, 0.09, -0.11, 30.0):
        mixed = torch.zeros_like(hidden)
        add_update(mixed, places, found, torch.tensor([gate]))
        share = torch.tensor([gate], dtype=torch.float64).tanh()
        real = places[places >= 0]
        torch.testing.assert_close(mixed[real].double(), share * found[places >= 0], rtol=1e-6, atol=0)
        assert not mixed[[0, 2, 3, 5, 6, 7]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_residual_stream(dtype: torch.dtype) -> None:
    mixer = trained_mixer().float()
    hidden = hidden_states().float()
    with torch.autocast("cpu", dtype=dtype):
        mixed = mixer(hidden, CU_SEQLENS, CU_CLUSTERS)
    assert mixed.dtype == torch.float32
    untouched = [0, 1, 3, *range(5, 10)]
    assert torch.equal(mixed[untouched], hidden[untouched])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": "sentences"}, "queries must be one of 'anchors', 'tokens', got 'sentences'"),
        ({"keys": None}, "keys must be one of 'anchors', 'tokens', got None"),
        ({"normalize": "softmax"}, "normalize must be .*'softmax'"),
        ({"anchor": "middle"}, "anchor must be .*'middle'"),
        ({"num_heads": 3}, "got 8 and 3"),
    ],
)
def test_unknown_choices_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossDocumentMixer(**{"hidden_size": HIDDEN, "num_heads": HEADS, **options})  # type: ignore[arg-type]


def test_input_that_does_not_fit_is_named() -> None:
    mixer = trained_mixer()
    with pytest.raises(ValueError, match=r"\[T, 8\], got \[10, 4\]"):
        mixer(torch.randn(10, 4), CU_SEQLENS, CU_CLUSTERS)
    with pytest.raises(ValueError, match="tokens, 12, but ends with 10"):
        mixer(torch.randn(12, HIDDEN, dtype=torch.float64), CU_SEQLENS, CU_CLUSTERS)
