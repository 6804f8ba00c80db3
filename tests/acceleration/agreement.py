"""Tiny models, padded batches, and the rules by which accelerated results are compared with transformers' own."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from spanbert_kernels import accelerate
from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.acceleration.families import FAMILIES
from spanbert_kernels.acceleration.family import Family
from spanbert_kernels.testing import assert_as_exact_as_eager, deviation

Result = TypeVar("Result")
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "embedding_size": 16,
    "input_embedding_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "pad_token_id": 1,
    "num_labels": 3,
    "use_task_id": True,
    # Ten times BERT's: attention that is nearly uniform would hide mistakes.
    "initializer_range": 0.2,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# What some configurations call these: by the module of their model.
OTHER_NAMES = {
    "distilbert": {
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    },
    "modernbert": {"hidden_act": "hidden_activation", "attention_probs_dropout_prob": "attention_dropout"},
}
# What a configuration needs beside, so that its model has all that the family may have.
OWN_OPTIONS: dict[str, dict[str, Any]] = {
    "deberta_v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True,
        "position_buckets": 4,
        "max_relative_positions": 6,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
    },
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 6},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2, "norm_bias": True},
}
# Every row of the table that this version of transformers has, by the name of its folder there.
ROWS: dict[str, Family] = {
    family.module.split(".")[2].replace("_", "-"): family
    for family in FAMILIES
    if find_spec(family.module.rpartition(".")[0]) is not None
}
ENCODERS: dict[str, type[PreTrainedModel]] = {
    name: getattr(import_module(family.module), family.model_class) for name, family in ROWS.items()
}
# Those that are BERT in all but their positions, heads and outputs.
LIKE_BERT = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec", "electra")
BATCH, LENGTH = 4, 11
# Which tokens of each row are real: lengths, or a mask of its own for padding inside.
PADDING: dict[str, Tensor] = {
    "right": torch.tensor([[c < n for c in range(LENGTH)] for n in (11, 3, 7, 1)]),
    "left": torch.tensor([[c >= LENGTH - n for c in range(LENGTH)] for n in (11, 3, 7, 1)]),
    "middle": torch.tensor([[c == 0 or (c * 7 + r) % 3 > 0 for c in range(LENGTH)] for r in range(BATCH)]),
    "none": torch.ones(BATCH, LENGTH, dtype=torch.bool),
    "empty row": torch.tensor([[c < n for c in range(LENGTH)] for n in (5, 0, 11, 2)]),
}


def seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    """A model built from a fixed seed, its biases and LayerNorms random too."""
    torch.manual_seed(seed)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def encoder(name: str = "bert", **options: Any) -> Any:
    """A tiny encoder of a family, in eval mode."""
    return head(ENCODERS[name], **options)


def head(model_class: type[PreTrainedModel], **options: Any) -> Any:
    """A tiny model of a class, in eval mode."""
    folder = model_class.__module__.split(".")[2]
    names, own = OTHER_NAMES.get(folder, {}), OWN_OPTIONS.get(folder, {})
    renamed = {names.get(name, name): value for name, value in {**TINY, **own, **options}.items()}
    return seeded(lambda: model_class(model_class.config_class(**renamed))).eval()  # type: ignore[misc]


def inputs(mask: Tensor, seed: int = 1) -> dict[str, Tensor]:
    """Ids whose padding is the padding id, 0/1 token types, and the mask as transformers' tokenizers give it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, TINY["vocab_size"], mask.shape, generator=generator)
    return {
        "input_ids": torch.where(mask, ids, TINY["pad_token_id"]),
        "attention_mask": mask.long(),
        "token_type_ids": torch.randint(0, 2, mask.shape, generator=generator),
    }


def inputs_of(model: nn.Module, mask: Tensor, seed: int = 1) -> dict[str, Tensor]:
    """The inputs that a model's forward names: `inputs`, task types and boxes among them."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 50, (*mask.shape, 2, 2), generator=generator).sort(2).values
    given = {
        **inputs(mask, seed),
        "task_type_ids": torch.randint(0, 3, mask.shape, generator=generator),
        "bbox": corners.flatten(2),
    }
    return {name: given[name] for name in inspect.signature(model.forward).parameters if name in given}


def in_float64(model: nn.Module) -> Any:
    """The reference: the same weights, in double precision."""
    return copy.deepcopy(model).double()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter that has one, by name."""
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def drawn_again(run: Callable[[], Result], draws: int = 4) -> list[Result]:
    """What a model gives whose linear layers add up their columns in other orders: equal but for rounding.

    One draw of rounding errors can be a lucky one.
    """
    original, found = F.linear, []
    for seed in range(draws):

        def shuffled(x: Tensor, weight: Tensor, bias: Tensor | None = None, seed: int = seed) -> Tensor:
            order = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(seed))
            return original(x[..., order], weight[:, order], bias)

        with mock.patch.object(F, "linear", shuffled):
            found.append(run())
    return found


def assert_agrees(result: Tensor, eager: Tensor, reference: Tensor, *more: Tensor) -> None:
    """The tolerance rule, against transformers' own path in the same dtype; of several draws the worst."""
    assert result.dtype == eager.dtype
    worst = max((eager, *more), key=lambda draw: deviation(draw, reference))
    assert_as_exact_as_eager(result, reference, worst)


