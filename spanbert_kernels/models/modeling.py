"""Encoders of transformers, with their parameter names, whose documents can see each other between layers.

`DocumentModel`, `ClusterEncoder` and `DocumentLayer` stand before a family's own classes; the reference is BERT's.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import BertModel, BertPreTrainedModel, PreTrainedModel
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertLayer
from transformers.utils import can_return_tuple, logging

from spanbert_kernels import ops
from spanbert_kernels.acceleration.families import family_of
from spanbert_kernels.acceleration.family import Family
from spanbert_kernels.models.checkpoints import resolve_model, what_would_work
from spanbert_kernels.models.clusters import ClusteredDocuments
from spanbert_kernels.models.configuration import SpanBERTConfig
from spanbert_kernels.models.damage import loading
from spanbert_kernels.nn.biaffine import Biaffine
from spanbert_kernels.nn.cross_document_mixer import CrossDocumentMixer
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.nn.span_boundary_head import SpanBoundaryHead

logger = logging.get_logger(__name__)


class DocumentModel(PreTrainedModel):
    """What encoders and models on them share: initialisation, names of checkpoints."""

    encoder_class: ClassVar[type[Any]]  # what stands at `base_model_prefix` in a model on an encoder
    layer_class: ClassVar[type[nn.Module]]  # of the encoder's layers

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


class OnEncoder(DocumentModel):
    """A model that holds an encoder without a pooler under the name that checkpoints of the family give it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, self.encoder_class(config, add_pooling_layer=False))
        self.dropout = nn.Dropout(config.dropout_probability)

    def encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The encoder's output; token types go no further where the encoder knows none but one."""
        if token_type_ids is not None and self.config.takes_token_types:
            kwargs["token_type_ids"] = token_type_ids
        return self.base_model(input_ids, attention_mask, **kwargs)


