"""Span layers of other packages: which classes are known, and what stands in the place of their methods.

A package's module in `spanbert_kernels.integrations` says what its classes compute. It is imported by its name, once
such a class is met, so that nothing of the package is needed here.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from spanbert_kernels.acceleration import places, whole_graph
from spanbert_kernels.acceleration.forward import ORIGINAL, AccelerationWarning, next_serial

# A class by its dotted path, as its package's users import it -> the module whose REPLACEMENTS name it.
SPAN_LAYERS: dict[str, str] = {
    "entity.models.AlbertForEntity": "spanbert_kernels.integrations.pure",
    "entity.models.BertForEntity": "spanbert_kernels.integrations.pure",
    "gliner.modeling.span_rep.SpanRepLayer": "spanbert_kernels.integrations.gliner",
    "gliner2.layers.SpanMarkerV0": "spanbert_kernels.integrations.gliner2",
    "maverick.models.model_incr.Maverick_incr": "spanbert_kernels.integrations.maverick",
    "maverick.models.model_mes.Maverick_mes": "spanbert_kernels.integrations.maverick",
    "maverick.models.model_s2e.Maverick_s2e": "spanbert_kernels.integrations.maverick",
    "span_marker.modeling.SpanMarkerModel": "spanbert_kernels.integrations.span_marker",
    "fastcoref.coref_models.modeling_fcoref.FCorefModel": "spanbert_kernels.integrations.fastcoref",
    "fastcoref.coref_models.modeling_lingmess.LingMessModel": "spanbert_kernels.integrations.fastcoref",
    "model.CorefModel": "spanbert_kernels.integrations.coref_hoi",
    "modeling.S2E": "spanbert_kernels.integrations.s2e",
    "spert.models.SpERT": "spanbert_kernels.integrations.spert",
    "xcore.models.model_cross.xCoRe_system": "spanbert_kernels.integrations.maverick",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling": (
        "spanbert_kernels.integrations.sentence_transformers"
    ),
    "transformers.pipelines.document_question_answering.DocumentQuestionAnsweringPipeline": (
        "spanbert_kernels.integrations.question_answering"
    ),
    "transformers.pipelines.token_classification.TokenClassificationPipeline": (
        "spanbert_kernels.integrations.token_classification"
    ),
}

FUSED = "fused"
# Relative and absolute: of another formula the results differ by far more, by rounding in 16 bits hardly so much.
PROBE_TOLERANCE = 0.05


class OriginalPath(Exception):
    """Raised by what stands for a method: the package's own method has to take this call, and why."""


@dataclass(frozen=True)
class Replacement:
    """What stands in the place of a method of a class of another package.

    Attributes:
        class_path: the dotted path of the class; subclasses that do not change what is replaced count as well.
        what: what is computed in another way, in a few words.
        make: of a module, a function of the method's arguments that returns what the method would. It raises
            `OriginalPath` with a reason, before it changes anything, where the method itself has to run.
        method: the name of the method.
        covers: further methods whose work is done with it: the class must have them, and no subclass others.
        refusal: of a module, why it has to stay as it is, or None.
    """

    class_path: str
    what: str
    make: Callable[[Any], Callable[..., Any]]
    method: str = "forward"
    covers: tuple[str, ...] = ()
    refusal: Callable[[Any], str | None] = lambda module: None


def replacements_of(module: object) -> tuple[Replacement, ...]:
    """What there is for the class of a module, or of an object that holds some; empty for most.

    Example:
        >>> replacements_of(nn.Linear(1, 1))
        ()
    """
    for kind in type(module).__mro__:
        path = _path_of(kind)
        if path in SPAN_LAYERS:
            known: Iterable[Replacement] = import_module(SPAN_LAYERS[path]).REPLACEMENTS
            return tuple(each for each in known if each.class_path == path)
    return ()


def refusal(module: nn.Module, replacement: Replacement) -> str | None:
    """Why a replacement cannot stand in a module, or None."""
    own = next(kind for kind in type(module).__mro__ if _path_of(kind) == replacement.class_path)
    for name in (replacement.method, *replacement.covers):
        if not hasattr(own, name):
            return f"{own.__name__} has no {name}: it is of another version than is known"
        if getattr(type(module), name) is not getattr(own, name):
            return f"{type(module).__name__} overrides {name}"
        if name in module.__dict__ and (name != "forward" or places.refusal(module) is not None):
            return f"its {name} has been replaced already"
    return replacement.refusal(module)


