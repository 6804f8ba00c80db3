"""Accelerated models in the hands of others: heads, pipelines, the Trainer's habits, compilers and exporters."""

from __future__ import annotations

import contextlib
import copy
import warnings
from typing import Any

import pytest
import torch
from agreement import (
    NO_DROPOUT,
    PADDING,
    TINY,
    assert_agrees,
    assert_original,
    encoder,
    gradients,
    head,
    in_float64,
    inputs,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    BertForMultipleChoice,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorWithFlattening,
    PreTrainedTokenizerFast,
    RobertaForSequenceClassification,
    pipeline,
)

from spanbert_kernels import accelerate, ops, restore
from spanbert_kernels.acceleration import AccelerationWarning

MASK = PADDING["right"]
WORDS = [f"w{i}" for i in range(TINY["vocab_size"] - 4)]
TEXTS = ["w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w10 w11", "w3 w1 w2 w40 w41"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS])}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]", pad_token="[PAD]", model_max_length=24)


def three(model: Any) -> tuple[Any, Any, Any]:
    """Accelerated, as it was, and in double precision."""
    accelerated = copy.deepcopy(model)
    accelerate(accelerated)
    return accelerated, model, in_float64(model)


def test_feature_extraction_pipeline(tokenizer: PreTrainedTokenizerFast) -> None:
    models = three(encoder())
    features: list[list[Tensor]] = []
    for model in models:
        extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
        with torch.no_grad():
            features.append([torch.tensor(one[0], dtype=model.dtype) for one in extract(TEXTS, batch_size=4)])
    assert models[0].forward.calls == {"packed-inference": 1}
    lengths = [len(tokenizer(text).input_ids) for text in TEXTS]
    assert_agrees(*(torch.cat([t[:n] for t, n in zip(one, lengths, strict=True)]) for one in features))


def test_token_classification_pipeline(tokenizer: PreTrainedTokenizerFast) -> None:
    models = three(head(BertForTokenClassification))
    found = []
    for model in models:
        classify = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
        found.append([entity for entities in classify(TEXTS, batch_size=4) for entity in entities])
    assert models[0].bert.forward.calls == {"packed-inference": 1}
    labels = [[(entity["word"], entity["entity"], entity["index"]) for entity in one] for one in found]
    assert labels[0] == labels[1] == labels[2]
    assert len(labels[0]) > len(TEXTS)
    scores = [torch.tensor([float(entity["score"]) for entity in one], dtype=torch.float64) for one in found]
    assert_agrees(scores[0].float(), scores[1].float(), scores[2])


def test_hidden_states_come_through_the_heads() -> None:
    results = three(head(BertForTokenClassification))
    with torch.no_grad():
        states = [model(**inputs(MASK), output_hidden_states=True).hidden_states for model in results]
        as_tuple = results[0](**inputs(MASK), output_hidden_states=True, return_dict=False)
    assert [len(each) for each in states] == [3, 3, 3]
    for ours, theirs, exact in zip(*states, strict=True):
        assert_agrees(ours[MASK], theirs[MASK], exact[MASK])
    assert isinstance(as_tuple, tuple)
    assert all(torch.equal(a, b) for a, b in zip(as_tuple[1], states[0], strict=True))
    assert results[0].bert.forward.calls == {"packed-inference": 2}


def test_the_encoder_of_a_head_called_by_itself() -> None:
    results = three(head(BertForTokenClassification))
    with torch.no_grad():
        states = [model.bert(**inputs(MASK)).last_hidden_state for model in results]
        logits = results[0](**inputs(MASK)).logits
        assert torch.equal(logits, results[0].classifier(states[0]))
    assert_agrees(*(each[MASK] for each in states))


def test_heads_over_the_pooler() -> None:
    choices = {name: value.view(2, 2, -1) for name, value in inputs(MASK).items()}
    for model_class, batch in ((BertForMultipleChoice, choices), (BertForPreTraining, inputs(MASK))):
        results = three(head(model_class))
        with torch.no_grad():
            outputs = [model(**batch) for model in results]
        assert results[0].bert.forward.calls == {"packed-inference": 1}
        if model_class is BertForMultipleChoice:
            assert_agrees(*(output.logits for output in outputs))
        else:
            assert_agrees(*(output.prediction_logits[MASK] for output in outputs))
            assert_agrees(*(output.seq_relationship_logits for output in outputs))


