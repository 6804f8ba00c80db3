"""SpanBERT's pre-training model: masked language model and span boundary objective over one encoder."""

from __future__ import annotations

import argparse
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertPreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import BertLMPredictionHead
from transformers.utils import ModelOutput

from spanbert_kernels.models.configuration import SpanBERTConfig
from spanbert_kernels.models.modeling import SpanBERTModel, SpanBERTPreTrainedModel
from spanbert_kernels.nn.linear import run_linear
from spanbert_kernels.nn.span_boundary_head import SpanBoundaryHead

IGNORED = -100


@dataclass
class SpanBERTForPreTrainingOutput(ModelOutput):
    """Losses of a batch: `loss` is the sum of the others, which are means over their targets."""

    loss: Tensor | None = None
    mlm_loss: Tensor | None = None
    sbo_loss: Tensor | None = None


class PreTrainingHeads(nn.Module):
    """Both heads, under the names of the published file."""

    def __init__(self, config: SpanBERTConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)
        self.pair_target_predictions = SpanBoundaryHead(
            config.hidden_size,
            config.vocab_size,
            config.max_span_targets,
            ACT2FN[config.hidden_act],
            config.layer_norm_eps,
        )


class SpanBERTForPreTraining(SpanBERTPreTrainedModel):
    """MLM and SBO over `SpanBERTModel`, with logits at masked tokens alone.

    Args:
        config: `SpanBERTConfig`, whose `max_span_targets` is read here.

    Source: Joshi et al. 2020, SpanBERT. The published code divides the SBO part by one more than its targets.

    Example:
        >>> model = SpanBERTForPreTraining(SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1,
        ...                                               num_attention_heads=2, intermediate_size=16))
        >>> labels = torch.full((2, 6), -100)
        >>> labels[0, 2:4] = torch.tensor([7, 9])
        >>> output = model(torch.randint(30, (2, 6)), labels=labels, spans=torch.tensor([[0, 2, 3]]))
        >>> bool(output.loss == output.mlm_loss + output.sbo_loss)
        True
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
        "cls.pair_target_predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    }

    def __init__(self, config: SpanBERTConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.bert = SpanBERTModel(config, add_pooling_layer=False)
        self.cls = PreTrainingHeads(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        spans: Tensor | None = None,
        cluster_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> SpanBERTForPreTrainingOutput:
        """The losses of a masked batch.

        Args:
            input_ids: `[B, L]`, after masking.
            attention_mask: `[B, L]`.
            labels: `[B, L]`, the tokens before masking at masked positions, -100 elsewhere.
            spans: int64 `[S, 3]`: row, first and last column of the spans that the SBO predicts; each has a token on
                either side. Their tokens are those of `labels`.
            cluster_ids: `[B]`, see `SpanBERTModel.forward`.

        Raises:
            ValueError: `labels` are missing or not `[B, L]`, or a span leaves the columns 1 .. L - 2.
        """
        if labels is None or labels.shape != input_ids.shape:
            shape = None if labels is None else list(labels.shape)
            raise ValueError(f"labels must be {list(input_ids.shape)}, got {shape}")
        outputs = self.bert(input_ids, attention_mask, cluster_ids=cluster_ids, **kwargs)
        hidden, targets = outputs.last_hidden_state.flatten(0, 1), labels.flatten()
        masked = (targets != IGNORED).nonzero()[:, 0]
        predictions = self.cls.predictions
        logits = run_linear(predictions.decoder, predictions.transform(hidden[masked]))
        mlm_loss = F.cross_entropy(logits.float(), targets[masked], reduction="sum") / max(len(masked), 1)
        sbo_loss = mlm_loss.new_zeros(())
        if spans is not None:  # none of them, too: a step whose ranks differ in what they use would be no step of one
            row, first, last = spans.unbind(1)
            length = input_ids.shape[1]
            if bool(((first < 1) | (last >= length - 1) | (last < first)).any()):
                raise ValueError(f"spans must lie in columns 1 to {length - 2}, got {spans.tolist()}")
            rows = torch.stack((first, last), 1) + (row * length)[:, None]
            logits, span, slot = self.cls.pair_target_predictions(hidden, rows)
            wanted = targets[rows[span, 0] + slot]
            sbo_loss = F.cross_entropy(logits.float(), wanted, reduction="sum") / (len(wanted) + 1)
        return SpanBERTForPreTrainingOutput(loss=mlm_loss + sbo_loss, mlm_loss=mlm_loss, sbo_loss=sbo_loss)


def load_released_heads(model: SpanBERTForPreTraining, path: str | os.PathLike[str]) -> list[str]:
    """Loads the encoder and both heads from the released fairseq file (`model.pt` of spanbert_large_with_head).

    Its keys stand behind `decoder.` and have BERT's names, `gamma` and `beta` for LayerNorms; what the model does not
    have, such as a pooler, is left out.

    Args:
        model: what to load into, in place, of the file's sizes.
        path: the file.

    Returns:
        The names of the file that were left out.

    Raises:
        ValueError: the file holds no tensors by name, or lacks a parameter of the model, or has another shape of one.
        OSError: the file cannot be read.

    Source: facebookresearch/SpanBERT, issues 38 and 53.

    Example:
        >>> import tempfile
        >>> model = SpanBERTForPreTraining(SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1,
        ...                                               num_attention_heads=2, intermediate_size=16))
        >>> released = {f"decoder.{name}": tensor for name, tensor in model.state_dict().items()}
        >>> with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        ...     torch.save({"model": {**released, "decoder.bert.pooler.dense.bias": torch.zeros(8)}}, file.name)
        ...     load_released_heads(model, file.name)
        ['bert.pooler.dense.bias']
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # fairseq's own checkpoints keep their options
            content = torch.load(Path(path), map_location="cpu", weights_only=True)
        state = dict(content.get("model", content))
    except (RuntimeError, EOFError, AttributeError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} does not hold a model's tensors by name") from error
    renamed = {}
    for key, value in state.items():
        name = key.removeprefix("decoder.").replace(".gamma", ".weight").replace(".beta", ".bias")
        renamed[name] = value
    own = model.state_dict()
    if "cls.predictions.decoder.bias" not in renamed and "cls.predictions.bias" in renamed:
        renamed["cls.predictions.decoder.bias"] = renamed["cls.predictions.bias"]
    for name, tensor in own.items():
        if name not in renamed:
            raise ValueError(f"{path} lacks {name}")
        if renamed[name].shape != tensor.shape:
            raise ValueError(f"{path}: {name} is {list(renamed[name].shape)}, the model has {list(tensor.shape)}")
    model.load_state_dict({name: renamed[name] for name in own})
    return sorted(set(renamed) - set(own))