def probe_refusal(
    module: nn.Module, own: Callable[[], Iterable[Tensor]], ours: Callable[[], Iterable[Tensor]]
) -> str | None:
    """Why a module's own way and ours are not the same, or None: both are run once on a small input, without dropout.

    For code that people copy and change, of which a dotted path says little.
    """
    training = {each: each.training for each in module.modules()}
    weight = next(module.parameters())
    # A model of 16 bits that adds numbers of float32 runs under autocast alone.
    half = weight.dtype in (torch.float16, torch.bfloat16)
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(weight.device.type, weight.dtype if half else None, enabled=half):
            pairs = list(zip(own(), ours(), strict=True))
        if all(torch.allclose(a.float(), b.float(), rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE) for a, b in pairs):
            return None
        return "it computes something else than the package's"
    except Exception as error:
        return f"on a small input it raised {type(error).__name__}: {error}"
    finally:
        for each, was in training.items():
            each.training = was


def _path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class SpanForward:
    """Stands as a method in one span layer. Copies and pickles go with the module.

    Attributes:
        module: the span layer.
        replacement: what stands in it.
        calls: how often each path ran: "fused", "original: <reason>".
        last_path: the path of the latest call, None before the first.
        last_serial: a number that grows with every call on any accelerated module.
    """

    def __init__(self, module: nn.Module, replacement: Replacement) -> None:
        self.module = module
        self.replacement = replacement
        self.calls: Counter[str] = Counter()
        self.last_path: str | None = None
        self.last_serial = 0
        self._warned: set[str] = set()
        self._prepare()

    def _prepare(self) -> None:
        # Made at the first call: a copy's module is not whole yet when this is copied.
        self._function: Callable[..., Any] | None = None
        # torch.compile breaks the graph here: data-dependent shapes and counters are not for tracing.
        self._run_uncompiled = torch.compiler.disable(self.run)

    def __getstate__(self) -> dict[str, Any]:
        place = replacements_of(self.module).index(self.replacement)
        seen = ("calls", "last_path", "last_serial", "_warned")
        return {"module": self.module, "place": place, **{name: self.__dict__[name] for name in seen}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        place = state.pop("place")
        self.__dict__.update(state)
        self.replacement = replacements_of(self.module)[place]
        self._prepare()

    @property
    def __func__(self) -> Any:
        """What wrappers take for the function of a bound method; copies of the module then run their own forward."""
        if self.replacement.method != "forward":
            raise AttributeError("__func__")
        return places.forward

    @property
    def __code__(self) -> CodeType:
        """Of the class's method; torch.export looks up where a forward was written."""
        code: CodeType = getattr(type(self.module), self.replacement.method).__code__
        return code

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    @property
    def original(self) -> Callable[..., Any]:
        """The method of the module's class, bound to the module."""
        method: Callable[..., Any] = getattr(type(self.module), self.replacement.method).__get__(self.module)
        return method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the method of the class returns."""
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return self.original(*args, **kwargs)
        if torch.compiler.is_compiling() and whole_graph.is_asked_for():
            whole_graph.say(self, "a whole graph was asked for (fullgraph=True)")
            return self.original(*args, **kwargs)
        return self._run_uncompiled(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        if self._function is None:
            self._function = self.replacement.make(self.module)
        try:
            result = self._function(*args, **kwargs)
        except OriginalPath as reason:
            said = str(reason)
        else:
            self._note(FUSED)
            return result
        result = self.original(*args, **kwargs)
        self._note(ORIGINAL + said)
        self.warn(said)
        return result

    def warn(self, reason: str) -> None:
        """Say once why the package's own path runs."""
        if reason not in self._warned:
            self._warned.add(reason)
            name = f"{type(self.module).__name__}.{self.replacement.method}"
            warnings.warn(f"{name}: the package's own path ran: {reason}", AccelerationWarning, stacklevel=3)

    def _note(self, path: str) -> None:
        self.calls[path] += 1
        self.last_path = path
        self.last_serial = next_serial()


def installed(module: nn.Module, method: str) -> SpanForward | None:
    """What stands as a method in a module, or None."""
    found = places.installed(module) if method == "forward" else module.__dict__.get(method)
    return found if isinstance(found, SpanForward) else None


def install(module: nn.Module, replacement: Replacement) -> SpanForward:
    """Let a replacement stand in a module that `refusal` accepts."""
    made = SpanForward(module, replacement)
    if replacement.method == "forward":
        places.install(module, made)
    else:
        module.__dict__[replacement.method] = made
    return made


def all_installed(module: nn.Module) -> Iterator[SpanForward]:
    """Everything that stands in a module."""
    found = (places.installed(module), *module.__dict__.values())
    yield from {id(each): each for each in found if isinstance(each, SpanForward)}.values()


def remove(module: nn.Module, stands: SpanForward) -> None:
    """Let a module have its class's method again."""
    if stands.replacement.method == "forward":
        places.remove(module)
    else:
        del module.__dict__[stands.replacement.method]
