"""The tokenizer of the SpanBERT family, cased BERT's WordPiece, and those that checkpoints of other families bring."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, BertTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from spanbert_kernels.models.checkpoints import TOKENIZERS, resolve_tokenizer, what_would_work
from spanbert_kernels.models.damage import CannotLoad, damage, loading


class SpanBERTTokenizer(BertTokenizer):
    """BERT's tokenizer, which never lower-cases.

    Args:
        vocab: path of a `vocab.txt`, or a dict of tokens to ids.
        do_lower_case: False; it is named here because transformers' default is True.
        kwargs: as in `transformers.BertTokenizer`.

    Raises:
        ValueError: `do_lower_case` is True, or no vocabulary is given.
        FileNotFoundError: there is no file `vocab`.

    Example:
        >>> vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris"])}
        >>> SpanBERTTokenizer(vocab=vocabulary).tokenize("Paris paris")
        ['Paris', '[UNK]']
    """

    def __init__(
        self,
        vocab: str | os.PathLike[str] | dict[str, int] | None = None,
        do_lower_case: bool = False,
        **kwargs: Any,
    ) -> None:
        if do_lower_case:
            raise ValueError(
                f"do_lower_case={do_lower_case!r}, but the SpanBERT family is cased: pass do_lower_case=False if the "
                "vocabulary is cased, or take transformers.BertTokenizer for one that is not"
            )
        # BertTokenizer ignores vocab_file and goes on with five tokens
        vocab = kwargs.get("vocab_file") if vocab is None else vocab
        if vocab is None and kwargs.get("tokenizer_object") is None:
            raise ValueError("a vocabulary is needed: vocab=None, give the path of a vocab.txt or a dict")
        if isinstance(vocab, (str, os.PathLike)):
            vocab = os.fspath(vocab)
            if not os.path.isfile(vocab):
                raise FileNotFoundError(f"there is no vocabulary file {vocab!r}")
            if (reason := damage(Path(vocab))) is not None:
                raise CannotLoad(f"cannot load vocabulary {vocab}: it {reason}")
        super().__init__(vocab=vocab, do_lower_case=False, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Loads the vocabulary of a local folder, a hub name, "spanbert-base" or "spanbert-large".

        Raises:
            OSError: nothing by that name, or it has no vocabulary.
            ValueError: the name looks like a short name but is not one, or the vocabulary was saved as lower-cased;
                `CannotLoad` for a folder with a damaged file.
        """
        name = resolve_tokenizer(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        try:
            with loading(os.path.join(name, kwargs.get("subfolder") or "")):
                return super().from_pretrained(name, *args, **kwargs)
        except OSError as error:
            if os.path.isdir(name):
                raise
            raise OSError(f"cannot load tokenizer {name!r} from the hub: give {what_would_work()}") from error


def load_tokenizer(name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint of any family, in the case that it was made for.

    Args:
        name: a local folder, a hub name, "spanbert-base" or "spanbert-large".

    Raises:
        OSError: nothing by that name, or it has no vocabulary.
        ValueError: the name looks like a short name but is not one, or the tokenizer cannot say which characters a
            token is of; `CannotLoad` for a folder with a damaged file.

    Example:
        >>> import tempfile
        >>> vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris"])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = BertTokenizer(vocab=vocabulary, do_lower_case=True).save_pretrained(folder)
        ...     load_tokenizer(folder).tokenize("Paris")
        ['paris']
    """
    resolved = resolve_tokenizer(name)
    try:
        with loading(resolved):
            own = SpanBERTTokenizer if resolved in TOKENIZERS.values() else _tokenizer_of_bert(Path(resolved))
            if own is not None:
                return cast(PreTrainedTokenizerBase, own.from_pretrained(resolved))
            known = {} if Path(resolved, "config.json").is_file() else {"config": PreTrainedConfig()}
            tokenizer = AutoTokenizer.from_pretrained(resolved, trust_remote_code=False, **known)
    except OSError as error:
        if os.path.isdir(resolved):
            raise
        raise OSError(f"cannot load tokenizer {resolved!r} from the hub: give {what_would_work()}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"{resolved}: a {type(tokenizer).__name__} does not say which characters a token is of")
    return cast(PreTrainedTokenizerBase, tokenizer)


def _tokenizer_of_bert(folder: Path) -> type[BertTokenizer] | None:
    """The class of a folder's tokenizer: SpanBERT's if it says so; by the case of a vocabulary that says nothing.

    None where that is for transformers to say.
    """
    if not folder.is_dir():
        return None
    settings, config = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for path in (folder / "tokenizer_config.json", folder / "config.json")
    )
    if (named := settings.get("tokenizer_class")) is not None:
        return SpanBERTTokenizer if named == SpanBERTTokenizer.__name__ else None
    vocabulary = folder / "vocab.txt"
    if not vocabulary.is_file() or config.get("model_type", "bert") not in ("bert", "spanbert", "spanbert_windows"):
        return None
    entries = (entry for entry in vocabulary.read_text(encoding="utf-8").split("\n") if not entry.startswith("["))
    lower = settings.get("do_lower_case", all(entry == entry.lower() for entry in entries))
    return BertTokenizer if lower else SpanBERTTokenizer
