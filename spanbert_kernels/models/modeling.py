"""The reference model: BERT, with BERT's parameter names, whose documents can see each other between layers."""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BertModel, BertPreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertLayer, BertPooler
from transformers.utils import can_return_tuple, logging

from spanbert_kernels import ops
from spanbert_kernels.models.checkpoints import resolve_model, what_would_work
from spanbert_kernels.models.clusters import ClusteredDocuments
from spanbert_kernels.models.configuration import SpanBERTConfig
from spanbert_kernels.models.damage import loading
from spanbert_kernels.nn.biaffine import Biaffine
from spanbert_kernels.nn.cross_document_mixer import CrossDocumentMixer
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.nn.span_boundary_head import SpanBoundaryHead

logger = logging.get_logger(__name__)


class SpanBERTPreTrainedModel(BertPreTrainedModel):
    """What the model and its heads share: configuration, initialisation, names of checkpoints."""

    config_class = SpanBERTConfig
    config: SpanBERTConfig
    _no_split_modules = ("BertEmbeddings", "SpanBERTLayer")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CrossDocumentMixer):
            init.zeros_(module.gate)
        elif isinstance(module, Biaffine):
            init.zeros_(module.weight)
        elif isinstance(module, SpanBoundaryHead):
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Loads a BERT checkpoint, the original SpanBERT release, or what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: a local folder, a hub name, "spanbert-base" or "spanbert-large".
            args: as in transformers.
            kwargs: as in transformers; fields of `SpanBERTConfig` override the checkpoint's.

        Raises:
            OSError: nothing by that name, or a file is missing.
            ValueError: the name looks like a short name but is not one, or holds another kind of model;
                `CannotLoad` for a folder with a damaged file.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        name = resolve_model(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        try:
            with loading(os.path.join(name, kwargs.get("subfolder") or "")):
                return super().from_pretrained(name, *args, **kwargs)
        except OSError as error:
            if os.path.isdir(name):
                raise
            raise OSError(f"cannot load checkpoint {name!r} from the hub: give {what_would_work()}") from error


class SpanBERTLayer(BertLayer):
    """BERT's layer, and after it, where the configuration says so, the cross-document sub-layer."""

    def __init__(self, config: SpanBERTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx=layer_idx)
        self.cross_document = _mixer(config) if layer_idx in config.cross_document_layers else None

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        cross_document_context: ClusteredDocuments | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """`[B, L, H]` -> `[B, L, H]`; padded positions keep what BERT's layer makes of them."""
        hidden_states = super().forward(hidden_states, *args, **kwargs)
        if self.cross_document is None or cross_document_context is None:
            return hidden_states
        context = cross_document_context
        rows = hidden_states.flatten(0, 1)
        plan, inplace = context.plan(self.cross_document), not torch.is_grad_enabled()
        mixed = self.cross_document(rows, plan, rows=context.padded_rows, inplace=inplace)
        return mixed.view_as(hidden_states)


class SpanBERTEncoder(BertEncoder):
    """BERT's encoder over `SpanBERTLayer`."""

    def __init__(self, config: SpanBERTConfig) -> None:
        nn.Module.__init__(self)  # BertEncoder's would build layers to throw away
        self.config = config
        self.layer = nn.ModuleList([SpanBERTLayer(config, layer_idx=i) for i in range(config.num_hidden_layers)])


class SpanBERTModel(SpanBERTPreTrainedModel, BertModel):
    """BERT with cross-document layers; without clusters, and until a gate is trained, exactly BERT.

    Args:
        config: `SpanBERTConfig`.
        add_pooling_layer: whether there is a pooler.

    Raises:
        TypeError: `config` is not a `SpanBERTConfig`.
        ValueError: see `SpanBERTConfig`.

    Example:
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        ...                         intermediate_size=16, cross_document_layers=[0])
        >>> model = SpanBERTModel(config).eval()
        >>> input_ids = torch.randint(30, (3, 5))  # documents 0 and 2 may see each other
        >>> model(input_ids, cluster_ids=torch.tensor([1, 2, 1])).last_hidden_state.shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, config: SpanBERTConfig, add_pooling_layer: bool = True) -> None:
        if not isinstance(config, SpanBERTConfig):
            raise TypeError(f"config must be a SpanBERTConfig, got {type(config).__name__}")
        config.check_cross_document()
        BertPreTrainedModel.__init__(self, config)  # BertModel's would build an encoder to throw away
        self.config = config
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        self.encoder = SpanBERTEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        cluster_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """BERT's forward.

        Args:
            input_ids: `[B, L]`, as in BERT.
            attention_mask: `[B, L]`, as in BERT.
            token_type_ids: `[B, L]`, as in BERT.
            position_ids: `[B, L]`, as in BERT.
            inputs_embeds: `[B, L, H]`, as in BERT.
            cluster_ids: integers `[B]`: documents with the same id, adjacent or not, see each other in the
                cross-document layers. None: no document sees another.
            kwargs: as in BERT.

        Raises:
            TypeError: `cluster_ids` is not an integer tensor on the batch's device.
            ValueError: `cluster_ids` is not `[B]`, or `attention_mask` not `[B, L]` where documents have to be told
                from padding.
        """
        inputs = input_ids if input_ids is not None else inputs_embeds
        anchored = self.pooler is not None and self.config.pooler_token == "anchor"
        packing = None
        if inputs is not None and (cluster_ids is not None or anchored):
            packing = Packing.from_mask(attention_mask, inputs.shape[0], inputs.shape[1], inputs.device)
            context = self.cross_document_context(cluster_ids, packing)
            if context is not None:
                kwargs["cross_document_context"] = context
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        if anchored and packing is not None:
            outputs.pooler_output = self.pool(outputs.last_hidden_state, packing)
        return outputs

    def cross_document_context(self, cluster_ids: Tensor | None, packing: Packing) -> ClusteredDocuments | None:
        """What the cross-document layers need to know of the batch, once per forward; None if nothing is to be mixed.

        Raises:
            TypeError: `cluster_ids` is not an integer tensor on the batch's device.
            ValueError: `cluster_ids` is not `[B]`.
        """
        if cluster_ids is None:
            return None
        context = ClusteredDocuments.from_ids(cluster_ids, packing)
        if not self.config.cross_document_layers:
            logger.warning_once("cluster_ids were given, but config.cross_document_layers is empty: nothing to mix")
            return None
        return context

    def mix_documents(
        self, layer_index: int, hidden: Tensor, packing: Packing, context: ClusteredDocuments | None
    ) -> Tensor:
        """What stands after `encoder.layer[layer_index]`, on the packed batch: `[T, H]` -> `[T, H]`.

        Returns `hidden` itself where no mixer stands or `context` is None.

        Raises:
            ValueError: `hidden` is not `[T, H]` for this packing.
        """
        mixer = cast(SpanBERTLayer, self.encoder.layer[layer_index]).cross_document
        if mixer is None or context is None:
            return hidden
        if hidden.shape[0] != packing.num_tokens:
            raise ValueError(f"hidden must have {packing.num_tokens} rows, one per real token, got {hidden.shape[0]}")
        inplace = not torch.is_grad_enabled()  # the layer has just made `hidden`
        return mixer.forward(hidden, context.plan(mixer), rows=context.packed_rows, inplace=inplace)

    def pooled_positions(self, packing: Packing) -> Tensor:
        """The position in the flattened padded batch `[B * L]` that the pooler reads for each row: int64 `[B]`.

        The first column, or the anchor; a row without a real token has no anchor, and the first column is read.
        """
        first = torch.arange(packing.batch, device=packing.cu_seqlens.device) * packing.length
        if self.config.pooler_token == "first" or packing.num_tokens == 0:
            return first
        anchors = ops.anchor_indices(packing.cu_seqlens, self.config.cross_document_anchor)
        positions = anchors.clamp(min=0)
        if packing.indices is not None:
            positions = packing.indices.index_select(0, positions)
        return torch.where(anchors < 0, first, positions)

    def pool(self, last_hidden_state: Tensor, packing: Packing) -> Tensor | None:
        """The pooler on a padded batch: `[B, L, H]` -> `[B, H]`; None if the model has no pooler."""
        if self.pooler is None:
            return None
        rows = last_hidden_state.flatten(0, 1).index_select(0, self.pooled_positions(packing))
        pooled: Tensor = self.pooler(rows.unsqueeze(1))
        return pooled


def _mixer(config: SpanBERTConfig) -> CrossDocumentMixer:
    return CrossDocumentMixer(
        config.hidden_size,
        config.num_attention_heads,
        queries=config.cross_document_queries,
        keys=config.cross_document_keys,
        include_self=config.cross_document_include_self,
        normalize=config.cross_document_normalize,
        anchor=config.cross_document_anchor,
        attention_dropout=config.attention_probs_dropout_prob,
        dropout=config.hidden_dropout_prob,
        layer_norm_eps=config.layer_norm_eps,
    )
