"""One encoder layer on packed tokens, through the layer's own modules: autograd, any device and dtype, autocast."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.attention import Batch, attend, attend_jointly, sees_alone
from spanbert_kernels.acceleration.linears import is_exact_gelu
from spanbert_kernels.acceleration.on_gpu import PLAIN
from spanbert_kernels.acceleration.parts import EncoderParts, LayerParts, eps_of
from spanbert_kernels.acceleration.stand_ins import is_read
from spanbert_kernels.nn.feed_forward import feed_forward
from spanbert_kernels.ops import products
from spanbert_kernels.ops.dropout_add_layer_norm.operators import LARGEST_ROW
from spanbert_kernels.ops.on_gpu import is_on_gpu, takes


def run_layers(encoder: EncoderParts, first: int, last: int, hidden: Tensor, batch: Batch) -> Tensor:
    """Layers first .. last - 1, and the norm after the last of all: `hidden [T, H]` -> `[T, H]`."""
    for parts in encoder.layers[first:last]:
        hidden = run_layer(parts, hidden, batch)
    return _normalized(encoder.norm_after(last), hidden)


def run_layer(parts: LayerParts, hidden: Tensor, batch: Batch) -> Tensor:
    """`hidden [T, H]` -> `[T, H]`, recomputed in the backward where gradient checkpointing is on."""
    layer = parts.layer
    compute = partial(_compute, parts, batch)
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        compute = partial(layer._gradient_checkpointing_func, compute)
    if not parts.sharded:
        return compute(hidden)
    # Called as a module, so that its hooks bring the weights, and take them away again.
    layer.forward = compute
    try:
        result: Tensor = nn.Module.__call__(layer, hidden)
    finally:
        del layer.forward
    return result


def _compute(parts: LayerParts, batch: Batch, hidden: Tensor) -> Tensor:
    given = _normalized(parts.norm_before(parts.attention_norm), hidden)
    joint, dropout_p = _jointly_projected(parts, given), parts.attention_dropout_p
    if joint is not None and sees_alone(parts, joint, batch):
        context = attend_jointly(parts, joint, batch, dropout_p=dropout_p)
    else:
        apart = parts.projections(_linear, given) if joint is None else joint.unbind(1)
        query, key, value = (each.view(-1, parts.heads, parts.head_dim) for each in apart)
        relative = None if parts.relative is None else parts.relative.terms(_linear)
        context = attend(parts, query, key, value, batch, relative, dropout_p=dropout_p)
    dense = _linear(parts.dense, context)
    attended = _finish(parts.attention_output_dropout, parts.norm_after(parts.attention_norm), dense, hidden)
    if parts.chunk_size == 0:
        return _feed_forward(parts, attended)
    rows = parts.chunk_size * batch.packing.batch
    return torch.cat([_feed_forward(parts, part) for part in attended.split(rows)])


def _jointly_projected(parts: LayerParts, given: Tensor) -> Tensor | None:
    """Query, key and value, `[T, 3, heads, head_dim]`, on a GPU: one product, whose input is read once."""
    projections = parts.projections
    apart = len(projections.linears) > 1 and all(map(is_read, projections.linears))
    if not (apart and is_on_gpu(given) and all(type(each) in PLAIN for each in projections.weights())):
        return None
    return F.linear(given, projections.weight(), projections.bias()).view(-1, 3, parts.heads, parts.head_dim)


def _feed_forward(parts: LayerParts, attended: Tensor) -> Tensor:
    given = _normalized(parts.norm_before(parts.norm), attended)
    up, down = parts.up, parts.down
    plain = is_exact_gelu(parts.activation) and not parts.gated and parts.inner_dropout is None
    if plain and all(map(is_read, (*up.linears, down))):
        (weight,), (bias,) = up.weights(), up.biases()
        if takes(given, weight, bias) or _keeps_float32(given, weight, bias):
            product = F.linear(given, weight)
            wide = ops.bias_gelu(product, None if bias is None else bias.to(product.dtype))
            narrow = F.linear(wide, down.weight, down.bias)
        else:
            narrow = feed_forward(given, weight, bias, down.weight, down.bias, "gelu")
    else:
        wide, *gate = up(_linear, given)
        wide = parts.activation(wide)
        wide = wide * gate[0] if gate else wide
        narrow = _linear(down, wide if parts.inner_dropout is None else parts.inner_dropout(wide))
    return _finish(parts.output_dropout, parts.norm_after(parts.norm), narrow, attended)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    """A product, or what stands in its place: layers whose modules have hooks do not come here."""
    return products.linear(x, module.weight, module.bias) if is_read(module) else module(x)


def _normalized(norm: nn.LayerNorm | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _keeps_float32(*given: Tensor | None) -> bool:
    """Whether autocast on a GPU leaves what becomes of these in float32, as it does with norms, or rounds products."""
    device = next(each.device for each in given if each is not None)
    if not torch.is_autocast_enabled(device.type):
        return False
    with torch.autocast(device.type, enabled=False):
        return all(each is None or each.dtype == torch.float32 for each in given) and takes(*given)


def _finish(dropout: nn.Dropout | None, norm: nn.LayerNorm | None, x: Tensor, residual: Tensor) -> Tensor:
    """`norm(dropout(x) + residual)`, in one pass where there is a kernel that takes it; without a norm, the sum."""
    if norm is None:
        return (x if dropout is None else dropout(x)) + residual
    if _keeps_float32(residual, norm.weight, norm.bias):
        with torch.autocast(x.device.type, enabled=False):
            return _finish(dropout, norm, x.float(), residual)
    dropout_p = dropout.p if dropout is not None and dropout.training else 0.0
    given = (x, residual, norm.weight, norm.bias)
    backend = ops.backends.asked() or ("cpu" if x.device.type == "cpu" else "triton")
    one_pass = (
        is_read(norm)
        and backend in ("cpu", "triton")
        and ops.backends.refusal(backend, x.device.type, x.dtype) is None
        and norm.weight is not None
        and {each.dtype for each in given if each is not None} == {x.dtype}
        and products.ordinary(*given)
        and dropout_p < 1
        and (backend == "cpu" or x.shape[1] <= LARGEST_ROW)
    )
    if not one_pass:
        normalized: Tensor = norm((x if dropout is None else dropout(x)) + residual)
        return normalized
    return ops.dropout_add_layer_norm(x, residual, norm.weight, norm.bias, dropout_p=dropout_p, eps=eps_of(norm))