class DocumentLayer(nn.Module):
    """Stands before a family's layer: after it, where the configuration says so, comes the cross-document sub-layer.

    Attributes:
        context: the documents of the batch, while they see each other after this layer.
    """

    cross_document: CrossDocumentMixer | None
    context: ClusteredDocuments | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Hands the context down as an argument, which a layer that is computed again for its gradients gets again."""
        if self.context is not None:
            kwargs["cross_document_context"] = self.context
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, cross_document_context: ClusteredDocuments | None = None, **kwargs: Any) -> Any:
        """`[B, L, H]` -> `[B, L, H]`, first of what the layer returns; padding keeps what that makes of it."""
        output = super().forward(*args, **kwargs)
        if cross_document_context is None:
            return output
        if isinstance(output, tuple):
            return (self.mixed(output[0], cross_document_context), *output[1:])
        return self.mixed(output, cross_document_context)

    def mixed(self, hidden: Tensor, context: ClusteredDocuments) -> Tensor:
        """What the sub-layer makes of the states `[B, L, H]` that have just been made."""
        assert self.cross_document is not None
        rows, plan = hidden.flatten(0, 1), context.plan(self.cross_document)
        inplace = not torch.is_grad_enabled()
        return self.cross_document(rows, plan, rows=context.padded_rows, inplace=inplace).view_as(hidden)


class ClusterEncoder(DocumentModel):
    """Stands before a family's encoder: documents of a cluster see each other after some layers.

    Without clusters, and until a gate is trained, it is exactly the family's.
    """

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        if not isinstance(config, self.config_class):
            raise TypeError(f"config must be a {self.config_class.__name__}, got {type(config).__name__}")
        config.check_cross_document()
        takes_pooler = "add_pooling_layer" in inspect.signature(super().__init__).parameters
        super().__init__(config, **({"add_pooling_layer": add_pooling_layer} if takes_pooler else {}))
        layers = self.family.layers_of(self)
        if config.cross_document_layers and len(set(layers)) < len(layers):
            raise ValueError(
                f"cross_document_layers={list(config.cross_document_layers)}, but the layers of a "
                f"{self.family.model_class} are one and the same"
            )
        if 0 in config.cross_document_layers and getattr(getattr(self, "encoder", None), "conv", None) is not None:
            raise ValueError(
                f"cross_document_layers={list(config.cross_document_layers)} names layer 0, whose output a convolution "
                f"of the {self.family.model_class} reads"
            )
        layer: Any
        for index, layer in enumerate(dict.fromkeys(layers)):
            layer.__class__ = self.layer_class
            layer.cross_document = _mixer(config) if index in config.cross_document_layers else None
        self.post_init()

    @property
    def family(self) -> Family:
        """The row of the table of encoders."""
        found = family_of(self)
        assert found is not None
        return found

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
        cluster_group: ProcessGroup | None = None,
        **kwargs: Any,
    ) -> Any:
        """The family's forward.

        Args:
            input_ids: `[B, L]`, as in transformers.
            attention_mask: `[B, L]`, as in transformers.
            token_type_ids: `[B, L]`, as in transformers.
            position_ids: `[B, L]`, as in transformers.
            inputs_embeds: `[B, L, H]`, as in transformers.
            cluster_ids: integers `[B]`: documents with the same id, adjacent or not, see each other in the
                cross-document layers. None: no document sees another.
            cluster_group: a process group whose ranks have documents of the same clusters, by the same ids, each
                its own. Every rank calls the model with it, and runs the backward.
            kwargs: as in transformers.

        Raises:
            TypeError: `cluster_ids` is not an integer tensor on the batch's device.
            ValueError: `cluster_ids` is not `[B]`, or `attention_mask` not `[B, L]` where documents have to be told
                from padding.
        """
        inputs = input_ids if input_ids is not None else inputs_embeds
        anchored = self.config.pooler_token == "anchor" and getattr(self, "pooler", None) is not None
        packing, context = None, None
        if inputs is not None and (cluster_ids is not None or anchored):
            packing = Packing.from_mask(attention_mask, inputs.shape[0], inputs.shape[1], inputs.device)
            context = self.cross_document_context(cluster_ids, packing, cluster_group)
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        kwargs.update((name, each) for name, each in given.items() if each is not None)
        with self._seeing(context) as last:
            outputs = super().forward(**kwargs, return_dict=True)
        if last is not None and context is not None:
            outputs.last_hidden_state = last.mixed(outputs.last_hidden_state, context)
            if outputs.hidden_states is not None:
                outputs.hidden_states = (*outputs.hidden_states[:-1], outputs.last_hidden_state)
        if anchored and packing is not None:
            outputs.pooler_output = self.pool(outputs.last_hidden_state, packing)
        return outputs

    @contextlib.contextmanager
    def _seeing(self, context: ClusteredDocuments | None) -> Iterator[DocumentLayer | None]:
        """While it lasts, layers mix the documents of the batch; gives the one that a last norm comes before."""
        mixing = {} if context is None else {i: self._layer(i) for i in self.config.cross_document_layers}
        last = mixing.pop(self.config.num_hidden_layers - 1, None) if self.family.norm is not None else None
        for layer in mixing.values():
            layer.context = context
        try:
            yield last
        finally:
            for layer in mixing.values():
                del layer.context

    def _layer(self, index: int) -> Any:
        return self.family.layers_of(self)[index]

    def cross_document_context(
        self, cluster_ids: Tensor | None, packing: Packing, cluster_group: ProcessGroup | None = None
    ) -> ClusteredDocuments | None:
        """What the cross-document layers need to know of the batch, once per forward; None if nothing is to be mixed.

        Raises:
            TypeError: `cluster_ids` is not an integer tensor on the batch's device.
            ValueError: `cluster_ids` is not `[B]`.
        """
        if cluster_ids is None:
            return None
        context = ClusteredDocuments.from_ids(cluster_ids, packing, cluster_group)
        if not self.config.cross_document_layers:
            logger.warning_once("cluster_ids were given, but config.cross_document_layers is empty: nothing to mix")
            return None
        return context

    def mix_documents(
        self, layer_index: int, hidden: Tensor, packing: Packing, context: ClusteredDocuments | None
    ) -> Tensor:
        """What stands after the layer of this index, on the packed batch: `[T, H]` -> `[T, H]`.

        Returns `hidden` itself where no mixer stands or `context` is None.

        Raises:
            ValueError: `hidden` is not `[T, H]` for this packing.
        """
        mixer: CrossDocumentMixer | None = self._layer(layer_index).cross_document
        if mixer is None or context is None:
            return hidden
        if hidden.shape[0] != packing.num_tokens:
            raise ValueError(f"hidden must have {packing.num_tokens} rows, one per real token, got {hidden.shape[0]}")
        inplace = not torch.is_grad_enabled()  # the layer has just made `hidden`
        mixed: Tensor = mixer(hidden, context.plan(mixer), rows=context.packed_rows, inplace=inplace)
        return mixed

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
        if getattr(self, "pooler", None) is None or self.family.pool is None:
            return None
        rows = last_hidden_state.flatten(0, 1).index_select(0, self.pooled_positions(packing))
        return self.family.pool(self, rows.unsqueeze(1))


def _mixer(config: Any) -> CrossDocumentMixer:
    return CrossDocumentMixer(
        config.hidden_size,
        config.num_attention_heads,
        queries=config.cross_document_queries,
        keys=config.cross_document_keys,
        include_self=config.cross_document_include_self,
        normalize=config.cross_document_normalize,
        anchor=config.cross_document_anchor,
        attention_dropout=config.attention_dropout_probability,
        dropout=config.dropout_probability,
        layer_norm_eps=config.norm_eps_of_heads,
    )


class SpanBERTLayer(DocumentLayer, BertLayer):
    """BERT's layer with the sub-layer."""


class SpanBERTPreTrainedModel(DocumentModel, BertPreTrainedModel):
    """BERT's initialisation and names with those of the sub-layers."""

    config_class = SpanBERTConfig
    config: SpanBERTConfig
    layer_class = SpanBERTLayer
    _no_split_modules = ("BertEmbeddings", "SpanBERTLayer")


class SpanBERTModel(ClusterEncoder, SpanBERTPreTrainedModel, BertModel):
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


SpanBERTPreTrainedModel.encoder_class = SpanBERTModel
