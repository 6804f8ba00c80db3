"""The two models of the demo, which share their parameters: transformers' own, and the accelerated one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel

import spanbert_kernels
from spanbert_kernels.acceleration import AccelerationReport
from spanbert_kernels.acceleration.packed import Weights
from spanbert_kernels.cli.errors import first_line
from spanbert_kernels.models.damage import CannotLoad

QUICK_SIZE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}
# Models that predict something of every token, by the end of their class's name: the class to load, and its head.
_HEADS = {
    "ForTokenClassification": (spanbert_kernels.SpanBERTForTokenClassification, "classifier"),
    "ForMaskedLM": (spanbert_kernels.SpanBERTForMaskedLM, "cls"),
    "ForPreTraining": (spanbert_kernels.SpanBERTForMaskedLM, "cls"),
}


@dataclass(frozen=True)
class Encoders:
    """The same weights twice.

    Attributes:
        baseline: as transformers runs them.
        accelerated: as this package does.
        report: of the acceleration; it knows which paths ran.
        description: the model in words.
        weights: in which accelerated ones differ, or None.
    """

    baseline: Any
    accelerated: Any
    report: AccelerationReport
    description: str
    weights: Weights | None

    @property
    def attention(self) -> str:
        """The attention that transformers chose for the baseline."""
        return str(self.baseline.config._attn_implementation).upper()


@contextlib.contextmanager
def _loading(what: str) -> Iterator[None]:
    try:
        yield
    except CannotLoad:
        raise
    except Exception as error:
        raise CannotLoad(f"cannot load {what}: {first_line(error)}") from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer that belongs to the model `name`, in the case it was made for.

    Raises:
        CannotLoad: there is none, or it is not one that a BERT can use.
    """
    with _loading(f"the tokenizer of {name!r}"):
        try:
            tokenizer = spanbert_kernels.SpanBERTTokenizer.from_pretrained(name)
        except CannotLoad:
            raise
        except ValueError:  # a model that is not cased
            tokenizer = AutoTokenizer.from_pretrained(name)
        check_special_tokens(tokenizer, name)
        return tokenizer


def check_special_tokens(tokenizer: Any, name: str) -> None:
    """Raises `ValueError` where a tokenizer has no [CLS], [SEP] or [PAD], which a BERT needs."""
    missing = [f"[{key.upper()}]" for key in ("cls", "sep", "pad") if getattr(tokenizer, f"{key}_token_id") is None]
    if missing:
        raise ValueError(f"the tokenizer of {name} has no {', '.join(missing)}")


def load_model(name: str, dtype: torch.dtype) -> Any:
    """The model `name` without a pooler, ready to encode.

    Raises:
        CannotLoad: nothing by that name, not a BERT, or a checkpoint that lacks weights of the encoder.
    """
    with _loading(f"the model {name!r}"):
        model, found = spanbert_kernels.SpanBERTModel.from_pretrained(
            name, dtype=dtype, add_pooling_layer=False, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):
        raise CannotLoad(
            f"cannot load the model {name!r}: its checkpoint lacks {len(missing):,} of the encoder's weights, "
            f"such as {missing[0]}"
        )
    return model.eval()


def load_head(name: str, architectures: Sequence[str] | None, dtype: torch.dtype) -> nn.Module | None:
    """What the checkpoint `name` predicts of a token, from its hidden state `[..., H]`; None where it does not.

    Raises:
        CannotLoad: there is such a model, but not a sound one.
    """
    for ending, (model_class, head) in _HEADS.items():
        if any(architecture.endswith(ending) for architecture in architectures or ()):
            with _loading(f"the model {name!r}"):
                model, found = model_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
            lacks = any(key.startswith(head) for key in found["missing_keys"])
            return None if lacks else getattr(model.eval(), head)
    return None


def random_model(vocabulary_size: int, dtype: torch.dtype, seed: int, quick: bool) -> Any:
    """A model of base size (tiny if `quick`) with random weights."""
    torch.manual_seed(seed)
    config = spanbert_kernels.SpanBERTConfig(vocab_size=vocabulary_size, **(QUICK_SIZE if quick else {}))
    return spanbert_kernels.SpanBERTModel(config, add_pooling_layer=False).to(dtype).eval()


def prepare(model: Any, origin: str, batch: tuple[Tensor, Tensor], weights: Weights | None = None) -> Encoders:
    """Put transformers' `BertModel` beside `model`, on the same parameters, and accelerate `model`.

    Both run once, on the ids and the mask of `batch`.

    Raises:
        ValueError: this processor or the model cannot have such weights.
    """
    baseline = BertModel(model.config, add_pooling_layer=False)
    loaded = baseline.load_state_dict(model.state_dict(), strict=False, assign=True)
    assert not loaded.missing_keys, loaded.missing_keys
    baseline.to(model.dtype).eval()
    ids, mask = batch
    baseline(input_ids=ids, attention_mask=mask)
    report = spanbert_kernels.accelerate(model, weights=weights)
    model(input_ids=ids, attention_mask=mask)
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    description = (
        f"{origin}: {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {parameters / 1e6:,.1f} million parameters, "
        f"{str(model.dtype).removeprefix('torch.')}"
    )
    return Encoders(baseline, model, report, description, weights)
