"""The three stages: each checked against a definition of its own, and failing where the accelerated way is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spanbert_kernels import SpanBERTConfig, SpanBERTModel, ops
from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.acceleration.packed import Weights
from spanbert_kernels.cli import models
from spanbert_kernels.cli.encoding import EncodedDocument, Selection
from spanbert_kernels.cli.measuring import Effort
from spanbert_kernels.cli.stages import cross_document, spans
from spanbert_kernels.cli.stages.cross_document import attend_padded, compare_cross_document
from spanbert_kernels.cli.stages.document_weights import weights_of_documents
from spanbert_kernels.cli.stages.encoder import compare_encoders, encode, pad_batches, warm_up
from spanbert_kernels.cli.stages.spans import compare_span_pooling, group_windows, pool_padded
from spanbert_kernels.data.documents import Document
from spanbert_kernels.ops.encoder_stack import encoder_stack_refusal

ONCE = Effort(repeats=1, seconds=0.0)
LENGTHS = [9, 3, 12, 7, 1]
needs_int8 = pytest.mark.skipif(encoder_stack_refusal("int8") is not None, reason=str(encoder_stack_refusal("int8")))


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoders(dtype: torch.dtype = torch.float32, weights: Weights | None = None) -> models.Encoders:
    torch.manual_seed(0)
    config = SpanBERTConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        initializer_range=0.2,
    )
    model = SpanBERTModel(config, add_pooling_layer=False).to(dtype).eval()
    return models.prepare(model, "random weights", warm_up(pad_batches(windows(), 2, pad=0)), weights)


def windows(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 50, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoders_agree_and_hidden_is_packed_in_input_order(dtype: torch.dtype) -> None:
    both = encoders(dtype)
    batches = pad_batches(windows(), 2, pad=0)
    result, hidden = compare_encoders(both, batches, ONCE)
    assert result.agreement.holds
    assert hidden.shape == (sum(LENGTHS), 32)
    assert result.count == sum(LENGTHS)
    compiled = ops.backends.refusal("cpu", "cpu", dtype) is None
    assert (("encoder_stack", "cpu") if compiled else ("document_attention", "eager")) in result.backends
    assert result.paths == ["packed-inference (5 calls)"]  # one to repack, one to warm up, three batches
    alone = torch.cat(
        [encode(both.baseline, (torch.tensor([ids]), torch.ones(1, len(ids)).long()))[0] for ids in windows()]
    )
    torch.testing.assert_close(hidden, alone, rtol=0.0, atol=1e-5 if dtype == torch.float32 else 0.2)


def test_the_baseline_is_transformers_own_model_on_the_same_weights() -> None:
    both = encoders()
    assert type(both.baseline).__module__.startswith("transformers.")
    assert both.attention == "SDPA"
    weights = dict(both.accelerated.named_parameters())
    for name, parameter in both.baseline.named_parameters():
        assert parameter.data_ptr() == weights[name].data_ptr()


def test_padded_batches_are_what_a_tokenizer_gives() -> None:
    batches = pad_batches(windows(), 2, pad=3)
    assert [tuple(ids.shape) for ids, _ in batches] == [(2, 9), (2, 12), (1, 1)]
    assert all(ids.dtype == mask.dtype == torch.int64 for ids, mask in batches)
    for (ids, mask), lengths in zip(batches, ([9, 3], [12, 7], [1]), strict=True):
        assert mask.sum(1).tolist() == lengths
        assert torch.equal(ids == 3, mask == 0)


def test_an_encoder_that_is_wrong_in_one_token_fails() -> None:
    both = encoders()
    right = both.accelerated.forward

    def wrong(**inputs: Any) -> Any:
        output = right(**inputs)
        if inputs["input_ids"].shape[1] == 12:
            output.last_hidden_state[1, 6, 5] += 1e-3
        return output

    both.accelerated.forward = wrong
    result, _ = compare_encoders(both, pad_batches(windows(), 2, pad=0), ONCE)
    assert not result.agreement.holds
    assert result.agreement.where.startswith("a window of 7 tokens")
    assert result.agreement.largest_difference == pytest.approx(1e-3, rel=0.05)


@needs_int8
def test_int8_is_judged_by_what_defines_it_and_says_which_predictions_it_changed() -> None:
    both = encoders(weights="int8")
    batches = pad_batches(windows(), 2, pad=0)
    head = nn.Linear(32, 50)
    result, hidden = compare_encoders(both, batches, ONCE, head)
    assert result.agreement.holds
    assert 1e-3 < result.relative_error < 0.05
    assert result.agreement.allowed < 4 * result.agreement.accelerated_error
    exact = torch.cat([encode(both.baseline, batch)[batch[1].bool()] for batch in batches])
    changed = int((head(exact).argmax(-1) != head(hidden).argmax(-1)).sum())
    assert result.changed_predictions == changed
    assert both.report.int8_error == pytest.approx(result.relative_error, rel=0.9)

    right = both.accelerated.forward

    def wrong(**inputs: Any) -> Any:
        output = right(**inputs)
        if ops.backends.asked() is None:
            output.last_hidden_state *= 1.05
        return output

    both.accelerated.forward = wrong
    result, _ = compare_encoders(both, batches, ONCE, head)
    assert not result.agreement.holds


def test_without_a_head_there_are_no_predictions_to_compare() -> None:
    result, _ = compare_encoders(encoders(), pad_batches(windows(), 2, pad=0), ONCE)
    assert result.changed_predictions is None


def test_the_path_taken_is_named_where_acceleration_steps_aside() -> None:
    both = encoders()
    both.accelerated.encoder.layer[0].register_forward_hook(lambda *_: None)
    with pytest.warns(AccelerationWarning, match="hook"):
        result, _ = compare_encoders(both, pad_batches(windows(), 2, pad=0), ONCE)
    assert any(path.startswith("original: ") for path in result.paths)


@pytest.mark.parametrize("width", [1, 4, 50])
@pytest.mark.parametrize("most_bytes", [1, 5000, 2**31])
def test_the_eager_way_is_start_end_and_max(width: int, most_bytes: int) -> None:
    hidden = random(10, 6)
    pairs = torch.tensor([[s, e] for s in range(10) for e in range(s, min(10, s + width))])
    expected = torch.stack([torch.cat([hidden[s], hidden[e], hidden[s : e + 1].amax(0)]) for s, e in pairs.tolist()])
    assert torch.equal(pool_padded(hidden, pairs, min(width, 10), most_bytes), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens_a_call", [1, 16, 512])
def test_span_stage(dtype: torch.dtype, tokens_a_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPAN_TOKENS", tokens_a_call)
    result = compare_span_pooling(random(sum(LENGTHS), 8).to(dtype), LENGTHS, 5, ONCE)
    assert result.agreement.holds
    assert result.agreement.largest_difference == 0
    assert result.count == sum(max(0, length - width) for length in LENGTHS for width in range(5))
    assert result.title == "Spans up to 5 tokens"
    assert {operation for operation, _ in result.backends} == {"span_pool"}
    assert len(result.timing.items) == len(group_windows(LENGTHS))


def test_spans_are_no_wider_than_the_longest_window() -> None:
    result = compare_span_pooling(random(5, 8), [2, 3], 30, ONCE)
    assert (result.title, result.count) == ("Spans up to 3 tokens", 3 + 6)


def test_a_sample_of_spans_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPAN_TOKENS", 1)
    result = compare_span_pooling(random(sum(LENGTHS), 8), LENGTHS, 5, Effort(repeats=None, seconds=0.0))
    assert result.timing.items == (2,)  # the longest window alone
    assert result.count == 12 + 11 + 10 + 9 + 8
    assert result.sampled == "Time allowed 50 of the 117 spans; both ways ran on the same ones."


def test_the_note_says_whether_the_gather_went_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = random(sum(LENGTHS), 8)
    assert "gathers at most < 1 MiB a call" in compare_span_pooling(hidden, LENGTHS, 5, ONCE).notes[-1]
    monkeypatch.setattr(spans, "MOST_GATHERED", 1000)
    blocks = compare_span_pooling(hidden, LENGTHS, 5, ONCE)
    assert "more than is free: it works in blocks" in blocks.notes[-1]
    assert blocks.agreement.holds


def test_a_span_that_is_pooled_wrongly_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    span_pool = ops.span_pool

    def wrong(tokens: Tensor, *args: Any) -> Tensor:
        result = span_pool(tokens, *args).clone()
        result[-1, 3] += 1e-5
        return result

    monkeypatch.setattr(ops, "span_pool", wrong)
    result = compare_span_pooling(random(sum(LENGTHS), 8), LENGTHS, 5, ONCE)
    assert not result.agreement.holds


def selection(lengths: Sequence[int]) -> Selection:
    taken = [
        EncodedDocument(Document(f"d{i}", "text", Path("x")), (tuple(range(length)),))
        for i, length in enumerate(lengths)
    ]
    return Selection(taken, left_out=0, cut=False)


def test_cross_document_stage_groups_documents_by_label() -> None:
    hidden = random(sum(LENGTHS), 8)
    labels = ["a", "b", "a", "a", "c"]
    result = compare_cross_document(hidden, selection(LENGTHS), labels, heads=2, seed=0, effort=ONCE)
    assert result.agreement.holds
    assert result.backends == [("cross_document_attention", "cpu")]
    assert result.notes == ["2 documents alone in a cluster: nothing to see, output 0."]


@pytest.mark.parametrize("queries", ["anchors", "tokens"])
def test_which_document_looked_at_which(queries: str) -> None:
    """In the model's own layers; of a document in several windows, what was seen of these is one."""
    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SpanBERTConfig(
        **shape, cross_document_layers=[0, 1], cross_document_queries=queries, pooler_token="anchor"
    )
    model = SpanBERTModel(config).eval()
    chosen = selection(LENGTHS)
    chosen.documents[2] = replace(chosen.documents[2], windows=((1, 2, 3), (4, 5), (6, 7)))
    found = weights_of_documents(model, chosen, ["a", "b", "a", "a", "c"], padding=0)
    assert found is not None
    (cluster,) = found
    assert (cluster.label, [each.document.name for each in cluster.documents]) == ("a", ["d0", "d2", "d3"])
    weights = torch.tensor(cluster.weights)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert (weights[0, 0], weights[2, 2]) == (0, 0)
    assert weights[0, 1] > weights[0, 2]  # three windows of four
    plain = SpanBERTModel(SpanBERTConfig(**shape))
    assert weights_of_documents(plain, chosen, ["a"] * 5, padding=0) is None


def test_the_eager_attention_between_documents_is_softmax_over_the_others() -> None:
    sizes = [3, 1, 2]
    q, k, v = (random(6, 2, 4, seed=seed) for seed in range(3))
    expected = torch.zeros_like(q)
    for first, last in ((0, 3), (3, 4), (4, 6)):
        for i in range(first, last):
            others = [j for j in range(first, last) if j != i]
            if others:
                weights = torch.einsum("hd,jhd->hj", q[i], k[others]).div(2).softmax(-1)
                expected[i] = torch.einsum("hj,jhd->hd", weights, v[others])
    torch.testing.assert_close(attend_padded(q, k, v, torch.tensor(sizes)), expected)


def test_an_attention_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = ops.cross_document_attention

    def wrong(*args: Any, **options: Any) -> Any:
        result = attention(*args, **options)
        return result if options else result * (1 + 1e-4)

    monkeypatch.setattr(cross_document.ops, "cross_document_attention", wrong)
    result = compare_cross_document(random(sum(LENGTHS), 8), selection(LENGTHS), list("aabba"), 2, 0, ONCE)
    assert not result.agreement.holds
