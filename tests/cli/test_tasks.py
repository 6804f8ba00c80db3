"""`train`, `evaluate`, `predict` and `pretrain` on small files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects

from spanbert_kernels import SpanBERTForPreTraining, extras
from spanbert_kernels.cli import predicting, tasks, training_options
from spanbert_kernels.tasks.base import TASKS, load
from spanbert_kernels.tasks.start import SIZES
from spanbert_kernels.tasks.training import PRECISIONS, SCHEDULES

pytest.importorskip("accelerate")
pytest.importorskip("seqeval")

Run = Callable[..., Result]
Write = Callable[..., Path]
ROWS = "Anna\tB-person\nwent\tO\nto\tO\nOslo\tB-place\n.\tO\n\nNobody\tO\nwent\tO\n.\tO\n\n"
FOLDER = (
    "relations are those of a folder with documents.conll, columns that mark mentions (predict coreference writes them "
    "with --format columns), and to train on relations.tsv"
)
HUB = ("--save-steps", "25", "--push-to-hub", "me/tagger")
TINY = ("--size", "tiny", "--vocabulary-size", "60", "--threads", "1")


def test_names_are_those_of_the_tasks() -> None:
    """Sizes are written down twice, so that `--help` need not load PyTorch."""
    assert tuple(SIZES) == training_options.SIZES
    assert (tuple(SCHEDULES), PRECISIONS) == (training_options.SCHEDULES, training_options.PRECISIONS)


@pytest.mark.parametrize("command", ["train", "predict"])
def test_help_says_what_each_task_takes(run: Run, command: str) -> None:
    """From the tasks' table, whose rows all have a module."""
    lines = run(command, "--help").stdout.splitlines()
    for name, entry in TASKS.items():
        assert load(name).kind
        takes = entry.trained_on if command == "train" else entry.predicted_for
        assert any(line.split(maxsplit=1) == [name, takes] for line in lines)


def test_train_evaluate_predict(run: Run, write: Write, sent: list[str]) -> None:
    """A model goes to the hub without checkpoints and what is of use here alone."""
    data = write("train.conll", ROWS * 8)
    trained = ("train", "tagging", "--data", data, "--test", data, "--output", "model", "--steps", "25", *TINY)
    learning = ("--learning-rate", "0.005", "--batch-size", "8", "--lower-layers", "1")
    result = run(*trained, *learning, "--dev", data, "--evaluate-steps", "25", *HUB)
    assert result.exit_code == 0, result.output
    assert json.loads(Path("model/config.json").read_text())["num_hidden_layers"] == 1
    assert result.stdout.endswith("On the hub: https://hub/me/tagger\n")
    assert sorted(sent) == ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert list(Path("model").glob("checkpoint-*"))
    assert re.search(r"^Loss: \d\.\d+ over the first 6 steps, 0\.\d+ over the last\.$", result.stdout, re.M)
    assert "Kept the model of step 25, whose f1 on the development data was the best: 1.000." in result.stdout
    assert "Development data: took 16 sentences, 16 entities\n" in result.stderr
    assert "has not learnt" not in result.output
    assert "trivial baseline" in result.output
    assert "packed-training (25 calls)" in result.output
    card = ModelCard.load("model/README.md")
    (scored,) = (found for found in card.data.eval_results if found.metric_type == "f1")
    assert (scored.metric_value, scored.dataset_name, card.data.pipeline_tag) == (
        1.0,
        data.name,
        "token-classification",
    )
    assert card.data.base_model is None
    assert "Random weights" in card.text
    assert "- train: `train.conll`" in card.text
    assert "- Development data: took 16 sentences, 16 entities" in card.text
    assert "| f1 | 1.0000 | 1.0000 |" in card.text
    other = write("other.conll", ROWS.replace("Oslo\tB-place", "<Oslo>\tB-person"))
    both = ("--data", data, "--data", other, "--by", "type", "--errors", "errors.html")
    result = run("evaluate", "tagging", "--model", "model", *both)
    assert result.exit_code == 0, result.output
    assert re.search(r"^ *place +8 +9 +8 +0.889 +1.000 +0.941 *$", result.stdout, re.M)
    assert "1 error: errors.html" in result.stdout
    page = Path("errors.html").read_text()
    assert '<span class="wanted found">&lt;Oslo&gt;</span>' in page
    assert ">other.conll, line 4</td>" in page
    refused = run("evaluate", "tagging", "--model", "model", "--data", other, "--by", "distance")
    assert (refused.exit_code, "cannot be grouped by distance" in refused.stderr) == (2, True)
    plain = write("plain.txt", "Anna went to Oslo .\n")
    result = run("predict", "tagging", plain, "--model", "model", "--output", "found.conll", "--backend", "eager")
    assert result.exit_code == 0, result.output
    assert Path("found.conll").read_text() == ROWS[: ROWS.index("\n\n") + 2]


