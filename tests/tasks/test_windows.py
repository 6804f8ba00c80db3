"""Words and their pieces, by tokenizers of each kind."""

from __future__ import annotations

import pytest
from small_tokenizers import KINDS
from transformers import PreTrainedTokenizerFast

from spanbert_kernels.tasks.windows import ends_of, pieces_of

WORDS = ["Anna's", "Käse", "\x00", "日本", "costs", "3.50", "", "euros", "!"]
TEXTS = [" ".join(WORDS), "Anna costs euros", "3.50 euros cost Anna's Käse"]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_those_of_the_text(kind: str) -> None:
    """In order, none lost; a word has those that it would have behind another word."""
    tokenizer = KINDS[kind](TEXTS)
    pieces = pieces_of(WORDS, tokenizer, 99)
    text = tokenizer(" ".join(WORDS), add_special_tokens=False)["input_ids"]
    unknown = [tokenizer.unk_token_id]
    assert [piece for own in pieces if own != unknown for piece in own] == [p for p in text if p != unknown[0]]
    assert pieces[WORDS.index("")] == unknown
    for word, own in zip(WORDS, pieces, strict=True):
        if own != unknown:
            decoded = "".join(tokenizer.decode(own).split()).replace("##", "")
            assert decoded.casefold() in (word.casefold(), "kase")
    assert pieces_of(["Anna", "costs"], tokenizer, 99)[1] == pieces_of(["3.50", "costs"], tokenizer, 99)[1]
    assert [len(own) for own in pieces_of(WORDS, tokenizer, 1)] == [1] * len(WORDS)
    assert ends_of(tokenizer) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_another_layout_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS["byte pairs"](TEXTS).backend_tokenizer)
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match=r"one behind it are wanted, the tokenizer sets \[\]"):
        ends_of(tokenizer)