def test_an_encoder_among_other_modules() -> None:
    """A model of the user's own: states in, states out, the mean over real tokens taken with the mask."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder()
            self.encoder.pooler = None
            torch.manual_seed(2)
            self.score = nn.Linear(32, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            states = self.encoder(input_ids, attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            return self.score((states * weights).sum(1) / weights.sum(1))

    results = three(Classifier())
    batch = inputs(PADDING["left"])
    with torch.no_grad():
        assert_agrees(*(model(batch["input_ids"], batch["attention_mask"]) for model in results))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend: str) -> None:
    """The graph breaks at the encoder; what surrounds it is compiled."""
    model = head(BertForTokenClassification, **NO_DROPOUT)
    accelerate(model)
    compiled = torch.compile(model, backend=backend, dynamic=True)
    for padding in ("right", "left", "none"):
        mask = PADDING[padding]
        batch = {**inputs(mask), "labels": torch.where(mask, 1, -100)}
        with torch.no_grad():
            assert torch.equal(compiled(**batch).logits, model(**batch).logits)
        expected = gradients(model, model(**batch).loss)
        found = gradients(model, compiled(**batch).loss)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert torch.equal(gradient, expected[name]), name
    assert model.bert.forward.calls == {"packed-inference": 6, "packed-training (gradients are on)": 6}
    torch.compiler.reset()


def test_the_encoder_is_not_traced_by_the_compiler() -> None:
    linears = []

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Any:
        linears.append(sum("linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    model = head(BertForTokenClassification)
    accelerate(model)
    with torch.no_grad():
        torch.compile(model, backend=backend)(**inputs(MASK))
    assert sum(linears) == 1  # the classifier
    torch.compiler.reset()


def test_inference_compiled_to_one_graph() -> None:
    model = head(BertForSequenceClassification)
    report = accelerate(model)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(**inputs(MASK)).logits
        assert torch.equal(compiled, model(**inputs(MASK)).logits)
    assert report.calls == {"packed-inference": 2}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("model_class", [BertForSequenceClassification, BertForTokenClassification])
def test_compiled_to_one_graph(model_class: Any, backend: str) -> None:
    """Inference is one operator in the graph; training is transformers' own forward, and a warning says so."""

    def loss(logits: Tensor) -> Tensor:
        return (logits[MASK] if logits.dim() == 3 else logits).square().mean()

    model = head(model_class, **NO_DROPOUT)
    report, twin = accelerate(model), copy.deepcopy(model)
    assert torch.Tag.cudagraph_unsafe in torch.ops.spanbert_kernels.accelerated_encoder.default.tags
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for padding, mixed in (("right", False), ("left", False), ("right", True)):
        batch = inputs(PADDING[padding])
        with torch.no_grad(), warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            warnings.simplefilter("ignore")
            found, expected = compiled(**batch).logits, model(**batch).logits
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected)
    assert {each for each in report.calls if "is padding" not in each} == {"packed-inference"}
    calls = report.calls
    with pytest.warns(AccelerationWarning, match=r"gradients are on inside a whole graph \(fullgraph=True\)"):
        trained = gradients(model, loss(compiled(**inputs(MASK)).logits))
    assert report.calls == calls
    for name, gradient in gradients(twin, loss(twin(**inputs(MASK)).logits)).items():
        torch.testing.assert_close(trained[name], gradient, rtol=1e-3, atol=1e-3)
    torch.compiler.reset()


def test_a_compiled_encoder_and_accelerating_a_compiled_model() -> None:
    model = encoder()
    compiled = torch.compile(model, backend="eager")
    report = accelerate(compiled)
    with torch.no_grad():
        first = compiled(**inputs(MASK)).last_hidden_state
        assert torch.equal(first, model(**inputs(MASK)).last_hidden_state)
    assert report.calls == {"packed-inference": 2}
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize("strict", [False, True])
def test_export_takes_transformers_path(strict: bool) -> None:
    model, batch = encoder(attn_implementation="eager"), inputs(MASK)
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        report = accelerate(model)
        program = torch.export.export(model, (), dict(batch), strict=strict)
        assert torch.equal(program.module()(**batch).last_hidden_state, expected)
    assert report.calls == {}


def test_trace_takes_transformers_path() -> None:
    model, batch = encoder(attn_implementation="eager", return_dict=False), inputs(MASK)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model(batch["input_ids"], batch["attention_mask"])[0]
        report = accelerate(model)
        traced = torch.jit.trace(model, (batch["input_ids"], batch["attention_mask"]), check_trace=False)
        other = inputs(PADDING["left"], seed=9)
        assert torch.equal(traced(batch["input_ids"], batch["attention_mask"])[0], expected)
        # Padding of another kind than the traced batch's: nothing of the packing was frozen into the graph.
        result = traced(other["input_ids"], other["attention_mask"])[0]
        model.forward = model.forward.original
        assert torch.equal(result, model(other["input_ids"], other["attention_mask"])[0])
    assert report.calls == {}