def test_warnings_about_data_are_sentences(run: Run, write: Write) -> None:
    """An answer that is a part of a word."""
    asked = {"id": "q", "question": "Who ?", "answers": [{"text": "Ann", "answer_start": 0}]}
    content = {"data": [{"title": "t", "paragraphs": [{"context": "Anna went .", "qas": [asked]}]}]}
    vocabulary = write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nAnna\nwent\nWho\n?\n.\n")
    data = write("questions.json", json.dumps(content))
    options = ("--output", "model", "--steps", "1", *TINY, "--vocabulary", vocabulary)
    result = run("train", "question_answering", "--data", data, *options)
    assert result.exit_code == 0, result.output
    assert f"Warning: {data}, question q: answer 'Ann' begins or ends inside a token" in result.stderr
    assert "warnings.warn" not in result.stderr


def test_what_is_missing_is_named(run: Run, write: Write) -> None:
    """In the words of the system, without its numbers."""
    missing = run("train", "tagging", "--data", "none.conll", "--output", "model", *TINY)
    assert (missing.exit_code, missing.stderr) == (2, "Error: none.conll: no such file or directory\n")
    under = write("file.conll", ROWS) / "documents.conll"
    below = run("train", "relations", "--data", under.parent, "--output", "model", *TINY)
    assert (below.exit_code, below.stderr.strip()) == (2, f"Error: {under.parent}: {FOLDER}")


