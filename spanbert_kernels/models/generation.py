"""Text from long documents: an encoder over windows that see each other, and a decoder that reads all of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel, EncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

from spanbert_kernels.models.configuration import DocumentFields, SpanBERTConfig, fields
from spanbert_kernels.models.modeling import OnEncoder, SpanBERTPreTrainedModel

WINDOWS = 64  # windows with a vector of their own; later ones share the last


@fields
class WindowFields(DocumentFields):
    """What is added to a configuration for windows; the field is told by `WindowedSpanBERTConfig`."""

    window_length: int = 128


class WindowedSpanBERTConfig(WindowFields, SpanBERTConfig):
    """SpanBERT's configuration with the tokens of a window.

    Attributes:
        window_length: columns of a window.

    Example:
        >>> WindowedSpanBERTConfig(window_length=64).window_length
        64
    """

    model_type = "spanbert_windows"


class WindowedEncoder(OnEncoder):
    """Documents of any length as windows, on any encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.windows = nn.Embedding(WINDOWS, config.hidden_size)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """`[B, S]` -> `[B, S, H]`; the last window of a row may be cut short.

        Args:
            input_ids: `[B, S]`.
            attention_mask: `[B, S]`; a window may be padding from its first column on.
            kwargs: what else an encoder-decoder passes; nothing of it is used.

        Raises:
            ValueError: `input_ids` are missing.
        """
        if input_ids is None:
            raise ValueError("input_ids [B, S] are wanted, got None")
        batch, length = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        window = min(self.config.window_length, length)
        count = -(-length // window)
        beyond = (0, count * window - length)
        ids = F.pad(input_ids, beyond, value=self.config.pad_token_id or 0).view(-1, window)
        mask = F.pad(attention_mask, beyond).view(-1, window)
        clusters = None
        if count > 1 and self.config.cross_document_layers:
            clusters = torch.arange(batch, device=ids.device).repeat_interleave(count)
        hidden = self.encode(ids, mask, cluster_ids=clusters).last_hidden_state.view(batch, count, window, -1)
        number = torch.arange(count, device=ids.device).clamp(max=WINDOWS - 1)
        hidden = hidden + self.windows(number)[:, None]
        return BaseModelOutput(last_hidden_state=hidden.flatten(1, 2)[:, :length])


class WindowedSpanBERTModel(WindowedEncoder, SpanBERTPreTrainedModel):
    """An encoder of documents of any length: windows of `config.window_length` columns lie side by side in a row.

    Windows of a row are documents of a cluster, which see each other in the cross-document layers. A vector for each
    window's number is added to its tokens, for the decoder to tell the windows apart.

    Args:
        config: `WindowedSpanBERTConfig`.

    Example:
        >>> config = WindowedSpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                                 intermediate_size=16, window_length=4, cross_document_layers=[0],
        ...                                 cross_document_queries="tokens")
        >>> model = WindowedSpanBERTModel(config).eval()
        >>> model(torch.randint(30, (2, 12)))[0].shape  # three windows a row
        torch.Size([2, 12, 8])
    """

    config_class = WindowedSpanBERTConfig
    config: WindowedSpanBERTConfig


def encoder_decoder(encoder: WindowedEncoder, tokenizer: Any, layers: int, rows: int) -> EncoderDecoderModel:
    """The encoder with a new decoder of so many `layers`, and `rows` of embeddings for `tokenizer`, ready to write."""
    shape = encoder.config
    decoder = BertLMHeadModel(
        BertConfig(
            vocab_size=rows,
            hidden_size=shape.hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size,
            hidden_dropout_prob=shape.dropout_probability,
            attention_probs_dropout_prob=shape.attention_dropout_probability,
            is_decoder=True,
            add_cross_attention=True,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = tokenizer.cls_token_id
        config.eos_token_id = tokenizer.sep_token_id
        config.pad_token_id = tokenizer.pad_token_id
    return model
