"""The table of other packages' span layers: every row leads to its replacement, and all can be taken out again."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from agreement import encoder
from torch import Tensor, nn

from spanbert_kernels import accelerate, restore
from spanbert_kernels.acceleration import AccelerationWarning, span_layers
from spanbert_kernels.acceleration.span_layers import SPAN_LAYERS, OriginalPath, Replacement


def test_every_row_leads_to_a_replacement() -> None:
    for path, module in SPAN_LAYERS.items():
        found = [each for each in import_module(module).REPLACEMENTS if each.class_path == path]
        assert found, f"{module} has no replacement for {path}"
    known = {each.class_path for module in SPAN_LAYERS.values() for each in import_module(module).REPLACEMENTS}
    assert known == set(SPAN_LAYERS)


class Scorer(nn.Module):
    """A span layer of a package: a method, a helper of it, and a forward that calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def scale(self) -> Tensor:
        return self.weight

    def score(self, hidden: Tensor, *, twice: bool = False) -> Tensor:
        return (hidden * self.scale()).sum(-1) * (2 if twice else 1)

    def forward(self, hidden: Tensor, twice: bool = False) -> Tensor:
        return self.score(hidden, twice=twice)


class Plain(Scorer):
    """A subclass that changes nothing."""


class OtherScale(Scorer):
    def scale(self) -> Tensor:
        return -self.weight


def make(module: Any) -> Callable[..., Tensor]:
    def score(hidden: Tensor, *, twice: bool = False) -> Tensor:
        if twice:
            raise OriginalPath("twice was asked for")
        return hidden @ module.weight

    return score


PATH = f"{Scorer.__module__}.Scorer"
REPLACEMENT = Replacement(PATH, "a product", make, method="score", covers=("scale",))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def register(*replacements: Replacement) -> None:
        module = ModuleType("an_integration")
        module.REPLACEMENTS = replacements  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "an_integration", module)
        monkeypatch.setitem(SPAN_LAYERS, PATH, "an_integration")

    return register


HIDDEN = torch.tensor([[1.0, 1.0], [0.0, 4.0]])


@pytest.mark.parametrize("method", ["score", "forward"])
def test_a_method_beside_an_encoder(method: str, registered: Callable[..., None]) -> None:
    registered(Replacement(PATH, "a product", make, method=method, covers=("scale",)))
    model = nn.ModuleDict({"encoder": encoder(), "plain": Plain(), "other": OtherScale()})
    report = accelerate(model)
    assert str(report).splitlines()[:3] == [
        "accelerated: BertModel at 'encoder', 2 layers",
        "accelerated: Plain at 'plain', a product",
        "left as it is: OtherScale at 'other': OtherScale overrides scale",
    ]
    (stands,) = report.span_layers
    assert inspect.signature(getattr(model.plain, method)) == inspect.signature(getattr(Scorer(), method))
    assert model.plain(HIDDEN).tolist() == [5.0, 12.0]
    with pytest.warns(AccelerationWarning, match=rf"Plain.{method}: the package's own path ran: twice was asked for"):
        assert model.plain(HIDDEN, twice=True).tolist() == [10.0, 24.0]
    assert model.plain(HIDDEN, twice=True).tolist() == [10.0, 24.0]  # said once
    assert stands.calls == {"fused": 1, "original: twice was asked for": 2}
    assert stands.last_path == "original: twice was asked for"
    assert "calls of Plain: 2 original: twice was asked for" in str(report)
    assert accelerate(model).already
    assert accelerate(model).span_layers[0].forward is stands.forward
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.plain.weight.mul_(2)
    assert twin.plain(HIDDEN).tolist() == [10.0, 24.0]
    assert stands.calls["fused"] == 1
    restore(model)
    assert method not in model.plain.__dict__
    assert stands.calls["fused"] == 1
    assert accelerate(twin).already


def test_a_model_that_has_span_layers_alone(registered: Callable[..., None]) -> None:
    registered(REPLACEMENT)
    model = Scorer()
    report = accelerate(model)
    assert str(report) == "accelerated: Scorer, a product"
    assert (report.calls, report.last_path, report.missing, report.int8_error) == ({}, None, None, None)
    restore(model)
    with pytest.raises(ValueError, match="Scorer is not accelerated"):
        restore(model)


def test_compiled_exported_and_prepared_for_mixed_precision(registered: Callable[..., None]) -> None:
    """Where the compiler may break its graph ours runs; a whole graph is the package's own. Wrappers stay around."""
    from accelerate import Accelerator

    registered(Replacement(PATH, "a product", make, covers=("scale",)))
    model = Scorer()
    report = accelerate(model)
    assert torch.compile(model, backend="eager")(HIDDEN).tolist() == [5.0, 12.0]
    assert report.span_layers[0].calls == {"fused": 1}
    torch.compiler.reset()
    with pytest.warns(AccelerationWarning, match=r"Scorer\.forward: .* a whole graph was asked for"):
        assert torch.compile(model, backend="eager", fullgraph=True)(HIDDEN).tolist() == [5.0, 12.0]
    assert torch.export.export(model, (HIDDEN,)).module()(HIDDEN).tolist() == [5.0, 12.0]
    assert report.span_layers[0].calls == {"fused": 1}
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    assert prepared(HIDDEN).tolist() == [5.0, 12.0]
    assert report.span_layers[0].calls == {"fused": 2}
    restore(model)
    assert prepared(HIDDEN).tolist() == [5.0, 12.0]
    assert report.span_layers[0].calls == {"fused": 2}
    assert accelerate(model).span_layers[0].calls == {}
    prepared(HIDDEN)
    assert accelerate(model).span_layers[0].calls == {"fused": 1}


def replaced(model: Scorer) -> Scorer:
    model.score = lambda hidden, twice=False: hidden.sum(-1)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    ("build", "replacement", "reason"),
    [
        (lambda: replaced(Scorer()), REPLACEMENT, "its score has been replaced already"),
        (
            Scorer,
            Replacement(PATH, "a product", make, method="score", covers=("scale", "shift")),
            "Scorer has no shift",
        ),
        (
            Scorer,
            Replacement(PATH, "a product", make, "score", refusal=lambda module: "it is Tuesday"),
            "it is Tuesday",
        ),
    ],
    ids=["replaced", "another version", "its own refusal"],
)
def test_what_stays_as_it_is_and_why(
    build: Callable[[], Any], replacement: Replacement, reason: str, registered: Callable[..., None]
) -> None:
    registered(replacement)
    with pytest.raises(ValueError, match=f"Scorer has nothing to accelerate: {reason}"):
        accelerate(build())


def test_the_error_lists_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"no span layer that is known .*spert\.models\.SpERT"):
        accelerate(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("ours", "reason"),
    [
        (lambda: [torch.tensor(1.001)], None),
        (lambda: [torch.tensor(1.3)], "it computes something else than the package's"),
        (lambda: [torch.tensor(1.0), torch.tensor(1.0)], "on a small input it raised ValueError: zip"),
        (lambda: 1 / 0, "on a small input it raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_probe(ours: Callable[[], Any], reason: str | None) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(1.0).eval()).train()
    module[1].eval()

    def own() -> list[Tensor]:
        assert not any(each.training for each in module.modules())
        return [torch.tensor(1.0)]

    found = span_layers.probe_refusal(module, own, ours)
    assert found is None if reason is None else found is not None and found.startswith(reason)
    assert [each.training for each in module.modules()] == [True, True, False]