def test_predict_and_explain_read_what_train_reads(run: Run, write: Write) -> None:
    """Several files and folders; each prediction names its own where there are several."""
    columns, plain = write("texts/a.conll", ROWS), write("texts/b.txt", "Anna went .\n")
    trained = ("--output", "model", "--steps", "1", *TINY)
    result = run("train", "tagging", columns, "--data", columns.parent / "a.conll", *trained)
    assert result.exit_code == 0, result.output
    assert "took 4 sentences" in result.stderr
    as_columns = ("--model", "model", "--format", "columns")
    both = run("predict", "tagging", columns.parent, *as_columns)
    assert both.exit_code == 0, both.output
    lines = both.stdout.splitlines()
    assert [line for line in lines if line.startswith("#")] == [f"# file = {columns}"] * 2 + [f"# file = {plain}"]
    words = [line.split("\t")[0] for line in lines if line and not line.startswith("#")]
    assert " ".join(words) == "Anna went to Oslo . Nobody went . Anna went ."
    alone = run("predict", "tagging", columns, *as_columns)
    assert "#" not in alone.stdout
    assert run("predict", "tagging", columns, "--data", plain, *as_columns).stdout == both.stdout
    assert "Missing DATA: files or folders" in run("predict", "tagging", *as_columns).stderr

    records = write("posts.jsonl", '{"text": "Good", "label": "a"}\n{"text": "Bad", "label": "b"}\n')
    table = write("table.csv", "Id,Text\n1,Good film\n")
    result = run("train", "classification", "--data", records, "--output", "classes", "--steps", "1", *TINY)
    assert result.exit_code == 0, result.output
    found = run("predict", "classification", records, table, "--model", "classes")
    assert [json.loads(line)["file"] for line in found.stdout.splitlines()] == [str(records)] * 2 + [str(table)]
    shown = run("explain", "classification", records, table, "--model", "classes", "--output", "page.html")
    assert shown.exit_code == 0, shown.output
    assert Path("page.html").read_text().count(f">{table}</td>") == 1
    assert run("explain", "classification", table, "--model", "classes", "--output", "page.html").exit_code == 0
    assert str(table) not in Path("page.html").read_text()
    refused = run("predict", "classification", columns, "--model", "classes")
    assert (refused.exit_code, "plain text is wanted here, .conll files are not read" in refused.stderr) == (2, True)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are uploaded to a hub."""
    names: list[str] = []

    def upload(api: HfApi, repo_id: str, folder_path: Path, ignore_patterns: list[str]) -> None:
        files = (path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file())
        names.extend(filter_repo_objects(files, ignore_patterns=ignore_patterns))

    monkeypatch.setattr(HfApi, "create_repo", lambda api, name, exist_ok: f"https://hub/{name}")
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return names


def test_progress_is_shown_to_those_who_watch(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = write("train.conll", ROWS), ("--model", "model")
    silent = run("train", "tagging", "--data", data, "--test", data, "--output", "model", "--steps", "1", *TINY)
    assert "%|" not in silent.output
    assert "It has not learnt: f1 0.000, the trivial baseline has 1.000. Try a trained encoder" in silent.stderr
    assert "more than 1 step (" in silent.stderr
    for module in (tasks, predicting):
        monkeypatch.setattr(module, "watched", lambda: True)
    for command in (("evaluate", "tagging", *model, "--data", data), ("predict", "tagging", data, *model)):
        result = run(*command)
        assert result.exit_code == 0, result.output
        assert "predicting:   0%|" in result.stderr
        assert "%|" not in result.stdout


def test_pretrain(run: Run, write: Write) -> None:
    folder = write("texts/a.txt", "The harbour master closed the gate . " * 12).parent
    for name in "bcdefghij":
        write(f"texts/{name}.txt", f"Nobody had told {name} of the ferry , which waited . " * 10)
    write("texts/z.txt", "Nobody had told b of the ferry , which waited . " * 10)
    write("texts/code.py", "print()")
    write("texts/empty.txt", "")
    steps = ("--steps", "6", "--evaluate-steps", "3", "--length", "32")
    result = run("pretrain", folder, "--output", "model", *steps, *TINY)
    assert result.exit_code == 0, result.output
    left = "1 document (met before), 1 file (that cannot be read), 1 file (that is no document)"
    assert f"\nData: took 10 documents; left out {left}\n" in result.stderr
    assert re.search(r"^Training data: took 9 documents, \d+ blocks\nTest data: took 1 document, ", result.stderr, re.M)
    assert "held-out MLM" in result.output
    assert "packed-training (6 calls)" in result.output
    Path("model/README.md").write_text("---\nlicense: apache-2.0\nbase_model: someone/encoder\n---\nA card.\n")
    result = run("pretrain", folder, "--output", "more", "--model", "model", *steps, "--backend", "eager")
    assert result.exit_code == 0, result.output
    card = ModelCard.load("more/README.md")
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "someone/encoder")
    digest = hashlib.sha256(Path("model/model.safetensors").read_bytes()).hexdigest()
    assert f"`model`, SHA-256 {digest}. Their licence: apache-2.0." in card.text
    assert "Ran: the original path" in result.output
    result = run("pretrain", folder / "a.txt", "--output", "more", *steps, *TINY)
    found = "--evaluate-steps tests on held-out documents, and --held-out 0.1 of 1 document is none"
    assert (result.exit_code, found in result.output) == (2, True)


def test_pretraining_goes_on_from_the_released_heads(run: Run, write: Write, tmp_path: Path) -> None:
    """So small a learning rate leaves the heads where the file has them; the same run without the file does not."""
    folder = write("texts/a.txt", "The harbour master closed the gate . " * 12).parent
    steps = ("--steps", "1", "--length", "32", "--held-out", "0", "--learning-rate", "1e-9")
    assert run("pretrain", folder, "--output", "first", *steps, *TINY).exit_code == 0
    made = SpanBERTForPreTraining.from_pretrained("first")
    torch.nn.init.normal_(made.cls.pair_target_predictions.position_embeddings.weight)
    heads = tmp_path / "model.pt"
    torch.save({f"decoder.{name}": tensor for name, tensor in made.state_dict().items()}, heads)
    for more, same in (("--heads", heads), True), ((), False):
        result = run("pretrain", folder, "--output", "second", "--model", "first", *more, *steps)
        assert result.exit_code == 0, result.output
        found = SpanBERTForPreTraining.from_pretrained("second").state_dict()
        wanted = made.state_dict()
        assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted) == same
    result = run("pretrain", folder, "--output", "second", "--model", "first", "--heads", folder / "a.txt", *steps)
    assert (result.exit_code, "does not hold a model's tensors" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("content", "arguments", "reason"),
    [
        ("Anna\n", (), "line 1: a word and its label are wanted"),
        ("Anna\tperson\n", (), "line 1: 'person' is not a label"),
        ("", (), "train.conll: there is nothing to train or score on"),
        (ROWS, ("--resume",), "there is no checkpoint in model"),
        (ROWS, ("--span-length", "0"), "'--span-length'"),
        (ROWS, ("--evaluate-steps", "1"), "--evaluate-steps is about scores of --dev: name files by --dev"),
        (ROWS, ("--patience", "5"), "--patience is about scores of --dev: name files by --dev"),
        (ROWS, ("--vocabulary", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_wrong_input_is_one_line(run: Run, write: Write, content: str, arguments: tuple[str, ...], reason: str) -> None:
    data = write("train.conll", content)
    result = run("train", "tagging", "--data", data, "--output", "model", "--steps", "1", *TINY, *arguments)
    assert result.exit_code == 2
    assert reason in result.output
    assert "Traceback" not in result.output


def test_what_is_not_installed_is_named(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    for words in (("train", "tagging", "--data", write("x", ROWS)), ("pretrain", write("y", "No text.\n"))):
        result = run(*words, "--output", "model", "--size", "tiny")
        assert result.exit_code == 2
        assert "Error: this needs accelerate: pip install " in result.output
