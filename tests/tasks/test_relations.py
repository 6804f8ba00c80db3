"""Relations of entities: files, pairs, the loss by hand, scores, and what only another document tells."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spanbert_kernels import SpanBERTConfig, SpanBERTForRelations
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.tasks import relations
from spanbert_kernels.tasks.relations import RelatedCluster, read_related
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

TEXT = "# begin document x/1\nAnna\t(1)\nmet\t_\nBoris\t(2)\n# begin document x/2\nAnna\t(1)\nleft\t_\n"
OTHER = "# begin document y/1\nClara\t(3)\n"


def folder(path: Path, documents: str, rows: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "documents.conll").write_text(documents)
    (path / "relations.tsv").write_text(rows)
    return path


def test_reading(tmp_path: Path) -> None:
    first, second = read_related(folder(tmp_path, TEXT + OTHER, "1\t2\tmet\n\n2\t1\tknows\n"))
    assert (len(first.documents), first.relations) == (2, {("1", "2", "met"), ("2", "1", "knows")})
    assert (len(second.documents), second.relations) == (1, set())
    assert relations.TASK.labels_in([first, second]) == ["none", "knows", "met"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("1\t2\tmet\n1\t2\n", "line 2: two entities and their relation are wanted"),
        ("1\t\tmet\n", "line 1: two entities and their relation are wanted"),
        ("1\t1\tmet\n", "line 1: entity '1' is related to itself"),
        ("1\t2\tmet\n1\t2\tknows\n", "line 2: '1' and '2' have another relation in line 1"),
        ("\n1\t9\tmet\n", r"line 2: entity '9' has no mention in documents\.conll"),
        ("1\t3\tmet\n", "line 1: no cluster has mentions of both '1' and '3'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: str, reason: str) -> None:
    with pytest.raises(DataFault, match=rf"relations\.tsv, {reason}"):
        read_related(folder(tmp_path, TEXT + OTHER, rows))


def test_no_relation_to_train_on(tmp_path: Path) -> None:
    """Neither is there one among annotated negatives."""
    options = TrainingOptions(tmp_path / "model")
    for name, rows in ("empty", ""), ("negatives", "1\t2\tnone\n"):
        with pytest.raises(ValueError, match=r"relations\.tsv: there is no relation to train on"):
            relations.TASK.train(folder(tmp_path / name, TEXT, rows), None, Start(size="tiny"), options, None)
    assert not (tmp_path / "model").exists()


def test_batches(tmp_path: Path) -> None:
    """Entities are numbered through; a relation of an entity that a group does not hold is not in it."""
    cluster, _ = read_related(folder(tmp_path, TEXT + OTHER, "1\t2\tmet\n"))
    tokenizer = Start(vocabulary_size=40).tokenizer(["Anna met Boris left"] * 2)
    both, one = (
        relations.with_relations(
            relations.merged([relations.coreference.encode(each, tokenizer, 16) for each in own]),
            cluster.relations,
            ["none", "met"],
        )
        for own in (cluster.documents, cluster.documents[1:])
    )
    batch = relations.collate([one, both, both])
    assert batch["entities"].tolist() == [0, 1, 2, 1, 3, 4, 3]
    assert batch["relations"].tolist() == [[1, 2, 1], [3, 4, 1]]
    assert batch["clusters"].tolist() == [0, 1, 1, 2, 2]
    assert batch["cluster_ids"].tolist() == [0, 1, 1, 2, 2]
    assert batch["mentions"].tolist() == [[0, 0, 0], [1, 0, 0], [1, 2, 2], [2, 0, 0], [3, 0, 0], [3, 2, 2], [4, 0, 0]]


def test_the_loss_is_its_definition() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = SpanBERTForRelations(SpanBERTConfig(vocab_size=30, max_span_width=3, num_labels=3, **shape)).eval()
    inputs = {
        "input_ids": torch.randint(30, (2, 5)),
        "word_starts": torch.tensor([[1, 2, 3]] * 2),
        "mentions": torch.tensor([[0, 0, 1], [0, 2, 2], [1, 0, 0], [1, 2, 2]]),
    }
    entities, clusters = torch.tensor([0, 1, 0, 2]), torch.tensor([0, 0, 1])
    model.requires_grad_(False)
    output = model(**inputs, entities=entities, clusters=clusters, relations=torch.tensor([[1, 0, 2]]))
    assert output.pairs.tolist() == [[0, 1], [1, 0]]  # none across clusters, none with itself
    chances = output.logits.log_softmax(-1)
    assert output.loss.item() == pytest.approx(-float(chances[0, 0] + chances[1, 2]) / 3, rel=1e-5)
    words, never = torch.tensor([[0, 0, 1], [0, 2, 2], [0, 9, 9], [1, 5, 5]]), 20
    least = model._least(words, torch.tensor([0, 1, 0, 2]), 3)  # entity 1 stands two words after 0, and seven before it
    assert least.tolist() == [[0, 4, never], [5, 0, never], [never, never, 0]]
    output = model(**inputs, entities=entities, clusters=clusters)
    before = output.logits.clone()
    model.distances.weight[4] += 3.0  # pair 0, 1; of 1, 0 it is bucket 5
    output = model(**inputs, entities=entities, clusters=clusters)
    assert not torch.allclose(output.logits[0], before[0])
    assert torch.equal(output.logits[1], before[1])
    model.counts.weight[2] += 3.0  # entity 0 has two mentions
    assert not torch.allclose(model(**inputs, entities=entities, clusters=clusters).logits[1], before[1])
    apart = model(**inputs, entities=torch.tensor([0, 1, 2, 3]), clusters=torch.tensor([0, 0, 0, 0]))
    assert len(apart.pairs) == 12
    assert not torch.allclose(apart.logits[0], output.logits[0])  # the other document's mention counts
    empty = torch.empty(0, dtype=torch.long)
    nothing = {**inputs, "mentions": empty.view(0, 3)}
    assert len(model(**nothing, entities=empty, clusters=empty, relations=empty.view(0, 3)).pairs) == 0
    with pytest.raises(ValueError, match="one is None"):
        model(**inputs)


def test_a_relation_is_told_by_any_place() -> None:
    """Against loops over the pairs of mentions in a window; entities that never meet are scored by their vectors."""
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = SpanBERTConfig(vocab_size=30, max_span_width=3, num_labels=3, relation_places=True, **shape)
    model = SpanBERTForRelations(config).eval().requires_grad_(False)
    mentions = torch.tensor([[0, 0, 1], [0, 1, 2], [0, 4, 4], [1, 0, 0], [1, 3, 3], [1, 1, 1]])
    entities, clusters = torch.tensor([0, 1, 0, 2, 1, 3]), torch.tensor([0, 0, 0, 1])
    inputs = {"word_starts": torch.tensor([[1, 2, 3, 4, 5]] * 2), "mentions": mentions}
    ids = torch.randint(30, (2, 7))
    output = model(ids, **inputs, entities=entities, clusters=clusters)
    assert output.pairs.tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]

    hidden = model.encode(ids, None).last_hidden_state[:, 1:6]  # [2, 5, H]
    heard = torch.nn.functional.layer_norm(hidden, hidden.shape[2:])
    vectors = []
    for row, first, last in mentions.tolist():
        own = hidden[row, first : last + 1]
        weighed = (model.attention(own)[:, 0].softmax(0)[:, None] * own).sum(0)
        vectors.append(torch.cat([own[0], own[-1], weighed, model.widths.weight[last - first]]))
    vector = torch.nn.functional.layer_norm(torch.stack(vectors), (3 * 8 + 32,))
    of_entity = [model.states(vector[entities == e].mean(0)).chunk(2) for e in range(4)]
    of_entity = [
        (a + model.counts.weight[n].chunk(2)[0], b + model.counts.weight[n].chunk(2)[1])
        for (a, b), n in zip(of_entity, entities.bincount().tolist(), strict=True)
    ]

    def above(inner: Tensor) -> Tensor:
        scores = model.relation(inner.relu())
        return scores[1:] - scores[0] - 5.0

    for number, (one, other) in enumerate(output.pairs.tolist()):
        both = of_entity[one][0] + of_entity[other][1]
        places = []
        for i, (row, first, last) in enumerate(mentions.tolist()):
            for j, (other_row, begin, end) in enumerate(mentions.tolist()):
                if (entities[i], entities[j], row) != (one, other, other_row):
                    continue
                low, high = min(last, end) + 1, max(first, begin)
                between = heard[row, low:high].mean(0) if high > low else torch.zeros(8)
                bucket = 2 * min(abs(begin - first), 4) + (begin < first)  # of distances up to four words
                inner = model.mentions(vector[i]).chunk(2)[0] + model.mentions(vector[j]).chunk(2)[1]
                places.append(above(both + inner + model.distances.weight[bucket] + model.between(between)))
        wanted = torch.stack(places).logsumexp(0) if places else above(both + model.distances.weight[-1]) - 5.0
        assert bool(places) == ({one, other} != {0, 2})
        assert output.logits[number].tolist() == pytest.approx([0.0, *wanted.tolist()], abs=1e-5)


def test_a_new_model_holds_relations_unlikely_and_is_loaded_as_it_was(tmp_path: Path) -> None:
    model = Start(size="tiny").build(SpanBERTForRelations, Start(vocabulary_size=40).tokenizer(["a b"] * 2), 0).eval()
    assert float(model.distances.weight.detach().std()) == pytest.approx(1, abs=0.1)
    model.save_pretrained(tmp_path)
    again = SpanBERTForRelations.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    inputs = {"word_starts": torch.tensor([[1, 2]]), "mentions": torch.tensor([[0, 0, 0], [0, 1, 1]])}
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        logits = model(ids, **inputs, entities=torch.tensor([0, 1]), clusters=torch.tensor([0, 0])).logits
    assert 0 < float(logits.softmax(-1)[:, 1].max()) < 0.05


@pytest.mark.parametrize("places", [True, False])
def test_a_model_that_learnt_relations_is_gone_on_with_as_it_is(tmp_path: Path, places: bool) -> None:
    """Models of before have no parameters for places, and their folders say nothing of them."""
    start = Start(size="tiny", vocabulary_size=40)
    fields = {"id2label": {0: "none", 1: "met"}, "label2id": {"none": 0, "met": 1}, "relation_places": places}
    tokenizer, path = start.tokenizer(["Anna met Boris left"] * 2), tmp_path / "before"
    before = start.build(SpanBERTForRelations, tokenizer, 0, **fields)
    before.save_pretrained(path)
    tokenizer.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    if not places:
        del config["relation_places"]
        (path / "config.json").write_text(json.dumps(config))
    clusters = read_related(folder(tmp_path / "data", TEXT, "1\t2\tmet\n"))
    model, _ = relations.TASK.build(clusters, tmp_path / "data", Start(model=str(path)), 0)
    assert model.config.relation_places is places
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.state_dict().items())
    assert ("mentions.weight" in model.state_dict()) is places
    new, _ = relations.TASK.build(clusters, tmp_path / "data", start, 0)
    assert new.config.relation_places


def test_the_most_promising_have_the_largest_expected_f1() -> None:
    """Against all outcomes of a few pairs, where the approximation is near enough."""
    draw = random.Random(0)
    for _ in range(20):
        chances = sorted((draw.random() ** 2 for _ in range(8)), reverse=True)
        exact = []
        for count in range(1, 9):
            total = 0.0
            for outcome in range(256):
                right = [outcome >> i & 1 for i in range(8)]
                weight = math.prod(c if r else 1 - c for c, r in zip(chances, right, strict=True))
                total += weight * 2 * sum(right[:count]) / (count + sum(right))
            exact.append(total)
        count = relations.most_promising(chances, sum(chances))
        assert exact[count - 1] > max(exact) - 0.03
    assert relations.most_promising([], 0.0) == 0


def test_scores(tmp_path: Path) -> None:
    cluster, _ = read_related(folder(tmp_path, TEXT + OTHER, "1\t2\tmet\n2\t1\tknows\n"))
    found = {("1", "2", "met"), ("2", "1", "met")}
    assert relations.score([cluster], [found]) == {"precision": 0.5, "recall": 0.5, "F1": 0.5}
    assert relations.neighbours([cluster], [cluster]) == {"precision": 1.0, "recall": 0.5, "F1": 2 / 3}
    assert relations.neighbours([RelatedCluster((), frozenset({("a", "b", "left")}))], [cluster])["F1"] == 0.0


def pairs_of_reports(path: Path, count: int, seed: int) -> Path:
    """One report names a ship and a port, another says where the ship was: only together do they tell the relation."""
    draw = random.Random(seed)
    documents, rows = "", ""
    for number in range(count):
        kind = draw.choice(("left", "reached"))
        documents += f"# begin document c{number}/1\nsome\t_\nferry\t(s{number})\nand\t_\nOslo\t(p{number})\n"
        documents += f"# begin document c{number}/2\nit\t_\n{kind}\t_\nsome\t_\nferry\t(s{number})\n"
        rows += f"s{number}\tp{number}\t{kind}\n"
    return folder(path, documents, rows)


@pytest.mark.slow
def test_it_learns_across_documents_and_is_loaded_again(tmp_path: Path) -> None:
    train, test = (pairs_of_reports(tmp_path / name, n, n) for name, n in (("train", 300), ("test", 60)))
    start = Start(size="tiny", vocabulary_size=60)
    options = TrainingOptions(tmp_path / "model", steps=200, batch_size=16, learning_rate=1e-3, quiet=True)
    outcome = relations.TASK.train(train, test, start, options, None)
    assert outcome.training.paths["packed-training"] == 200
    assert outcome.scores["F1"] > 0.95
    assert outcome.baseline["F1"] < 0.6
    assert relations.TASK.evaluate(tmp_path / "model", test, "eager") == pytest.approx(outcome.scores)
    lines = [json.loads(line) for line in relations.TASK.predict(tmp_path / "model", test, "auto")]
    assert len(lines) == pytest.approx(60, abs=3)
    assert {line["relation"] for line in lines} == {"left", "reached"}
    assert all(0 < line["probability"] <= 1 for line in lines)
