"""Answers from a band of the scores: transformers' own functions, to the bit, and its pipeline of documents."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, DocumentQuestionAnsweringPipeline
from transformers.pipelines import document_question_answering as theirs

import spanbert_kernels as sk
from spanbert_kernels.integrations import decode_spans, question_answering, select_starts_ends


def probabilities(generator: np.random.Generator, length: int, dtype: Any, levels: int | None) -> np.ndarray:
    drawn = generator.random((1, length)) if levels is None else generator.integers(0, levels, (1, length)) / levels
    return drawn.astype(dtype)


def agree(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [None, 3, 1], ids=["distinct", "ties", "zeros"])
def test_the_same_spans_to_the_bit(dtype: Any, levels: int | None) -> None:
    generator = np.random.default_rng(0)
    for length in (1, 2, 7, 40):
        for topk in (1, 3, 30):
            for longest in (0, 1, 4, 60):
                start, end = (probabilities(generator, length, dtype, levels) for _ in range(2))
                allowed = (generator.random((1, length)) < 0.7).astype(int)
                agree(
                    decode_spans(start, end, topk, longest, allowed),
                    theirs.decode_spans(start, end, topk, longest, allowed),
                )
                agree(
                    decode_spans(start[0], end[0], topk, longest, allowed[0]),
                    theirs.decode_spans(start[0], end[0], topk, longest, allowed[0]),
                )


def test_scores_below_those_outside_the_band() -> None:
    """Transformers zeroes what is no answer, and finds it where all answers have less."""
    start, end = (probabilities(np.random.default_rng(seed), 9, np.float32, None) for seed in (0, 1))
    arguments = (-start, end, 1, 3, np.ones((1, 9), int))
    agree(decode_spans(*arguments), theirs.decode_spans(*arguments))


def test_the_band_is_what_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no two scores are equal, nothing is left to transformers."""
    monkeypatch.setattr(theirs, "decode_spans", None)
    start, end = (probabilities(np.random.default_rng(seed), 40, np.float32, None) for seed in (0, 1))
    for topk in (1, 5):
        assert len(decode_spans(start, end, topk, 6, np.ones((1, 40), int))[0]) == topk


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_the_same_answers_from_logits(mask: bool, nan: bool) -> None:
    generator = np.random.default_rng(0)
    start, end = (generator.standard_normal((1, 30)).astype(np.float32) * 3 for _ in range(2))
    if nan:
        start[0, 20] = np.nan
    p_mask = (np.arange(30) < 8)[None].astype(int)
    attention = (np.arange(30) < 25)[None].astype(int) if mask else None
    for top_k in (1, 4):
        for impossible in (False, True):
            arguments = (p_mask, attention, 0.5, top_k, impossible, 5)
            agree(
                select_starts_ends(start.copy(), end.copy(), *arguments),
                theirs.select_starts_ends(start.copy(), end.copy(), *arguments),
            )


def outputs(dtype: torch.dtype) -> list[dict[str, Any]]:
    """What the pipeline's model gives for two windows of a document."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "start_logits": torch.randn(1, 20, generator=generator).to(dtype) * 3,
            "end_logits": torch.randn(1, 20, generator=generator).to(dtype) * 3,
            "p_mask": [[1] * 6 + [0] * 14],
            "attention_mask": torch.tensor([[1] * 18 + [0] * 2]) if window else None,
            "word_ids": [None] * 6 + [place // 2 for place in range(13)] + [None],
            "words": [f"word{index}" for index in range(7)],
        }
        for window in range(2)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_pipeline_of_documents(dtype: torch.dtype) -> None:
    pipe = DocumentQuestionAnsweringPipeline.__new__(DocumentQuestionAnsweringPipeline)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    pipe.model, pipe.model_type = BertModel(config).eval(), SimpleNamespace()
    for options in ({}, {"top_k": 5, "handle_impossible_answer": True}, {"top_k": 2, "max_answer_len": 3}):
        expected = pipe.postprocess(outputs(dtype), **options)
        report = sk.accelerate(pipe)
        assert pipe.postprocess(outputs(dtype), **options) == expected
        assert expected
        assert report.span_layers[0].calls == {"fused": 1}
        sk.restore(pipe)


def test_the_functions_are_transformers_own_by_name() -> None:
    for function in (decode_spans, select_starts_ends):
        assert getattr(theirs, function.__name__).__code__.co_varnames[:4] == function.__code__.co_varnames[:4]
    assert question_answering.REPLACEMENTS[0].method == "postprocess_extractive_qa"
