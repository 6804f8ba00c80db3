"""spaCy's span categoriser with our suggester, architecture and reducer: its spans, scores, gradients and saved models.

`make test-integrations` installs spaCy.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings there

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"spacy_architectures": "architectures", "thinc_layers": "layers", "spacy_misc": "misc"}
WIDTHS = [1, 3, 2]
LENGTHS = [7, 1, 0, 12]


def entry_points() -> dict[str, dict[str, str]]:
    """What this package tells spaCy of itself where it is installed: names of a config and the functions they mean."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    return {group: found[group] for group in GROUPS}


def function_of(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def test_every_name_of_a_config_is_a_function() -> None:
    for names in entry_points().values():
        for name, path in names.items():
            assert name.startswith("spanbert_kernels.")
            assert callable(function_of(path))


@pytest.fixture
def spacy() -> Any:
    """spaCy, with the names of this source tree whether or not it is installed."""
    package = pytest.importorskip("spacy")
    from spacy.util import registry

    for group, names in entry_points().items():
        for name, path in names.items():
            getattr(registry, GROUPS[group]).register(name, func=function_of(path))
    return package


@pytest.fixture
def layers(spacy: Any) -> Any:
    from thinc import api

    return api


def blank(spacy: Any, length: int) -> Any:
    return spacy.tokens.Doc(spacy.vocab.Vocab(), words=["word"] * length)


@pytest.mark.parametrize("lengths", [LENGTHS, [0, 0], [], [2, 2]])
@pytest.mark.parametrize("sizes", [WIDTHS, [5], [], [20, 1]])
def test_the_same_suggestions_in_the_same_order(spacy: Any, lengths: list[int], sizes: list[int]) -> None:
    from spacy.util import registry

    docs = [blank(spacy, length) for length in lengths]
    expected, found = (
        registry.get("misc", f"{package}.ngram_suggester.v1")(sizes)(docs) for package in ("spacy", "spanbert_kernels")
    )
    for name in ("dataXd", "lengths"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_suggestions_of_a_range(spacy: Any) -> None:
    from spacy.util import registry

    found = registry.get("misc", "spanbert_kernels.ngram_range_suggester.v1")(2, 3)([blank(spacy, 4)])
    assert found.dataXd.tolist() == [[0, 2], [1, 3], [2, 4], [0, 3], [1, 4]]


def reducers(api: Any) -> dict[str, Callable[[], Any]]:
    from spacy.ml.models.spancat import build_mean_max_reducer

    return {
        "spaCy's": lambda: build_mean_max_reducer(6),
        "ours": lambda: function_of(entry_points()["thinc_layers"]["spanbert_kernels.mean_max_reducer.v1"])(6),
        "one part": api.reduce_mean,
        "largest, then a layer": lambda: api.chain(api.reduce_max(), api.Maxout(6, nP=2)),
        "other parts": lambda: api.concatenate(api.reduce_sum(), api.reduce_first()),
        "a part twice": lambda: api.concatenate(api.reduce_mean(), api.reduce_mean()),
        "something else": lambda: api.chain(api.with_array(api.Linear(6)), api.reduce_max()),
    }


@pytest.mark.parametrize("widths", [WIDTHS, [4]], ids=["more spans than tokens", "fewer"])
@pytest.mark.parametrize(
    "name",
    ["spaCy's", "ours", "one part", "largest, then a layer", "other parts", "a part twice", "something else"],
)
def test_values_and_gradients_of_reducers(layers: Any, name: str, widths: list[int]) -> None:
    from spacy.ml.models.spancat import build_spancat_model
    from thinc.types import Ragged

    from spanbert_kernels.integrations.spacy import span_categorizer, spans_of_widths

    layers.fix_random_seed(0)
    generator = np.random.default_rng(0)
    lengths = np.array(LENGTHS, dtype=np.int32)
    vectors = [generator.standard_normal((length, 8), dtype=np.float32) for length in LENGTHS]
    spans = Ragged(*spans_of_widths(lengths.astype(np.int64), np.array(widths)))
    models = {}
    for build in (build_spancat_model, span_categorizer):
        tokens = layers.chain(layers.with_array(layers.Linear(8, 8)), layers.noop())
        theirs = reducers(layers)["spaCy's" if name == "ours" and build is build_spancat_model else name]()
        models[build] = build(tokens, theirs, layers.Linear(3)).initialize(X=(vectors, spans))
    original, ours = models.values()
    ours.from_bytes(original.to_bytes())
    assert [node.name for node in ours.walk()] == [node.name for node in original.walk()]
    results = []
    for model in (original, ours):
        scores, backprop = model.begin_update((vectors, spans))
        given = backprop(np.random.default_rng(1).standard_normal(scores.shape, dtype=np.float32))[0]
        grads = [node.get_grad(each) for node in model.walk() for each in node.param_names]
        results.append([scores, model.predict((vectors, spans)), *given, *grads])
    for expected, found in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_is_read_where_it_stands(layers: Any) -> None:
    """Spans are not copied out where the reducer begins with thinc's own reductions."""
    from spanbert_kernels.integrations.spacy import pool_in_place

    found = {name: pool_in_place(build()) for name, build in reducers(layers).items()}
    assert [name for name, in_place in found.items() if not in_place] == ["a part twice", "something else"]


def test_our_reducer_in_spacys_architecture(layers: Any) -> None:
    """It is given spans that were copied out."""
    from thinc.types import Ragged

    layers.fix_random_seed(0)
    data = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
    results = []
    for name in ("spaCy's", "ours"):
        model = reducers(layers)[name]()
        model.initialize(X=Ragged(data, np.array([1, 3, 2], dtype=np.int32)))
        if results:
            model.from_bytes(results[0][0])
        pooled, backprop = model.begin_update(Ragged(data, np.array([1, 3, 2], dtype=np.int32)))
        given = backprop(pooled)
        results.append((model.to_bytes(), pooled, given.dataXd))
        assert given.lengths.tolist() == [1, 3, 2]
    for expected, found in zip(results[0][1:], results[1][1:], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_spans_outside_the_tokens_are_refused(layers: Any) -> None:
    from thinc.types import Ragged

    from spanbert_kernels.integrations.spacy import span_categorizer

    model = span_categorizer(layers.noop(), layers.reduce_max(), layers.noop())
    spans = Ragged(np.array([[2, 5]], dtype=np.int32), np.array([1], dtype=np.int32))
    with pytest.raises(ValueError, match="span 0 covers tokens 2 to 4, but there are 3 tokens"):
        model.predict(([np.zeros((3, 2), dtype=np.float32)], spans))


CONFIG = """
[nlp]
lang = "en"
pipeline = ["spancat"]

[components]

[components.spancat]
factory = "spancat"
spans_key = "sc"

[components.spancat.suggester]
@misc = "spacy.ngram_suggester.v1"
sizes = [1, 2]

[components.spancat.model]
@architectures = "spacy.SpanCategorizer.v1"
scorer = {"@layers": "spacy.LinearLogistic.v1"}

[components.spancat.model.reducer]
@layers = "spacy.mean_max_reducer.v1"
hidden_size = 16

[components.spancat.model.tok2vec]
@architectures = "spacy.HashEmbedCNN.v2"
pretrained_vectors = null
width = 16
depth = 1
embed_size = 100
window_size = 1
maxout_pieces = 2
subword_features = true
"""
TEXTS = {
    "Anna Smith works at Acme in Paris": [(0, 2, "PERSON"), (4, 5, "COMPANY"), (6, 7, "PLACE")],
    "Bob lives in New York": [(0, 1, "PERSON"), (3, 5, "PLACE")],
    "cats sleep": [],
}


def trained(spacy: Any, config: str) -> tuple[Any, list[float], dict[str, Any]]:
    spacy.util.fix_random_seed(0)
    nlp = spacy.util.load_model_from_config(spacy.util.Config().from_str(config), auto_fill=True)
    examples = []
    for text, spans in TEXTS.items():
        reference = nlp.make_doc(text)
        reference.spans["sc"] = [spacy.tokens.Span(reference, *each) for each in spans]
        examples.append(spacy.training.Example(nlp.make_doc(text), reference))
    optimizer = nlp.initialize(lambda: examples)
    losses = [nlp.update(examples, sgd=optimizer)["spancat"] for _ in range(30)]
    return nlp, losses, nlp.evaluate(examples)


def entities(nlp: Any) -> list[Any]:
    docs = list(nlp.pipe(TEXTS))
    return [[(span.start, span.end, span.label_) for span in doc.spans["sc"]] for doc in docs]


def test_a_pipeline_trains_to_the_same_scores_and_saved_models_are_exchanged(spacy: Any, tmp_path: Path) -> None:
    theirs, expected_losses, expected = trained(spacy, CONFIG)
    ours, losses, scores = trained(
        spacy,
        CONFIG.replace("spacy.ngram", "spanbert_kernels.ngram").replace(
            "spacy.SpanCategorizer", "spanbert_kernels.SpanCategorizer"
        ),
    )
    assert expected["spans_sc_f"] > 0.9
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    assert entities(ours) == entities(theirs)
    assert [scores[f"spans_sc_{each}"] for each in "prf"] == [expected[f"spans_sc_{each}"] for each in "prf"]
    ours.to_disk(tmp_path / "ours")
    assert entities(spacy.load(tmp_path / "ours")) == entities(theirs)
    for one, other in ((theirs, ours), (ours, theirs)):
        saved = one.get_pipe("spancat").model.to_bytes()
        assert other.get_pipe("spancat").model.from_bytes(saved).to_bytes() == saved
    assert entities(theirs) == entities(ours)
