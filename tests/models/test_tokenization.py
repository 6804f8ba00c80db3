import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, BertConfig, BertTokenizer, RobertaConfig, RobertaTokenizer

from spanbert_kernels.models import SpanBERTConfig, SpanBERTTokenizer
from spanbert_kernels.models.tokenization import load_tokenizer

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris", "paris", "##ian", "is", "É", "E", "##t", "."]
TEXT = "Parisian Paris is paris Ét ."
TOKENS = ["Paris", "##ian", "Paris", "is", "paris", "É", "##t", "."]


@pytest.fixture
def vocabulary_file(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


def test_keeps_case_and_accents(vocabulary_file: Path) -> None:
    from_dict = SpanBERTTokenizer(vocab={token: i for i, token in enumerate(VOCABULARY)})
    for tokenizer in (
        from_dict,
        SpanBERTTokenizer(vocab=vocabulary_file),
        SpanBERTTokenizer(vocab=str(vocabulary_file)),
    ):
        assert len(tokenizer) == len(VOCABULARY)
        assert tokenizer.tokenize(TEXT) == TOKENS
        assert tokenizer("Paris", "is").token_type_ids == [0, 0, 0, 1, 1]


def test_vocab_file_is_not_ignored(vocabulary_file: Path) -> None:
    assert SpanBERTTokenizer(vocab_file=str(vocabulary_file)).tokenize(TEXT) == TOKENS


def test_a_folder_with_a_vocabulary_alone_loads(vocabulary_file: Path) -> None:
    assert SpanBERTTokenizer.from_pretrained(vocabulary_file.parent).tokenize(TEXT) == TOKENS


def test_saves_and_loads(vocabulary_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    SpanBERTTokenizer(vocab=vocabulary_file).save_pretrained(folder)
    SpanBERTConfig().save_pretrained(folder)
    for loader in (SpanBERTTokenizer, AutoTokenizer):
        tokenizer = loader.from_pretrained(folder)
        assert type(tokenizer) is SpanBERTTokenizer
        assert tokenizer.tokenize(TEXT) == TOKENS
        assert tokenizer.convert_tokens_to_ids(["[PAD]", "Paris"]) == [0, 5]


def test_a_spanbert_folder_with_a_vocabulary_alone_gives_this_tokenizer(vocabulary_file: Path) -> None:
    SpanBERTConfig().save_pretrained(vocabulary_file.parent)
    tokenizer = AutoTokenizer.from_pretrained(vocabulary_file.parent)
    assert type(tokenizer) is SpanBERTTokenizer
    assert tokenizer.tokenize(TEXT) == TOKENS


def test_lower_casing_is_refused(vocabulary_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"do_lower_case=True.*cased"):
        SpanBERTTokenizer(vocab=vocabulary_file, do_lower_case=True)
    folder = tmp_path / "lower"
    BertTokenizer(vocab=str(vocabulary_file), do_lower_case=True).save_pretrained(folder)
    with pytest.raises(ValueError, match="do_lower_case=True"):
        SpanBERTTokenizer.from_pretrained(folder)
    assert SpanBERTTokenizer.from_pretrained(folder, do_lower_case=False).tokenize(TEXT) == TOKENS


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab=None"):
        SpanBERTTokenizer()
    with pytest.raises(FileNotFoundError, match=r"'no/vocab\.txt'"):
        SpanBERTTokenizer(vocab="no/vocab.txt")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*vocab\.txt.*'spanbert-base'"):
        SpanBERTTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("spanbert-base", "bert-base-cased"),
        ("spanbert-large", "bert-large-cased"),
        ("SpanBERT/spanbert-large-cased", "bert-large-cased"),
        ("someone/model", "someone/model"),
    ],
)
def test_short_names(monkeypatch: pytest.MonkeyPatch, name: str, asked: str) -> None:
    monkeypatch.setattr(BertTokenizer, "from_pretrained", classmethod(lambda cls, name, *args, **kwargs: name))
    assert SpanBERTTokenizer.from_pretrained(name) == asked


def test_names_that_fail_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cls: type, name: str, *args: Any, **kwargs: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(BertTokenizer, "from_pretrained", classmethod(fail))
    with pytest.raises(OSError, match="'bert-base-cased' from the hub"):
        SpanBERTTokenizer.from_pretrained("spanbert-base")
    with pytest.raises(ValueError, match="'spanbert-tiny'"):
        SpanBERTTokenizer.from_pretrained("spanbert-tiny")


def test_a_tokenizer_trained_on_new_text(vocabulary_file: Path) -> None:
    trained = SpanBERTTokenizer(vocab=vocabulary_file).train_new_from_iterator(["Oslo Oslo Oslo"], 40)
    assert type(trained) is SpanBERTTokenizer
    assert trained.tokenize("Oslo") == ["Oslo"]


@pytest.mark.skipif("SPANBERT_KERNELS_DATA" not in os.environ, reason="SPANBERT_KERNELS_DATA is not set")
def test_the_cased_vocabulary() -> None:
    path = Path(os.environ["SPANBERT_KERNELS_DATA"]) / "vocab" / "bert-base-cased-vocab.txt"
    tokenizer = SpanBERTTokenizer(vocab=path)
    assert len(tokenizer) == 28996
    lines = path.read_text(encoding="utf-8").splitlines()
    words = ["[CLS]", "Paris", "met", "the", "Pope", "in", "Rome", "and", "the", "pope", "left", "Paris", ".", "[SEP]"]
    assert tokenizer("Paris met the Pope in Rome and the pope left Paris.").input_ids == [lines.index(w) for w in words]
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 100, 101, 102, 103]


def lower(folder: Path) -> None:
    BertTokenizer(vocab={"[UNK]": 0, "paris": 1, "Paris": 2}, do_lower_case=True).save_pretrained(folder)


def lower_without_a_word(folder: Path) -> None:
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nparis\n")


def cased_without_a_word(folder: Path) -> None:
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nparis\nParis\n")


def cased(folder: Path) -> None:
    SpanBERTTokenizer(vocab={"[UNK]": 0, "paris": 1}).save_pretrained(folder)


def bytes_of(folder: Path) -> None:
    RobertaTokenizer(vocab={"P": 0, "p": 1}, merges=[]).save_pretrained(folder)


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(
    ("write", "kind", "tokens"),
    [
        (lower, BertTokenizer, ["paris"]),
        (lower_without_a_word, BertTokenizer, ["paris"]),
        (cased_without_a_word, SpanBERTTokenizer, ["Paris"]),
        (cased, SpanBERTTokenizer, ["[UNK]"]),
        (bytes_of, RobertaTokenizer, ["P"]),
    ],
)
def test_a_checkpoint_brings_its_own(
    tmp_path: Path, write: Callable[[Path], None], kind: type, tokens: list[str], config: bool
) -> None:
    """With a model beside it or alone; in the case that it, or its vocabulary, is of."""
    write(tmp_path)
    if config:
        (RobertaConfig() if kind is RobertaTokenizer else BertConfig()).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert type(tokenizer) is kind
    assert tokenizer.tokenize("Paris")[:1] == tokens
