"""What a user gets who hands a task the wrong file or the wrong model: a line that names it, before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_files import FILES

from spanbert_kernels import SpanBERTForTokenClassification
from spanbert_kernels.data.conll_coref import read_marked
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.labelled import read_labelled
from spanbert_kernels.data.squad import Question, read_questions
from spanbert_kernels.data.summaries import read_summarised
from spanbert_kernels.tasks import question_answering
from spanbert_kernels.tasks.base import TASKS, load
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", [name for name in TASKS if name != "translation"])
def test_a_file_without_anything(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of nothing would be NaN, zero or an error of some library. Translation names an empty line."""
    path = FILES[name](tmp_path)
    for each in path.iterdir() if path.is_dir() else [path]:
        each.write_text('{"data": []}' if each.suffix == ".json" else "")
    task = load(name)
    reason = rf"{path.name}: there is nothing to train or score on"
    with pytest.raises(ValueError, match=reason):
        task.train(path, None, Start(size="tiny"), TrainingOptions(tmp_path / "model"), None)
    monkeypatch.setattr(type(task), "load", lambda task, folder: (None, None))
    with pytest.raises(ValueError, match=reason):
        task.evaluate(tmp_path, path, "auto")
    with pytest.raises(
        ValueError, match=rf"{path.name}(: there is nothing to predict for|, line 1: there are no words)"
    ):
        list(task.predict(tmp_path, path, "auto"))
    assert not (tmp_path / "model").exists()


PLAIN = "We moved to Oslo.\nShe did n't like it at all.\n"
TABLE = "ID;REMARK;STARS\n1;We moved to Oslo.;3\n"
COLUMNS_WANTED = "line 2: CoNLL columns of words and {}are wanted, and this looks like plain text"


@pytest.mark.parametrize(
    ("name", "of_text", "of_table"),
    [
        ("tagging", COLUMNS_WANTED.format("labels, or JSON with spans, "), "line 1: CoNLL .* looks like a table"),
        ("nested", COLUMNS_WANTED.format("brackets, CoNLL-U .*, or JSON .* "), "line 1: CoNLL .* looks like a table"),
        ("coreference", COLUMNS_WANTED.format("brackets, or CoNLL-U .* "), "line 1: CoNLL .* looks like a table"),
        ("parsing", "line 1: trees in CoNLL-U are wanted, and this looks like plain text", "this looks like a table"),
        ("classification", "line 1: labels stand in .jsonl, .csv or .tsv", "names the columns text, label is wanted"),
        ("question_answering", "SQuAD's JSON, or .* looks like plain text", "names the column question is wanted"),
        ("summarisation", "line 1: summaries stand in .jsonl, .csv", "names the column text is wanted"),
        ("extraction", "line 1: summaries stand in .jsonl, .csv", "names the column text is wanted"),
        ("translation", "records .* or a folder with source.txt and target.txt, are wanted", "column text is wanted"),
        ("relations", "relations are those of a folder with documents.conll", "relations are those of a folder"),
    ],
)
def test_another_kind_of_file_is_named_and_what_is_wanted(
    tmp_path: Path, name: str, of_text: str, of_table: str
) -> None:
    for file, text, reason in ("a.txt", PLAIN, of_text), ("a.csv", TABLE, of_table):
        with pytest.raises(ValueError, match=rf"a\.\w+(: |, ).*{reason}") as raised:
            load(name).read(written(tmp_path / file, text))
        assert "\n" not in str(raised.value)