def in_units(gradients: dict[str, Tensor], reference: dict[str, Tensor]) -> Tensor:
    """The errors of many tensors, each in units of its own largest value.

    A rounding error is only comparable over many numbers, and a bias has few. Two kinds of gradient are sums whose
    terms cancel, with errors of the terms' size, and are measured by a weight that sees the same terms: keys' biases
    shift all scores of a query alike, so that nothing but rounding is left; a gate scales its output projection, so
    that its gradient is a single inner product with that weight's.
    """
    assert gradients.keys() == reference.keys()
    measured_by = {n: n.replace("key.bias", "key.weight").replace(".gate", ".output.weight") for n in reference}
    units = {name: reference[measure].abs().max() for name, measure in measured_by.items()}
    assert all(unit > 0 for unit in units.values())
    return torch.cat([((gradients[n].double() - reference[n]) / units[n]).flatten() for n in units])


def assert_all_agree(result: dict[str, Tensor], eager: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    """The tolerance rule over many tensors at once."""
    dtypes = {tensor.dtype for tensor in result.values()}
    assert dtypes == {tensor.dtype for tensor in eager.values()}
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    difference, allowed = (in_units(way, reference).abs().max() for way in (result, eager))
    allowed = 2 * allowed + eps
    assert difference <= allowed, f"off by {difference:.3g}, allowed {allowed:.3g}"


def assert_draws_agree(draws: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]]) -> None:
    """The tolerance rule over several inputs, for gradients whose largest error is that of a few cancelling sums.

    Which draw has the largest error, and in which tensor, is chance: between two equally accurate ways (mean errors
    within 13 % of each other for every tensor, over 40 draws) one draw's largest errors differ by up to 3.7 times. The
    mean is therefore held to twice transformers' own without a rounding on top, and the largest to four times.
    """
    ours, theirs = (torch.cat([in_units(draw[way], draw[2]) for draw in draws]) for way in (0, 1))
    for size, factor in ((lambda errors: errors.square().mean().sqrt(), 2), (lambda errors: errors.abs().max(), 4)):
        assert size(ours) <= factor * size(theirs), f"off by {size(ours):.3g}, allowed {factor * size(theirs):.3g}"


def flatten(output: Any) -> list[Tensor]:
    """All tensors of an output, in order; a decoder's cache is left out."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else ()
    return [tensor for value in values for tensor in flatten(value)]


def assert_original(model: Any, reason: str, times: int = 2, **batch: Any) -> list[Tensor]:
    """`times` calls of the accelerated `model` equal transformers' own to the bit, with one warning in all."""
    expected = copy.deepcopy(model)
    for module in expected.modules():
        module.__dict__.pop("forward", None)
    report = accelerate(model)
    before = report.calls
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = [flatten(model(**batch)) for _ in range(times)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact = flatten(expected(**batch))
    for output in outputs:
        assert len(output) == len(exact) > 0
        assert all(torch.equal(a, b) for a, b in zip(output, exact, strict=True))
    ours = [str(each.message) for each in caught if each.category is AccelerationWarning]
    assert len(ours) == 1, ours
    assert "transformers' own path ran: " in ours[0]
    assert reason in ours[0]
    assert report.last_path == f"original: {ours[0].split('own path ran: ')[1]}"
    assert report.calls - before == {report.last_path: times}
    return outputs[0]


def exact(model: Any, path: str, **batch: Any) -> tuple[Any, Any]:
    """What the accelerated model and a copy of it return, in double precision; `path` is the one taken."""
    own = copy.deepcopy(model)
    for module in own.modules():
        module.__dict__.pop("forward", None)
    report = accelerate(model)
    result, expected = model(**batch), own(**batch)
    assert report.last_path is not None
    assert report.last_path.startswith(path)
    assert list(result) == list(expected)
    return (result, model), (expected, own)


def assert_equal(result: Tensor, expected: Tensor) -> None:
    """Up to rounding in double precision, beside what transformers computes in single precision."""
    assert result.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-10 * max(1.0, expected.abs().max().item()))


def without_pooler(model: Any) -> Any:
    """Where its pooler reads padding, an encoder takes transformers' own path."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def assert_same_training(model: Any, batch: dict[str, Tensor], mask: Tensor) -> None:
    """Values at real tokens, the pooler's output, and the gradient of every parameter."""
    (result, ours), (expected, own) = exact(model, "packed-training", **batch)
    weights = torch.randn(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    losses = []
    for output in (result, expected):
        hidden = output.last_hidden_state
        loss = (hidden.sin().sum(-1) * weights)[mask].sum()
        pooled = output.get("pooler_output")
        losses.append(loss if pooled is None else loss + pooled.sin().sum())
    assert_equal(result.last_hidden_state[mask], expected.last_hidden_state[mask])
    assert not result.last_hidden_state[~mask].any()
    found, wanted = gradients(ours, losses[0]), gradients(own, losses[1])
    assert found.keys() == wanted.keys()
    largest = max(each.abs().max().item() for each in wanted.values())
    for name, gradient in wanted.items():
        off = (found[name] - gradient).abs().max().item()
        assert off <= 1e-9 * largest, f"{name}: off by {off:.3g} of {largest:.3g}"


def in_double_precision(name: str, **options: Any) -> Any:
    """A model in training, without dropout."""
    model = encoder(name, **NO_DROPOUT, **options).double().train()
    return with_softmax_in_double_precision(model)


def with_softmax_in_double_precision(model: Any) -> Any:
    """Splinter's own attention has one in single precision, and does not say to others that it is not causal; so has
    LayoutLM's in older versions, which take no other by themselves.
    """
    for module in model.modules():
        if type(module).__name__ in ("SplinterSelfAttention", "LayoutLMSelfAttention"):
            module.config._attn_implementation, module.is_causal = "sdpa", False
    return model
