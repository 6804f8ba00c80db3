"""Token ids: the trained vocabulary, windows of long documents, and what fits the budget."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import children
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbert_kernels.cli import encoding
from spanbert_kernels.cli.collecting import default_documents
from spanbert_kernels.cli.encoding import select_documents, split_windows, train_on
from spanbert_kernels.cli.models import check_special_tokens
from spanbert_kernels.data.documents import Document


class OneIdAWord:
    """As much of a tokenizer as is needed."""

    cls_token_id, sep_token_id = 101, 102

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


PIECES = OneIdAWord()


def documents(*lengths: int) -> list[Document]:
    return [Document(f"d{i}", " ".join(["word"] * n), Path(f"d{i}.txt")) for i, n in enumerate(lengths)]


@given(count=st.integers(1, 300), positions=st.integers(3, 40))
def test_windows_cover_a_document_once_in_order(count: int, positions: int) -> None:
    ids = list(range(1000, 1000 + count))
    windows = split_windows(ids, PIECES, positions)
    assert [i for window in windows for i in window[1:-1]] == ids
    assert all((window[0], window[-1]) == (101, 102) for window in windows)
    lengths = [len(window) for window in windows]
    assert max(lengths) <= positions
    assert max(lengths) - min(lengths) <= 1
    assert len(windows) == -(-count // (positions - 2))


def test_documents_are_taken_while_they_fit() -> None:
    """The third does not fit any more; the fourth, which is shorter, does."""
    selection = select_documents(documents(5, 6, 7, 2), PIECES, positions=100, budget=20)
    assert [encoded.document.name for encoded in selection.documents] == ["d0", "d1", "d3"]
    assert [encoded.tokens for encoded in selection.documents] == [7, 8, 4]
    assert (selection.tokens, selection.left_out, selection.cut, selection.split) == (19, 1, False, [])


def test_special_tokens_of_every_window_count() -> None:
    selection = select_documents(documents(18), PIECES, positions=8, budget=24)
    assert (selection.tokens, len(selection.windows), selection.cut) == (24, 3, False)
    assert [encoded.document.name for encoded in selection.split] == ["d0"]
    assert select_documents(documents(18), PIECES, positions=8, budget=23).cut


@pytest.mark.parametrize("budget", range(16, 33))
def test_a_first_document_beyond_the_budget_is_cut_to_it(budget: int) -> None:
    selection = select_documents(documents(500, 400), PIECES, positions=12, budget=budget)
    assert selection.cut
    assert selection.left_out == 1
    # A window needs a token beside [CLS] and [SEP]; what is too short for one stays free.
    assert budget - 2 <= selection.tokens <= budget
    assert all(3 <= len(window) <= 12 and window[-1] == 102 for window in selection.windows)


def test_documents_without_a_token_are_left_out() -> None:
    selection = select_documents(documents(0, 3, 0), PIECES, positions=8, budget=100)
    assert [encoded.document.name for encoded in selection.documents] == ["d1"]
    assert (selection.without_tokens, selection.left_out) == (2, 0)
    assert select_documents(documents(0), PIECES, positions=8, budget=100).documents == []


def test_many_documents_fill_the_budget_and_the_rest_is_counted() -> None:
    selection = select_documents(documents(*[6] * 500), PIECES, positions=100, budget=1000)
    assert (len(selection.documents), selection.tokens, selection.left_out) == (125, 1000, 375)


def test_the_trained_vocabulary_is_cased_and_covers_its_documents() -> None:
    collection = default_documents().documents
    tokenizer = train_on(collection)
    upper, lower = tokenizer("The the", add_special_tokens=False)["input_ids"]
    assert upper != lower
    (unknown,) = tokenizer("\u4e00", add_special_tokens=False)["input_ids"]
    assert unknown == tokenizer.unk_token_id
    encoded = tokenizer([document.text for document in collection])["input_ids"]
    assert all(unknown not in row for row in encoded)
    assert max(map(max, encoded)) < len(tokenizer)
    assert len({tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, unknown}) == 4


def test_a_vocabulary_is_made_of_the_first_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "TRAINING_CHARACTERS", 12)
    letters = [entry for entry in train_on(documents(2, 2)).get_vocab() if len(entry) == 1]
    assert sorted(letters) == sorted("word")
    late = [*documents(2), Document("late", "zzzz", Path("late"))]
    assert "z" in train_on(late).get_vocab()
    monkeypatch.setattr(encoding, "TRAINING_CHARACTERS", 9)
    assert "z" not in train_on(late).get_vocab()


def test_the_trained_vocabulary_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib\n"
        "from spanbert_kernels.cli.collecting import default_documents\n"
        "from spanbert_kernels.cli.encoding import train_on\n"
        "documents = default_documents().documents\n"
        "ids = train_on(documents)([document.text for document in documents])['input_ids']\n"
        "print(hashlib.sha256(repr(ids).encode()).hexdigest())\n"
    )
    elsewhere = children.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    collection = default_documents().documents
    ids = train_on(collection)([document.text for document in collection])["input_ids"]
    assert elsewhere == hashlib.sha256(repr(ids).encode()).hexdigest()


def test_a_tokenizer_without_special_tokens_is_refused() -> None:
    class Tokenizer:
        cls_token_id = 1
        sep_token_id = pad_token_id = None

    with pytest.raises(ValueError, match=r"the tokenizer of here has no \[SEP\], \[PAD\]"):
        check_special_tokens(Tokenizer(), "here")
