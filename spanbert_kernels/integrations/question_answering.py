"""The best answers of extractive question answering, as transformers finds them, from a band of the scores.

transformers multiplies every start with every end, `[L, L]`, and zeroes what is no answer; here only spans of up to
`max_answer_len` tokens are looked at. Where the best spans have equal scores, or fewer than asked have any, which ones
transformers returns depends on its sorting: its own function then runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from spanbert_kernels.acceleration.span_layers import Replacement

Array = NDArray[Any]
# What transformers puts in the place of the scores of tokens that are no answer.
_MASKED = -10000.0


def decode_spans(
    start: Array, end: Array, topk: int, max_answer_len: int, undesired_tokens: Array
) -> tuple[Array, Array, Array]:
    """In the place of transformers' function of this name, with the same result, in time and memory of a band.

    Args:
        start, end: probabilities `[L]` or `[1, L]` of a token to begin, and to end, the answer.
        topk: how many spans.
        max_answer_len: tokens that an answer may have.
        undesired_tokens: `[L]` or `[1, L]`, 0 where a token can be in no answer.

    Returns:
        First and last tokens of the spans, best first, and their scores; fewer than `topk` where spans that are no
        answer were among the best.

    Source: `transformers.pipelines.document_question_answering`, until version 4 `pipelines.question_answering`.

    Example:
        >>> import numpy as np
        >>> start, end = np.array([0.1, 0.7, 0.2]), np.array([0.5, 0.1, 0.4])
        >>> starts, ends, scores = decode_spans(start, end, 2, 2, np.ones(3, dtype=int))
        >>> starts.tolist(), ends.tolist(), scores.round(2).tolist()
        ([1, 2], [2, 2], [0.28, 0.08])
    """
    found = _best_in_band(start, end, topk, max_answer_len)
    if found is None:
        from transformers.pipelines import document_question_answering

        original: tuple[Array, Array, Array] = document_question_answering.decode_spans(
            start, end, topk, max_answer_len, undesired_tokens
        )
        return original
    starts, ends, scores = found
    # As transformers has it: of a mask `[1, L]`, token 0 is always among those found.
    possible = undesired_tokens.nonzero()
    wanted = np.isin(starts, possible) & np.isin(ends, possible)
    return starts[wanted], ends[wanted], scores[wanted]


def _best_in_band(start: Array, end: Array, topk: int, width: int) -> tuple[Array, Array, Array] | None:
    """The spans that transformers finds, or None where it takes more than the scores to know which."""
    if start.size != start.shape[-1] or end.shape[-1] != start.size or end.size != start.size:
        return None
    length = start.size
    width = min(width, length)
    if width < 1 or not 1 <= topk < length * width:
        return None
    reach = np.concatenate([end.reshape(length), np.zeros(width - 1, dtype=end.dtype)])
    scores = (start.reshape(length, 1) * sliding_window_view(reach, width)).ravel()  # [L * width]
    if topk == 1:
        places = scores.argmax()[None]
    else:
        places = np.argpartition(-scores, topk)[: topk + 1]
        places = places[np.argsort(-scores[places])]
        if not (np.diff(scores[places]) < 0).all():
            return None
        places = places[:topk]
    best = scores[places]
    if not best[-1] > 0:
        return None
    starts = places // width
    return starts, starts + places % width, best


def select_starts_ends(
    start: Array,
    end: Array,
    p_mask: Array,
    attention_mask: Array | None,
    min_null_score: float = 1000000,
    top_k: int = 1,
    handle_impossible_answer: bool = False,
    max_answer_len: int = 15,
) -> tuple[Array, Array, Array, float]:
    """In the place of transformers' function of this name, with the same result: from logits to the best answers.

    Args:
        start, end: logits `[1, L]`.
        p_mask: `[1, L]`, 1 where a token can be in no answer.
        attention_mask: `[1, L]`, 0 at padding, or None.
        min_null_score: the smallest score of "no answer" so far.
        top_k: how many spans.
        handle_impossible_answer: whether "no answer" is scored.
        max_answer_len: tokens that an answer may have.

    Returns:
        What `decode_spans` does, and the smallest score of "no answer".

    Source: `transformers.pipelines.document_question_answering`, until version 4 `pipelines.question_answering`.

    Example:
        >>> import numpy as np
        >>> logits = np.array([[0.0, 2.0, 1.0]])
        >>> starts, ends, scores, _ = select_starts_ends(logits, logits, np.array([[0, 0, 0]]), None)
        >>> starts.tolist(), ends.tolist(), scores.round(2).tolist()
        ([1], [1], [0.44])
    """
    possible = np.abs(np.array(p_mask) - 1)
    if attention_mask is not None:
        possible = possible & attention_mask
    start, end = (_probabilities(np.where(possible == 0, _MASKED, logits)) for logits in (start, end))
    if handle_impossible_answer:
        min_null_score = min(min_null_score, (start[0, 0] * end[0, 0]).item())
    start[0, 0] = end[0, 0] = 0.0
    return *decode_spans(start, end, top_k, max_answer_len, possible), min_null_score


def _probabilities(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Array = powers / powers.sum()
    return probabilities


def _as_array(logits: Tensor) -> Array:
    array: Array = (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits).numpy()
    return array


def make_answers(pipeline: Any) -> Callable[..., list[dict[str, Any]]]:
    """What stands for `postprocess_extractive_qa` of transformers' pipeline of questions about documents."""

    def answers(
        model_outputs: list[dict[str, Any]],
        top_k: int = 1,
        handle_impossible_answer: bool = False,
        max_answer_len: int = 15,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        least: float = 1000000
        found = []
        for output in model_outputs:
            mask = output.get("attention_mask")
            best = select_starts_ends(
                _as_array(output["start_logits"]),
                _as_array(output["end_logits"]),
                output["p_mask"],
                None if mask is None else mask.numpy(),
                least,
                top_k,
                handle_impossible_answer,
                max_answer_len,
            )
            least = best[3]
            words, word_ids = output["words"], output["word_ids"]
            for start, end, score in zip(*best[:3], strict=True):
                first, last = word_ids[start], word_ids[end]
                if first is not None and last is not None:
                    answer = " ".join(words[first : last + 1])
                    found.append({"score": float(score), "answer": answer, "start": first, "end": last})
        if handle_impossible_answer:
            found.append({"score": least, "answer": "", "start": 0, "end": 0})
        return found

    return answers


REPLACEMENTS = (
    Replacement(
        "transformers.pipelines.document_question_answering.DocumentQuestionAnsweringPipeline",
        "answers from a band of the scores",
        make_answers,
        method="postprocess_extractive_qa",
    ),
)
