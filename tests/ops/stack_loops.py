"""One layer of encoder_stack by loops over documents, from its tensors one by one."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from distance_cases import by_distance_in_loops, scores_by_loop
from op_checks import Tensors
from torch import Tensor

from spanbert_kernels.ops import EncoderStack, RelativeTerms, encoder_stack
from spanbert_kernels.ops.encoder_stack import Attend, FeedForward, Merge, Norm, Normalize, Project, Rotary
from spanbert_kernels.ops.encoder_stack.reference import ACTIVATION_FUNCTIONS
from spanbert_kernels.ops.encoder_stack.steps import Activation

TABLES = ("bias", "keys", "queries")


class Layer(NamedTuple):
    """What a layer is beside its tensors."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    interleaved: bool
    activation: Activation
    norm: Norm

    def stack(self, tensors: Tensors) -> dict[str, Any]:
        """Arguments of `call`: the tensors of the batch, and the others as a stack."""
        given = {name: tensors.get(name) for name in ("gate", "index", *TABLES)}
        relative = RelativeTerms(*(given[name] for name in ("index", *TABLES))) if "index" in tensors else None  # type: ignore[arg-type]
        rotary = Rotary(tensors["cos"], tensors["sin"], self.interleaved) if "cos" in tensors else None
        attend = Attend(self.heads, self.head_dim, self.scale, self.window, relative, rotary, self.kv_heads)
        steps = [
            Project(tensors["project"], tensors["project_bias"]),
            attend,
            Merge(tensors["merge"], None),
            FeedForward(tensors["up"], None, tensors["down"], None, self.activation, given["gate"]),
            Normalize(tensors["norm"], None, 0.1, kind=self.norm),
        ]
        stack = EncoderStack(steps, tensors["hidden"].shape[1])
        return {"hidden": tensors["hidden"], "cu_seqlens": tensors["cu_seqlens"], "stack": stack}

    def heads_of(self, tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, turned, one of each for every head."""
        projected = tensors["hidden"] @ tensors["project"].T + tensors["project_bias"]
        parts = projected.unflatten(1, (-1, self.head_dim)).split((self.heads, self.kv_heads, self.kv_heads), 1)
        query, key, value = (part.repeat_interleave(self.heads // part.shape[1], 1) for part in parts)
        if "cos" in tensors:
            lengths = tensors["cu_seqlens"].diff().tolist()
            places = [place for length in lengths for place in range(length)]
            query, key = (self.turned(x, tensors["cos"][places], tensors["sin"][places]) for x in (query, key))
        return query, key, value

    def turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half, columns = self.head_dim // 2, []
        for column in range(self.head_dim):
            if self.interleaved:
                across = -x[..., column + 1] if column % 2 == 0 else x[..., column - 1]
            else:
                across = -x[..., column + half] if column < half else x[..., column - half]
            columns.append(x[..., column] * cos[:, None, column] + across * sin[:, None, column])
        return torch.stack(columns, -1)

    def by_loop(self, **tensors: Tensor) -> Tensor:
        with torch.no_grad():
            tables = {name: tensors[name] for name in ("index", *TABLES) if name in tensors}
            (attended,) = by_distance_in_loops(
                *self.heads_of(tensors),
                tensors["cu_seqlens"],
                scale=self.scale,
                window=self.window,
                return_lse=False,
                **tables,
            )
            stream = tensors["hidden"] + attended.flatten(1) @ tensors["merge"].T
            wide = ACTIVATION_FUNCTIONS[self.activation](stream @ tensors["up"].T)
            wide = wide * (stream @ tensors["gate"].T) if "gate" in tensors else wide
            stream = stream + wide @ tensors["down"].T
            centred = stream - stream.mean(1, keepdim=True) if self.norm == "layer" else stream
            return centred / (centred.square().mean(1, keepdim=True) + 0.1).sqrt() * tensors["norm"]

    def logits(self, tensors: Tensors) -> float:
        """The largest logit without its terms' signs."""
        sizes = {name: tensor.abs() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        query, key, _ = self.heads_of({name: size for name, size in sizes.items() if name != "cos"})
        turns = 4 if "cos" in tensors else 1  # of two columns each, both of them
        most, tables = 0.0, [sizes.get(name) for name in ("index", *TABLES)]
        for begin, end in itertools.pairwise(tensors["cu_seqlens"].tolist()):
            if begin < end:
                scores = scores_by_loop(query[begin:end], key[begin:end], self.scale, None, *tables)
                most = max(most, turns * float(scores.max()))
        return most


def call(**arguments: Any) -> Tensor:
    with torch.no_grad():
        return encoder_stack(**arguments)
