"""What a training begins with: a checkpoint, or a new model and a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spanbert_kernels.data.faults import warn
from spanbert_kernels.models import SpanBERTModel, encoders, kind_for
from spanbert_kernels.models.checkpoints import what_would_work
from spanbert_kernels.models.damage import CannotLoad, loading
from spanbert_kernels.models.tokenization import load_tokenizer
from spanbert_kernels.tasks.labels import head_of, listed
from spanbert_kernels.tasks.vocabulary import Tokenizer, read_tokenizer, rows_of, train_tokenizer
from spanbert_kernels.tasks.windows import limit

SIZES = {  # layers, hidden size, heads
    "tiny": (2, 128, 2),
    "small": (4, 256, 4),
    "base": (12, 768, 12),
}
FEWEST_POSITIONS = 4  # of a question and a text of no and one token


def load_trained(kind: Any, folder: Path) -> Any:
    """The model of the class `kind` that a training wrote to the folder.

    Raises:
        ValueError: the folder's model has another head, so that this one's weights would be random, or lacks weights.
        CannotLoad: a file of it is damaged.
        OSError: there is no such folder, or no model in it.
    """
    if not folder.is_dir():
        what = "give the one that train wrote; an encoder is trained for a task first: train TASK --model NAME"
        raise FileNotFoundError(f"there is no folder {str(folder)!r}: {what}")
    with loading(folder):
        kind = kind_for(kind, folder)
        fields, _ = kind.config_class.get_config_dict(folder)
    written = (fields.get("architectures") or ["a model without a head"])[0]
    if written.removeprefix("Span") != kind.__name__.removeprefix("Span"):
        raise ValueError(f"{folder} holds {written}, not {kind.__name__}: train it for this task first")
    with loading(folder):
        model, found = kind.from_pretrained(folder, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise CannotLoad(
            f"cannot load the model in {folder}: it lacks {len(missing):,} of its weights, such as {missing[0]}"
        )
    return model


def trained_for(config: Any) -> str:
    """The class that wrote a configuration, by BERT's name; "" where none is named."""
    return (config.architectures or [""])[0].removeprefix("Span")


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from, or the size of a new model.

    Attributes:
        model: a folder, a hub name, "spanbert-base" or "spanbert-large"; None for a new model.
        size: of a new model, one of `SIZES`.
        vocabulary: a vocab.txt for a new model; by default one of `vocabulary_size` entries is made of the texts.
        max_length: tokens of a text, or of its windows; None for what the model holds, and windows of 128.
        lower_layers: of the encoder, how many are kept, from the lowest on; None for all.
    """

    model: str | None = None
    size: str = "small"
    vocabulary: Path | None = None
    vocabulary_size: int = 8000
    max_length: int | None = None
    lower_layers: int | None = None

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        """The checkpoint's, that of the vocabulary, or one made of the texts."""
        if self.vocabulary is not None:
            return read_tokenizer(self.vocabulary)
        if self.model is not None:
            self.layers()  # says what is wrong with a name; the tokenizer would ask for a vocabulary
            return load_tokenizer(self.model)
        return train_tokenizer(texts, self.vocabulary_size)

    def layers(self) -> int:
        """Of the encoder.

        Raises:
            OSError: nothing by the name of the checkpoint.
            ValueError: fewer than are to be kept.
        """
        count = self._all_layers()
        if self.lower_layers is None:
            return count
        if not 1 <= self.lower_layers <= count:
            raise ValueError(f"{self.model or self.size} has {count} layers, {self.lower_layers} are to be kept")
        return self.lower_layers

    def _all_layers(self) -> int:
        if self.model is None:
            return SIZES[self.size][0]
        try:
            return int(kind_for(SpanBERTModel, self.model).config_class.from_pretrained(self.model).num_hidden_layers)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or Path(self.model).is_dir():
                raise
            raise OSError(f"cannot load checkpoint {self.model!r} from the hub: give {what_would_work()}") from error

    def build(self, kind: Any, tokenizer: Tokenizer, seed: int, **fields: Any) -> Any:
        """A model of the class `kind`; `fields` are of its configuration.

        A checkpoint that was trained for other labels than those among the fields gets a new head, and a warning says
        so.

        Raises:
            ValueError: the vocabulary is larger than the checkpoint's, or its positions hold no text.
        """
        model = self._built(kind, tokenizer, seed, fields)
        if self.max_length is not None:
            limit(model.config, self.max_length)
        return model

    def _built(self, kind: Any, tokenizer: Tokenizer, seed: int, fields: dict[str, Any]) -> Any:
        torch.manual_seed(seed)
        rows = rows_of(tokenizer)
        if self.model is not None:
            return self._from_checkpoint(kind, rows, seed, fields)
        layers, (_, hidden, heads) = self.layers(), SIZES[self.size]
        shape = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
        config = {**shape, "intermediate_size": 4 * hidden, "vocab_size": rows, **fields}
        return kind(kind.config_class(**config))

    def _from_checkpoint(self, kind: Any, rows: int, seed: int, fields: dict[str, Any]) -> Any:
        kind = kind_for(kind, str(self.model))
        config = kind.config_class.from_pretrained(self.model)
        if config.positions < FEWEST_POSITIONS:
            count = config.positions
            raise ValueError(f"{self.model} has {count} positions, {FEWEST_POSITIONS} at least are needed")
        if self.lower_layers is not None:
            fields = {**fields, "num_hidden_layers": self.layers()}
            if kinds := getattr(config, "layer_types", None):  # global or local attention, of each
                fields["layer_types"] = kinds[: self.layers()]
        if rows > config.vocab_size:
            vocabulary = self.vocabulary or "its vocabulary"
            raise ValueError(f"{self.model} knows {config.vocab_size:,} entries, but {vocabulary} has {rows:,}")
        before, wanted = (dict(labels) for labels in (config.id2label, fields.get("id2label", config.id2label)))
        # other families' own heads are not ours, though their names are
        same = trained_for(config) == kind.__name__.removeprefix("Span")
        if not same or (kind.__module__ == encoders.__name__ and config.architectures != [kind.__name__]):
            return self._from_another_task(kind, config, seed, fields)
        if before == wanted:
            return kind.from_pretrained(self.model, **fields)
        warn(
            f"{self.model} was trained for the labels {listed(before.values())}: "
            f"it gets a new head for {listed(wanted.values())}"
        )
        return self._with_new_head(kind, kind.from_pretrained(self.model), head_of(kind, config), seed, fields)

    def _from_another_task(self, kind: Any, config: Any, seed: int, fields: dict[str, Any]) -> Any:
        """All that fits of a model of another class, or of an encoder alone; but for its head, whose labels differ."""
        trained, found = kind.from_pretrained(self.model, ignore_mismatched_sizes=True, output_loading_info=True)
        head = head_of(kind, config) - set(found["missing_keys"]) if "id2label" in fields else set()
        new = head | {name for name, *_ in found["mismatched_keys"]}
        if not new:
            torch.manual_seed(seed)
            return kind.from_pretrained(self.model, **fields)
        warn(f"{self.model} was trained for another task: {', '.join(sorted(new))} begin anew")
        return self._with_new_head(kind, trained, new, seed, fields)

    def _with_new_head(self, kind: Any, trained: Any, head: set[str], seed: int, fields: dict[str, Any]) -> Any:
        """A model as the fields say with the parameters of `trained`, but for those named in `head`."""
        torch.manual_seed(seed)
        model = kind(kind.config_class.from_pretrained(self.model, **fields))
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        kept = {name: tensor for name, tensor in trained.state_dict().items() if name not in head}
        fitting = {name: tensor for name, tensor in kept.items() if shapes.get(name) == tensor.shape}
        model.load_state_dict(fitting, strict=False)
        return model
