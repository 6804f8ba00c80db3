"""Importing the package is cheap: nothing is loaded before it is used."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import children
import pytest

import spanbert_kernels
from spanbert_kernels import auto_classes, models

MakeConfig = Callable[..., models.SpanBERTConfig]


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(children.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_package_alone_loads_nothing() -> None:
    loaded = loaded_after("import spanbert_kernels")
    assert "spanbert_kernels" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "transformers", "triton", "spanbert_kernels.ops"})


def test_transformers_is_loaded_by_the_models_alone() -> None:
    loaded = loaded_after("from spanbert_kernels import accelerate, nn, ops, restore")
    assert {"torch", "spanbert_kernels.acceleration.install"} <= loaded
    assert loaded.isdisjoint({"transformers", "triton", "spanbert_kernels.models"})


ORDERS = {
    "transformers comes later": "import spanbert_kernels; assert not {'torch', 'transformers'} & {*sys.modules}",
    "transformers is there": "from transformers import AutoConfig; import spanbert_kernels",
}
LOAD = """
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoTokenizer
assert "spanbert_kernels.models" not in sys.modules
print(*(type(each.from_pretrained(sys.argv[1])).__name__ for each in (AutoTokenizer, AutoConfig, AutoModel)))
print(AutoModelForTokenClassification.from_pretrained(sys.argv[1]).bert.config.cross_document_layers)
"""


@pytest.mark.parametrize(
    "order", [pytest.param(order, marks=pytest.mark.slow if "there" in order else ()) for order in ORDERS]
)
def test_a_saved_model_loads_by_auto_classes(order: str, make_config: MakeConfig, tmp_path: Path) -> None:
    spanbert_kernels.SpanBERTForTokenClassification(make_config(cross_document_layers=[1])).save_pretrained(tmp_path)
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris"])}
    spanbert_kernels.SpanBERTTokenizer(vocab=vocabulary).save_pretrained(tmp_path)
    command = [sys.executable, "-c", f"import sys\n{ORDERS[order]}\n{LOAD}", str(tmp_path)]
    done = children.run(command, capture_output=True, text=True)
    assert done.stdout.split("\n") == ["SpanBERTTokenizer SpanBERTConfig SpanBERTModel", "[1]", ""], done.stderr


def test_every_configuration_is_announced() -> None:
    windowed = (models.WindowedSpanBERTConfig, models.WindowedSpanEncoderConfig)
    classes = (models.SpanBERTConfig, models.SpanEncoderConfig, *windowed)
    assert {each.model_type: each.__name__ for each in classes} == auto_classes.CONFIGURATIONS


def test_a_configuration_says_what_to_install(make_config: MakeConfig, tmp_path: Path) -> None:
    models.SpanBERTModel(make_config()).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["architectures"] == ["SpanBERTModel"]
    assert (said["model_type"], said["library_name"]) == ("spanbert", "spanbert_kernels")
    assert said["spanbert_kernels_version"] == spanbert_kernels.__version__
    (tmp_path / "config.json").write_text(json.dumps({**said, "spanbert_kernels_version": "0.0.1"}))
    loaded = models.SpanBERTConfig.from_pretrained(tmp_path)
    assert loaded.to_dict()["spanbert_kernels_version"] == spanbert_kernels.__version__
    assert not hasattr(loaded, "library_name")


def test_every_name_resolves() -> None:
    for name in spanbert_kernels.__all__:
        assert name in dir(spanbert_kernels)
        assert getattr(spanbert_kernels, name).__name__.split(".")[-1] == name
    with pytest.raises(AttributeError, match="module 'spanbert_kernels' has no attribute 'acelerate'"):
        _ = spanbert_kernels.acelerate
