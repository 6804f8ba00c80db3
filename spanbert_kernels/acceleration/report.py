"""What `accelerate` replaced, what it left, and which paths have run since."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from spanbert_kernels.acceleration.attention import missing_kernels
from spanbert_kernels.acceleration.forward import TRAINING, PackedForward
from spanbert_kernels.acceleration.span_layers import SpanForward
from spanbert_kernels.ops.measured import made
from spanbert_kernels.ops.products import CHOICE


@dataclass(frozen=True)
class Replaced:
    """An encoder that now runs packed: its name in the model ("" is the model itself), class and layers."""

    name: str
    class_name: str
    layers: int
    forward: PackedForward

    def __str__(self) -> str:
        return f"{self.class_name}{_at(self.name)}, {self.layers} layer{'s' if self.layers != 1 else ''}"


@dataclass(frozen=True)
class ReplacedSpanLayer:
    """A span layer of another package that is computed in another way now: its name in the model, class and method."""

    name: str
    class_name: str
    forward: SpanForward

    @property
    def calls(self) -> Counter[str]:
        """How often each path has run so far: "fused", "original: <reason>"."""
        return self.forward.calls

    @property
    def last_path(self) -> str | None:
        """The path that the latest call took, None before the first."""
        return self.forward.last_path

    def __str__(self) -> str:
        return f"{self.class_name}{_at(self.name)}, {self.forward.replacement.what}"


@dataclass(frozen=True)
class Skipped:
    """An encoder or a span layer that was left as it is, and why."""

    name: str
    class_name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.class_name}{_at(self.name)}: {self.reason}"


@dataclass(frozen=True)
class AccelerationReport:
    """What `accelerate` did.

    Attributes:
        replaced: the encoders that run packed now.
        skipped: those that were left, with reasons.
        already: True if all of `replaced` and `span_layers` were accelerated before this call, which changed nothing.
        span_layers: the span layers of other packages that are computed in another way now.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from spanbert_kernels import accelerate
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = BertModel(config).eval()
        >>> report = accelerate(model)
        >>> with torch.no_grad():
        ...     _ = model(torch.tensor([[2, 3, 0]]), torch.tensor([[1, 1, 0]]))
        >>> dict(report.calls), report.replaced[0].class_name, report.skipped
        ({'packed-inference': 1}, 'BertModel', ())
    """

    replaced: tuple[Replaced, ...]
    skipped: tuple[Skipped, ...]
    already: bool
    span_layers: tuple[ReplacedSpanLayer, ...] = ()

    @property
    def calls(self) -> Counter[str]:
        """How often each path of the encoders has run: "packed-inference", "packed-training", "original: <reason>"."""
        return sum((replaced.forward.calls for replaced in self.replaced), Counter())

    @property
    def int8_error(self) -> float | None:
        """With `weights="int8"`: the largest change of a hidden state, as a share of the largest hidden state.

        It is that of the first call, against the float weights on the same tokens; None before it.
        """
        return max((e for each in self.replaced if (e := each.forward.int8_error) is not None), default=None)

    @property
    def missing(self) -> str | None:
        """What the encoders lack where they are now, and what that costs; None where they have compiled kernels."""
        found = (next(each.forward.model.parameters(), None) for each in self.replaced)
        lines = [missing_kernels(one.device, one.dtype) for one in found if one is not None]
        return next(filter(None, lines), None)

    @property
    def last_path(self) -> str | None:
        """The path that the latest call of an encoder took, None before the first."""
        forwards = [replaced.forward for replaced in self.replaced]
        return max(forwards, key=lambda forward: forward.last_serial).last_path if forwards else None

    def __str__(self) -> str:
        verb = "already accelerated" if self.already else "accelerated"
        lines = [f"{verb}: {each}" for each in (*self.replaced, *self.span_layers)]
        lines += [f"left as it is: {each}" for each in self.skipped]
        lines += [f"calls: {count} {path}" for path, count in self.calls.items()]
        for each in self.span_layers:
            lines += [f"calls of {each.class_name}: {count} {path}" for path, count in each.calls.items()]
        lines += [f"kept{_at(each.name)}: {kept}" for each in self.replaced if (kept := each.forward.kept) is not None]
        way = made().get(CHOICE.name)
        if way is not None and any(path.startswith(TRAINING) for path in self.calls):
            lines.append(f"products of training: {way}")
        if self.int8_error is not None:
            lines.append(f"int8 changed the hidden states by up to {self.int8_error:.3f} of the largest")
        return "\n".join([*lines, *([] if self.missing is None else [f"missing: {self.missing}"])])


def _at(name: str) -> str:
    return f" at {name!r}" if name else ""
