"""Coreference across documents: clusters, one numbering of entities, groups of an epoch, what another document adds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention, read_marked
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.tasks import coreference
from spanbert_kernels.tasks import cross_document_coreference as task
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

NAMES = ("Anna", "Boris", "Clara", "David")


def document(name: str, text: str, *mentions: tuple[int, str]) -> MarkedDocument:
    words = tuple(text.split())
    found = tuple(Mention(place, place, "", entity) for place, entity in mentions)
    return MarkedDocument(name, words, found, Path("file.conll"), tuple(range(1, len(words) + 1)))


def report(name: str, draw: random.Random) -> MarkedDocument:
    """Two people, each named once: that they come again, only other documents say."""
    first, second = draw.sample(NAMES, 2)
    return document(name, f"today {first} met {second} .", (1, first), (3, second))


def write(path: Path, documents: list[MarkedDocument]) -> Path:
    text = ""
    for each in documents:
        marks = {mention.first: f"({mention.entity})" for mention in each.mentions}
        rows = (f"{each.name}\t{word}\t{marks.get(i, '-')}\n" for i, word in enumerate(each.words))
        text += f"#begin document ({each.name}); part 000\n{''.join(rows)}\n#end document\n"
    path.write_text(text)
    return path


def test_clusters() -> None:
    a, b, c = (document(name, "Anna", (0, "a")) for name in ("(x/1); part 0", "(y/1); part 0", "(x/2); part 0"))
    assert task.clusters_of([a, b, c]) == [(a, c), (b,)]
    assert task.clusters_of([document("1", "so"), document("2", "so")]) == [(document("1", "so"), document("2", "so"))]
    assert [(m.first, m.entity) for m in task.joined((a, c)).mentions] == [(0, "a"), (1, "a")]


def test_entities_have_one_number() -> None:
    cluster = document("1", "Anna met Boris .", (0, "a"), (2, "b")), document("2", "so Boris left .", (1, "b"))
    tokenizer = Start(vocabulary_size=60).tokenizer(["Anna met Boris . so left"] * 2)
    example = task.merged([coreference.encode(each, tokenizer, 16) for each in cluster])
    assert example["mentions"].tolist() == [[0, 0, 0], [0, 2, 2], [1, 1, 1]]
    assert example["entities"].tolist() == [0, 1, 1]
    batch = task.collate([example, example])
    assert batch["cluster_ids"].tolist() == [0, 0, 1, 1]
    assert len(set(batch["entities"].tolist())) == 4


def test_groups() -> None:
    """Each document once an epoch, with documents of its cluster alone, and other ones in another epoch."""
    draw = random.Random(0)
    documents = [report(f"{cluster}/{i}", draw) for cluster, size in (("x", 20), ("y", 3)) for i in range(size)]
    tokenizer = Start(vocabulary_size=60).tokenizer([" ".join(each.words) for each in documents])
    data = task.Groups(coreference.Documents(documents, tokenizer, 64, None, 0), [20, 3], 0)
    seen = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        groups = [group.tolist() for group in data.groups]
        assert sorted(i for group in groups for i in group) == list(range(23))
        assert all(len(group) <= task.TOGETHER and len({i < 20 for i in group}) == 1 for group in groups)
        seen.append(groups)
    assert seen[0] == seen[2] != seen[1]
    assert sum(len(data[i]["windows"]) for i in range(len(data))) == 23


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no document"):
        task.train(None, None, [], TrainingOptions(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the folder holds no file that ends in"):
        list(task.TASK.predict(tmp_path, tmp_path, "auto"))
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataFault, match=r"a\.txt, line 1: there are no words"):
        list(task.TASK.predict(tmp_path, tmp_path, "auto"))


def test_clusters_to_predict_on(tmp_path: Path) -> None:
    """A folder's texts are a cluster, and files that are named together; column files name theirs."""
    for name in ("one/a.txt", "one/b.txt", "two/a.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Anna left\n")
    columns = tmp_path / "d.conll"
    columns.write_text("".join(f"#begin document {name}\nAnna\t-\n" for name in ("x/1", "y/1", "x/2")))

    def names(*paths: Path) -> list[list[str]]:
        return [[document.name for document in cluster] for cluster in task.read_clusters(paths)]

    assert names(tmp_path / "one", tmp_path / "two") == [["a", "b"], ["a"]]
    assert names(tmp_path / "c.txt", tmp_path / "one" / "a.txt") == [["c", "a"]]
    assert names(columns) == [["x/1", "x/2"], ["y/1"]]
    (tmp_path / "one" / "b.txt").write_text("")
    assert names(tmp_path / "one") == [["a"]]


@pytest.mark.slow
def test_it_learns_and_is_loaded_again(tmp_path: Path) -> None:
    """People whom two documents name; within a document nobody comes twice, so that singletons are all it could say."""
    draw = random.Random(0)
    train, test = (
        write(tmp_path / f"{part}.conll", [report(f"{part}{c}/{i}", draw) for c in range(count) for i in range(4)])
        for part, count in (("a", 100), ("b", 20))
    )
    options = TrainingOptions(tmp_path / "model", steps=300, batch_size=8, learning_rate=1e-3, quiet=True)
    outcome = task.TASK.train(train, test, Start(size="tiny", vocabulary_size=60), options, None)
    assert outcome.training.paths["packed-training"] == 300
    assert outcome.scores["CoNLL F1"] > 0.9
    assert outcome.baseline["CoNLL F1"] < 0.6
    assert task.TASK.evaluate(tmp_path / "model", test, "eager") == pytest.approx(outcome.scores)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "one.txt").write_text("today Anna met Boris .\n")
    (texts / "two.txt").write_text("today David met Anna .\n")
    lines = [json.loads(line) for line in task.TASK.predict(tmp_path / "model", texts, "auto")]
    assert [line["document"] for line in lines] == ["one", "two"]
    one, two = ([m for m in line["mentions"] if m["text"] == "Anna"] for line in lines)
    assert (one[0]["start"], two[0]["start"], one[0]["entity"]) == (6, 16, two[0]["entity"])
    assert read_marked(test)[0].name == "(b0/0); part 000"