def test_data_parallel_wrapper_without_gpus() -> None:
    model = head(BertForSequenceClassification)
    report = accelerate(model)
    wrapped = nn.DataParallel(model)
    with torch.no_grad():
        assert torch.equal(wrapped(**inputs(MASK)).logits, model(**inputs(MASK)).logits)
    assert report.calls == {"packed-inference": 2}


@pytest.mark.parametrize("name", ["bert", "roberta", "nomic-bert"])
@pytest.mark.parametrize("backend", [None, "eager"])
def test_a_batch_that_came_packed(name: str, backend: str | None) -> None:
    """As `DataCollatorWithFlattening` makes it; transformers' own attention lets its documents see each other."""
    model, padded = encoder(name), inputs(MASK)
    with torch.no_grad():
        expected = model(**padded).last_hidden_state[MASK]
    rows = [{"input_ids": row[real].tolist()} for row, real in zip(padded["input_ids"], MASK, strict=True)]
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)(rows, return_tensors="pt")
    del batch["labels"]
    batch["token_type_ids"] = padded["token_type_ids"][MASK][None]
    if name == "roberta":  # whose tokenizers count from the padding id on
        batch["position_ids"] += TINY["pad_token_id"] + 1
    report = accelerate(model)
    with torch.no_grad(), contextlib.nullcontext() if backend is None else ops.backends.use(backend):
        torch.testing.assert_close(model(**batch).last_hidden_state[0], expected, rtol=1e-4, atol=1e-5)
        del batch["max_length_q"], batch["max_length_k"]
        torch.testing.assert_close(model(**batch).last_hidden_state[0], expected, rtol=1e-4, atol=1e-5)
    assert report.calls == {"packed-inference": 2}
    with pytest.raises(ValueError, match="must end with the number of tokens, 22, but ends with 9"):
        model(**{**batch, **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), torch.tensor([0, 9]))})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cu_seq_lens_k": None}, "attention between different documents"),
        ({"cu_seq_lens_k": torch.tensor([0, 11])}, "attention between different documents"),
        ({"cu_seq_lens_q": None}, "that do not belong to one row, in 1"),
        ({"attention_mask": torch.arange(11)[None] > 0}, "padding in a batch that came packed"),
        ({"input_ids": torch.full((2, 11), 3)}, "that do not belong to one row, in 2"),
    ],
)
def test_offsets_that_say_something_else(change: dict[str, Any], reason: str) -> None:
    offsets = torch.tensor([0, 4, 11])
    batch = {"input_ids": torch.full((1, 11), 3), "cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets}
    assert_original(encoder(), reason, **{**batch, **change})


class Holder:
    """An object with modules among its attributes, as pipelines and SetFitModel are."""

    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


def test_an_object_that_holds_models(tokenizer: PreTrainedTokenizerFast) -> None:
    model = head(BertForTokenClassification)
    classify = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
    expected = classify(TEXTS, batch_size=4)
    report = accelerate(classify)
    assert str(report).splitlines() == [
        "accelerated: BertModel at 'model.bert', 2 layers",
        "accelerated: TokenClassificationPipeline, entities from all tokens at once",
    ]
    found = classify(TEXTS, batch_size=4)
    assert [[each["word"] for each in one] for one in found] == [[each["word"] for each in one] for one in expected]
    assert report.calls == {"packed-inference": 1}
    restore(classify)
    assert "forward" not in model.bert.__dict__
    # RoBERTa's head reads token 0, which is learnt from the modules of the object.
    other = head(RobertaForSequenceClassification)
    report = accelerate(Holder(body=other, same=other, head=None, number=3))
    assert [str(each) for each in report.replaced] == ["RobertaModel at 'body.roberta', 2 layers"]
    with torch.no_grad(), pytest.warns(AccelerationWarning, match="is padding"):
        other(**inputs(PADDING["left"]))


def test_threads_share_a_model() -> None:
    """Several at once get what one alone gets, repacking included."""
    from concurrent.futures import ThreadPoolExecutor

    model = encoder()
    report = accelerate(model)

    def run(seed: int) -> Tensor:
        with torch.no_grad():
            return model(**inputs(MASK, seed)).last_hidden_state

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(16)))
    assert all(torch.equal(one, run(seed)) for seed, one in enumerate(together))
    assert report.last_path == "packed-inference"
