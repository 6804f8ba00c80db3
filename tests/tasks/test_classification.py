"""Classification: learning, clusters, and what only the other document of a cluster tells."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from spanbert_kernels import SpanBERTForSequenceClassification
from spanbert_kernels.data.labelled import LabelledDocument
from spanbert_kernels.tasks import classification
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

GOOD, BAD = ("lovely", "fine", "splendid"), ("awful", "poor", "dreadful")
SIDES = ("north", "south")


def document(text: str, label: str, cluster: str | None = None, line: int = 1) -> LabelledDocument:
    return LabelledDocument(text, label, cluster, Path("file.jsonl"), line)


def opinions(count: int) -> list[LabelledDocument]:
    draw = random.Random(0)
    found = []
    for _ in range(count):
        label, words = draw.choice((("positive", GOOD), ("negative", BAD)))
        filler = " ".join(draw.choices(("it", "was", "the", "ferry"), k=draw.randint(1, 12)))
        found.append(document(f"{filler} {draw.choice(words)} {filler} .", label))
    return found


def reports(count: int, seed: int) -> list[LabelledDocument]:
    """Pairs of reports that each name a side at random, labelled with what the other one names: chance, taken alone."""
    draw = random.Random(seed)
    found = []
    for cluster in range(count):
        sides = draw.choice(SIDES), draw.choice(SIDES)
        for side, label in zip(sides, reversed(sides), strict=True):
            filler = " ".join(draw.choices(("we", "saw", "ships", "today"), k=draw.randint(1, 5)))
            found.append(document(f"{filler} in the {side} {filler}", label, str(cluster)))
    return found


def model_for(documents: list[LabelledDocument], together: bool = True, **fields: Any) -> tuple[Any, Any]:
    start = Start(size="tiny", vocabulary_size=120)
    tokenizer = start.tokenizer(each.text for each in documents)
    labels = dict(enumerate(sorted({each.label for each in documents})))
    if together:
        fields |= classification.cross_document_fields(documents, fields.get("num_hidden_layers", start.layers()))
    build = start.build(SpanBERTForSequenceClassification, tokenizer, 0, id2label=labels, **fields)
    return build, tokenizer


def options(output: Path, **more: Any) -> TrainingOptions:
    return TrainingOptions(output, **{"steps": 40, "batch_size": 16, "learning_rate": 2e-3, "quiet": True, **more})


def test_it_learns_and_is_loaded_again(tmp_path: Path) -> None:
    documents = opinions(120)
    model, tokenizer = model_for(documents[:80], num_hidden_layers=1)
    assert model.config.cross_document_layers == []
    training = classification.train(model, tokenizer, documents[:80], options(tmp_path), SpanTraining(9, "input"))
    assert training.paths["packed-training"] == 40
    scores = classification.evaluate(model, tokenizer, documents[80:])
    assert scores["accuracy"] > 0.95
    assert classification.majority(documents[:80], documents[80:])["accuracy"] < 0.7
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps({"text": each.text, "label": each.label}) + "\n" for each in documents[80:]))
    assert classification.TASK.evaluate(tmp_path, test, "eager") == scores
    lines = [json.loads(line) for line in classification.TASK.predict(tmp_path, test, "auto")]
    assert [line["text"] for line in lines] == [each.text for each in documents[80:]]
    assert all(0.5 <= line["probability"] <= 1.0 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_only_the_other_document_tells(tmp_path: Path, together: bool) -> None:
    """With cross-document attention nearly all are right; the same model without it is at chance."""
    train, test = reports(1500, 1), reports(300, 2)
    model, tokenizer = model_for(train, together, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    assert model.config.cross_document_layers == ([1] if together else [])
    classification.train(model, tokenizer, train, options(tmp_path, steps=300, learning_rate=1e-3, batch_size=32))
    accuracy = classification.evaluate(model, tokenizer, test)["accuracy"]
    assert accuracy > 0.95 if together else abs(accuracy - 0.5) < 0.08, accuracy


def test_a_cluster_stays_together() -> None:
    documents = [document("a", "x", "p"), document("b", "x"), document("c", "x", "q"), document("d", "x", "p")]
    assert classification.clusters_of(documents) == [[0, 3], [1], [2]]
    tokenizer = Start(vocabulary_size=30).tokenizer(["a b c d"])
    examples = classification.encode(documents, tokenizer, ["x"], 8)
    clusters = classification.Clusters(examples, classification.clusters_of(documents))
    batch = classification.collate([clusters[0], clusters[1], clusters[2]])
    assert batch["cluster_ids"].tolist() == [0, 0, 1, 2]
    pieces = [tokenizer.convert_ids_to_tokens(row.tolist())[1] for row in batch["input_ids"]]
    assert pieces == ["a", "d", "b", "c"]


def test_predictions_come_in_the_order_of_the_documents() -> None:
    documents = [document("north " * n, "x", cluster) for n, cluster in ((9, "p"), (1, "q"), (4, "p"), (2, None))]
    model, tokenizer = model_for([*documents, document("south", "y")])
    with torch.no_grad():
        torch.nn.init.normal_(model.classifier.weight, std=3.0)
    found = classification.classify(model, tokenizer, documents)
    for each in ([0, 2], [1], [3]):
        alone = classification.classify(model, tokenizer, [documents[i] for i in each])
        assert [chance for _, chance in alone] == pytest.approx([found[i][1] for i in each], rel=1e-4)


def test_bad_input(tmp_path: Path) -> None:
    documents = opinions(10)
    model, tokenizer = model_for(documents)
    with pytest.raises(ValueError, match="needs crop input"):
        classification.train(model, tokenizer, documents, options(tmp_path), SpanTraining(8, "loss"))
    with pytest.raises(ValueError, match="there is no document"):
        classification.train(model, tokenizer, [], options(tmp_path))


def test_span_training_shows_part_of_a_document() -> None:
    documents = [document("north " * 40, "x", "p"), document("south", "x", "p")]
    tokenizer = Start(vocabulary_size=40).tokenizer(each.text for each in documents)
    examples = classification.encode(documents, tokenizer, ["x"], 512)
    spans = classification.SpansOfDocuments(examples, SpanTraining(8, "input"), 0, classification.show)
    first, second = classification.Clusters(spans, [[0, 1]])[0]
    assert len(first["input_ids"]) == 10
    assert second is examples[1]
