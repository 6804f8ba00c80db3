"""The runner of other packages' own tests, on folders with a few tests of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers import run, stand_ins

# The second test fails on an accelerated model, whose states at padding are 0; the third on any.
TESTS = """
import torch
from transformers import BertConfig, BertModel

MASK = torch.tensor([[1, 1, 0]])


def states():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with torch.no_grad():
        return BertModel(config).eval()(torch.tensor([[2, 3, 0]]), MASK).last_hidden_state


def test_real():
    assert states()[0, 0].abs().sum() > 0


def test_padding():
    assert states()[0, 2].abs().sum() > 0


def test_false():
    assert False
"""


@pytest.mark.parametrize("named", [[], ["nowhere"]])
def test_without_a_folder_it_says_what_it_wants(named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(named) == 2
    said = capsys.readouterr().err
    assert "PEERS must name a folder of transformers' sources that has tests/models/<family>/test_modeling_*.py" in said
    assert ("nowhere has none" in said) == bool(named)


def test_a_checkout_is_known_by_its_tests(tmp_path: Path) -> None:
    assert stand_ins.checkout_at(tmp_path) is None
    for checkout in stand_ins.CHECKOUTS:
        folder = tmp_path / checkout.name
        (folder / checkout.tests).mkdir(parents=True)
        assert stand_ins.checkout_at(folder) == checkout


def test_a_package_that_is_needed_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = stand_ins.Checkout("peer", "tests", "peers.plugin", 1, needs="no_such_package")
    python = tmp_path / "python"
    monkeypatch.setattr(stand_ins, "INTEGRATIONS", python)
    assert not stand_ins.run(tmp_path, checkout)
    assert "no_such_package is not installed here" in capsys.readouterr().out
    python.touch()
    assert stand_ins.interpreter(checkout) == str(python)


@pytest.mark.slow
@pytest.mark.parametrize(("bodies", "passes"), [(21, True), (20, False)])
def test_all_of_a_checkout_must_pass_on_ours(bodies: int, passes: bool, tmp_path: Path) -> None:
    """Too few tests are no proof; and the package that they import is not the one beside them."""
    folder = tmp_path / "tests" / "modules" / "span_extractors"
    folder.mkdir(parents=True)
    (tmp_path / "allennlp").mkdir()
    (tmp_path / "allennlp" / "__init__.py").write_text("raise ImportError")
    test = (
        "def test_{0}():\n    assert SpanExtractor.from_params(Params(type='endpoint', input_dim=4, combination='x'))\n"
    )
    text = "from allennlp.common.params import Params\nfrom allennlp.modules.span_extractors import SpanExtractor\n"
    (folder / "some_test.py").write_text(text + "".join(map(test.format, range(bodies))))
    assert run.main([str(tmp_path)]) == (0 if passes else 1)
    (folder / "some_test.py").write_text(text + "def test_false():\n    assert False\n")
    assert run.main([str(tmp_path)]) == 1


@pytest.mark.slow
def test_what_fails_only_when_accelerated_is_a_new_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tests" / "models" / "bert"
    folder.mkdir(parents=True)
    (folder / "test_modeling_bert.py").write_text(TESTS)
    assert run.main([str(tmp_path), "t5"]) == 2
    assert "no family t5; there are bert" in capfd.readouterr().err
    assert run.main([str(tmp_path), "bert"]) == 1
    said = capfd.readouterr().out
    assert "bert: 1 passed, 2 failed, 0 skipped; 2 of 2 calls packed" in said
    failure = "bert: tests/models/bert/test_modeling_bert.py::test_padding: passed before, failed now"
    assert said.splitlines()[-2:] == [failure, "1 families, 1 new failures"]
    assert run.main([str(tmp_path), "-k", "real"]) == 0
    (folder / "test_modeling_bert.py").write_text("def test_nothing(): pass")
    assert run.main([str(tmp_path), "bert"]) == 1
    assert "bert: not one call was packed" in capfd.readouterr().out
