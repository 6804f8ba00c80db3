"""The cross-document sub-layer: lets documents of one cluster exchange information between two encoder layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.nn.linear import is_watched, run_linear
from spanbert_kernels.ops import checks
from spanbert_kernels.ops.choices import ANCHORS, NORMALIZATIONS, ROLES, Anchor, Normalization, Role
from spanbert_kernels.ops.dropout_add_layer_norm.operators import LARGEST_ROW
from spanbert_kernels.ops.on_gpu import takes
from spanbert_kernels.ops.operators import needs_gradient


class CrossDocumentMixer(nn.Module):
    """LayerNorm, QKV projections, cross-document attention, output projection, gated residual.

    The result is `hidden + tanh(gate) * update` at the query tokens (each document's anchor, or every token) and
    `hidden` elsewhere. `gate` is one scalar that starts at 0, so a fresh mixer changes nothing. The output projection
    has no bias: a document that sees no other document is returned as it came.

    Args:
        hidden_size: H, a multiple of `num_heads`.
        num_heads: attention heads.
        queries: "anchors" or "tokens", what attends.
        keys: "anchors" or "tokens", what is attended to.
        include_self: whether a document sees itself too.
        normalize: "joint", one softmax over all keys seen, or "pairwise", one per document, averaged.
        anchor: "last" or "first", the token that stands for a document.
        attention_dropout: dropout on attention probabilities, in training.
        dropout: dropout on the update, in training.
        layer_norm_eps: epsilon of the LayerNorm.

    A `watcher`, a function that somebody sets, gets the document weights of every call and changes nothing.

    Raises:
        ValueError: an unknown choice, a number out of range, or `hidden_size` is not a multiple of `num_heads`.
        TypeError: an argument of another kind.

    Example:
        >>> mixer = CrossDocumentMixer(hidden_size=8, num_heads=2)
        >>> hidden = torch.randn(5, 8)  # documents of 3 and 2 tokens, in one cluster
        >>> mixed = mixer(hidden, torch.tensor([0, 3, 5]), torch.tensor([0, 2]))
        >>> torch.equal(mixed, hidden)
        True
        >>> _ = nn.init.constant_(mixer.gate, 1.0)
        >>> mixed = mixer(hidden, torch.tensor([0, 3, 5]), torch.tensor([0, 2]))
        >>> (mixed != hidden).any(1).tolist()
        [False, False, True, False, True]
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        queries: Role = "anchors",
        keys: Role = "anchors",
        include_self: bool = False,
        normalize: Normalization = "joint",
        anchor: Anchor = "last",
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        checks.check_integer("hidden_size", hidden_size, 1)
        checks.check_integer("num_heads", num_heads, 1)
        checks.check_flag("include_self", include_self)
        checks.check_probability("attention_dropout", attention_dropout)
        checks.check_number("layer_norm_eps", layer_norm_eps)
        if hidden_size % num_heads != 0:
            raise ValueError(f"hidden_size must be a multiple of num_heads, got {hidden_size} and {num_heads}")
        check_choice("queries", queries, ROLES)
        check_choice("keys", keys, ROLES)
        check_choice("normalize", normalize, NORMALIZATIONS)
        check_choice("anchor", anchor, ANCHORS)
        checks.check_probability("dropout", dropout)
        self.num_heads = num_heads
        self.queries = queries
        self.keys = keys
        self.include_self = include_self
        self.normalize = normalize
        self.anchor = anchor
        self.attention_dropout = attention_dropout
        self.layer_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.gate = nn.Parameter(torch.zeros(1))
        self.watcher: Callable[[Tensor], None] | None = None

    @overload
    def forward(
        self,
        hidden: Tensor,
        cu_seqlens: Tensor | ops.AttentionPlan | ops.DistributedPlan,
        cu_clusters: Tensor | None = None,
        links: tuple[Tensor, Tensor] | None = ...,
        *,
        rows: Tensor | None = ...,
        inplace: bool = ...,
        return_weights: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        hidden: Tensor,
        cu_seqlens: Tensor | ops.AttentionPlan | ops.DistributedPlan,
        cu_clusters: Tensor | None = None,
        links: tuple[Tensor, Tensor] | None = ...,
        *,
        rows: Tensor | None = ...,
        inplace: bool = ...,
        return_weights: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        hidden: Tensor,
        cu_seqlens: Tensor | ops.AttentionPlan | ops.DistributedPlan,
        cu_clusters: Tensor | None = None,
        links: tuple[Tensor, Tensor] | None = ...,
        *,
        rows: Tensor | None = ...,
        inplace: bool = ...,
        return_weights: bool,
    ) -> Tensor | tuple[Tensor, Tensor]: ...

    def forward(
        self,
        hidden: Tensor,
        cu_seqlens: Tensor | ops.AttentionPlan | ops.DistributedPlan,
        cu_clusters: Tensor | None = None,
        links: tuple[Tensor, Tensor] | None = None,
        *,
        rows: Tensor | None = None,
        inplace: bool = False,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mixes the documents of each cluster.

        Args:
            hidden: `[T, H]` packed tokens; with `rows`, any `[R, H]` that holds them.
            cu_seqlens: `[D + 1]` offsets of the documents in the packed tokens, or a plan by `ops.plan_attention` of
                the mixer's queries, keys and `include_self`, which has clusters and links in it.
            cu_clusters: `[C + 1]` offsets of the clusters in the documents.
            links: CSR `(indptr [D + 1], indices)`: the documents that each document may see; None: its whole cluster.
            rows: int64 `[T]`, the row of `hidden` that holds each packed token; None: they lie there in order.
            inplace: add to `hidden` itself and return it, where no gradient is wanted of what it was.
            return_weights: also return how much each query looked at each document.

        Returns:
            A new tensor shaped like `hidden`, or that one; with `return_weights` also the document weights
            `[query rows, heads, documents of the largest cluster]`, fp32, not differentiable.

        Raises:
            ValueError: `hidden` is not `[T, H]`, or the offsets or links do not fit it.
        """
        hidden_size = self.query.in_features
        if hidden.dim() != 2 or hidden.shape[1] != hidden_size:
            raise ValueError(f"hidden must be [T, {hidden_size}], got {list(hidden.shape)}")
        num_tokens = hidden.shape[0] if rows is None else rows.shape[0]
        if isinstance(cu_seqlens, (ops.AttentionPlan, ops.DistributedPlan)):
            sight = self._sight_of(cu_seqlens, cu_clusters, links)
            offsets = cu_seqlens.cu_seqlens
        else:
            offsets = cu_seqlens
            sight = {
                "cu_seqlens": cu_seqlens,
                "cu_clusters": cu_clusters,
                "queries": self.queries,
                "keys": self.keys,
                "include_self": self.include_self,
                "links": links,
            }
        checks.check_offsets("cu_seqlens", offsets, num_tokens, "tokens")
        fused = self._is_fused(hidden, offsets, rows)
        normalize = self._normalized_anchors if fused else self._normalized
        query_rows, queries, keys = normalize(hidden, offsets, rows)
        key, value = run_linear(self.key_value, keys).chunk(2, dim=-1)
        result = ops.cross_document_attention(
            self._heads(run_linear(self.query, queries)),
            self._heads(key),
            self._heads(value),
            **sight,
            normalize=self.normalize,
            dropout_p=self.attention_dropout if self.training else 0.0,
            return_weights=return_weights or self.watcher is not None,
        )
        attended, weights = result if isinstance(result, tuple) else (result, None)
        if self.watcher is not None and weights is not None:
            self.watcher(weights)
        update = run_linear(self.output, attended.flatten(1))
        mixed = hidden if inplace else hidden.clone()
        if fused and query_rows is not None:
            self._add_in_place(mixed, query_rows, update)
            return mixed if weights is None or not return_weights else (mixed, weights)
        update = torch.tanh(self.gate) * self.dropout(update)
        if query_rows is None:
            mixed += update.to(hidden.dtype)
        elif hidden.shape[0] > 0:
            # an empty document's update is 0 and falls on row 0
            mixed.index_add_(0, query_rows, update.to(hidden.dtype))
        return mixed if weights is None or not return_weights else (mixed, weights)

    def _is_fused(self, hidden: Tensor, offsets: Tensor, rows: Tensor | None) -> bool:
        """Whether a GPU's kernels find and normalize the anchors and add the update, each in one launch.

        Not in compiled functions, whose compiler fuses what stands around attention itself.
        """
        if torch.compiler.is_compiling():
            return False
        norm, dropout = self.layer_norm, self.dropout
        plain = type(norm) is nn.LayerNorm and type(dropout) is nn.Dropout
        return (
            self.queries == self.keys == "anchors"
            and plain
            and not (is_watched(norm) or is_watched(dropout))
            and (dropout.p == 0 or not dropout.training)
            and hidden.numel() > 0
            and hidden.stride(1) == 1
            and (rows is None or (len(rows) > 0 and rows.dtype == torch.int64 and rows.device == hidden.device))
            and len(offsets) > 1
            and offsets.device == hidden.device
            and norm.normalized_shape == (hidden.shape[1],)
            and hidden.shape[1] <= LARGEST_ROW
            and not needs_gradient(hidden, *self.parameters())
            and takes(hidden, norm.weight, norm.bias, self.gate)
        )

    def _normalized_anchors(
        self, hidden: Tensor, offsets: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same as `_normalized` in one launch; rows of documents without a token are -1."""
        from spanbert_kernels.ops.cross_document_attention.triton_sublayer import normalized_anchors

        norm = self.layer_norm
        places, anchors = normalized_anchors(hidden, offsets, self.anchor, rows, norm.weight, norm.bias, norm.eps)
        return places, anchors, anchors

    def _add_in_place(self, mixed: Tensor, places: Tensor, update: Tensor) -> None:
        from spanbert_kernels.ops.cross_document_attention.triton_sublayer import add_update

        add_update(mixed, places, update, self.gate)
        if not mixed.is_inference():
            torch.autograd.graph.increment_version(mixed)

    def _sight_of(
        self,
        plan: ops.AttentionPlan | ops.DistributedPlan,
        cu_clusters: Tensor | None,
        links: tuple[Tensor, Tensor] | None,
    ) -> dict[str, Any]:
        if (plan.queries, plan.keys, plan.include_self) != (self.queries, self.keys, self.include_self):
            raise ValueError(
                f"the plan is one of {plan.queries} x {plan.keys} with include_self={plan.include_self}, "
                f"the mixer of {self.queries} x {self.keys} with include_self={self.include_self}"
            )
        return {"cu_seqlens": plan, "cu_clusters": cu_clusters, "links": links}

    def _normalized(
        self, hidden: Tensor, cu_seqlens: Tensor, rows: Tensor | None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Rows of `hidden` that get the update (None: all), and the LayerNorm of the query rows and of the key rows."""
        normalized: dict[str, Tensor] = {}
        updated: dict[str, Tensor | None] = {"tokens": rows}
        if "anchors" in (self.queries, self.keys):
            # gathered first, so that D rows are normalised and projected, not T
            updated["anchors"], anchors = _gather_anchors(hidden, ops.anchor_indices(cu_seqlens, self.anchor), rows)
            normalized["anchors"] = self.layer_norm(anchors)
        if "tokens" in (self.queries, self.keys):
            normalized["tokens"] = self.layer_norm(hidden if rows is None else hidden.index_select(0, rows))
        return updated[self.queries], normalized[self.queries], normalized[self.keys]

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.num_heads, -1))

    def extra_repr(self) -> str:
        """The choices that are not seen in the submodules."""
        return (
            f"queries={self.queries}, keys={self.keys}, include_self={self.include_self}, "
            f"normalize={self.normalize}, anchor={self.anchor}"
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises `ValueError`, naming the value, if it is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _gather_anchors(hidden: Tensor, anchors: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """The row of `hidden` of each document's anchor (int64 `[D]`) and what stands there (`[D, H]`).

    A document without a token gets row 0 and zeros: what really stands in that row is not its own.
    """
    anchor_rows = anchors.clamp(min=0)
    num_tokens = hidden.shape[0] if rows is None else rows.shape[0]
    if num_tokens == 0:
        return anchor_rows, hidden.new_zeros(anchors.shape[0], hidden.shape[1])
    if rows is not None:
        anchor_rows = rows[anchor_rows]
    gathered = hidden.index_select(0, anchor_rows)
    return anchor_rows, gathered.masked_fill((anchors < 0).unsqueeze(1), 0.0)