def test_folders_of_translations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file that ends in .*\.tsv, nor source\.txt and target\.txt"):
        load("translation").read(written(tmp_path / "a.txt", PLAIN).parent)
    written(tmp_path / "b.csv", "SOURCE;TARGET\na;b\n")
    assert [(pair.source, pair.targets) for pair in load("translation").read(tmp_path)] == [("a", ("b",))]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# begin document a\n# end document\n# begin document b\nAnna\t(1)\n", 1),
        ("# begin document a\nAnna\t(1)\n\n# begin document b\n", 4),
    ],
)
def test_a_document_without_words(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(DataFault, match=rf"a\.conll, line {line}: a document without words"):
        read_marked(written(tmp_path / "a.conll", text))


def test_other_empty_documents(tmp_path: Path) -> None:
    trees = written(tmp_path / "a.conllu", "# newdoc id = a\n# meta::summary1 = (human1) A man.\n")
    with pytest.raises(DataFault, match=r"a\.conllu, line 1: a document without a line such as '# text = "):
        read_summarised(trees)
    entry = {"id": "7", "question": "Who?", "is_impossible": True, "answers": []}
    made = {"data": [{"paragraphs": [{"context": " ", "qas": [entry]}]}]}
    with pytest.raises(ValueError, match=r"a\.json, question 7: is about an empty text"):
        read_questions(written(tmp_path / "a.json", json.dumps(made)))
    with pytest.raises(DataFault, match=r"a\.txt, line 1: there are no words"):
        list(load("coreference").predict(tmp_path, written(tmp_path / "a.txt", "\n"), "auto"))


def test_an_empty_cell_is_no_cluster(tmp_path: Path) -> None:
    table = written(tmp_path / "a.csv", "text,label,cluster\na,x,\nb,x,k\nc,x,\n")
    assert [document.cluster for document in read_labelled(table)] == [None, "k", None]


def test_one_label_alone(tmp_path: Path) -> None:
    """Transformers would fit a number to it."""
    data = written(tmp_path / "a.jsonl", '{"text": "a", "label": "x"}\n' * 3)
    with pytest.raises(ValueError, match=r"a\.jsonl: all documents have the label x, so there is nothing to"):
        load("classification").train(data, None, Start(size="tiny"), TrainingOptions(tmp_path / "model"), None)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("tagging", "Nobody\tO\ncame\tO\n", "entity"),
        ("nested", "# begin document a\nNobody\t_\ncame\t_\n", "mention"),
        ("coreference", "# begin document a\nNobody\t-\ncame\t-\n", "mention"),
        ("cross_document_coreference", "# begin document a/1\nNobody\t*\n# begin document a/2\nNobody\t*\n", "mention"),
    ],
)
def test_nothing_to_find_in_a_file(tmp_path: Path, name: str, text: str, what: str) -> None:
    """Not the same as an empty file: there are sentences, and nothing is marked in any."""
    data = written(tmp_path / "a.conll", text)
    start = Start(size="tiny", vocabulary_size=40)
    with pytest.raises(ValueError, match=rf"a\.conll: there is no {what} to train on"):
        load(name).train(data, None, start, TrainingOptions(tmp_path / "model"), None)
    assert not (tmp_path / "model").exists()


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    start = Start(size="tiny", vocabulary_size=40)
    tokenizer = start.tokenizer(["Anna left"])
    start.build(SpanBERTForTokenClassification, tokenizer, 0, num_hidden_layers=1).save_pretrained(tmp_path / "tagger")
    tokenizer.save_pretrained(tmp_path / "tagger")
    return tmp_path / "tagger"


@pytest.mark.parametrize("name", [name for name in TASKS if name != "tagging"])
def test_a_model_of_another_task_is_not_used(tmp_path: Path, tagger: Path, name: str) -> None:
    """Its head would be drawn at random. Generators have a class of transformers' own."""
    with pytest.raises(ValueError, match=r"holds SpanBERTForTokenClassification, not .*: train it for this task first"):
        list(load(name).predict(tagger, FILES[name](tmp_path), "auto"))


@pytest.mark.parametrize("name", ["tagging", "translation"])
def test_no_such_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder 'spanbert-base': .* trained for a task first"):
        list(load(name).predict(Path("spanbert-base"), written(tmp_path / "a.txt", "a\n"), "auto"))


def test_a_checkpoint_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no connection")

    monkeypatch.setattr("spanbert_kernels.models.SpanBERTConfig.from_pretrained", offline)
    with pytest.raises(OSError, match="cannot load checkpoint 'nowhere' from the hub: give a local folder"):
        Start(model="nowhere").tokenizer(["a"])


def test_answers_inside_tokens_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = "Anna lives in Oslo ."
    answers = {"whole": "Oslo", "cut": "slo", "spaced": " Oslo"}
    questions = [
        Question(name, "Where ?", context, ((text, context.index(text)),), Path("a.json"))
        for name, text in answers.items()
    ]
    tokenizer = Start(vocabulary_size=60).tokenizer([f"Where ? {context}"] * 2)
    model = Start(size="tiny").build(question_answering.SpanBERTForQuestionAnswering, tokenizer, 0)
    monkeypatch.setattr("spanbert_kernels.tasks.base.fit", lambda *args, **more: None)
    options = TrainingOptions(tmp_path)
    with pytest.warns(
        UserWarning,
        match=r"a\.json, question cut: answer 'slo' begins or ends inside a token, so 'Oslo' is learnt; 1 of 3",
    ):
        question_answering.train(model, tokenizer, questions, options)
