"""`spanbert-kernels demo` as a user types it: what it prints and writes, and what wrong input gets."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from click.testing import Result
from transformers import BertForTokenClassification, RobertaConfig, RobertaModel

import spanbert_kernels
from spanbert_kernels import ops
from spanbert_kernels.ops.encoder_stack import encoder_stack_refusal

Run = Callable[..., Result]
Write = Callable[..., Path]
QUICK = ("--quick", "--repeats", 1, "--tokens", 600)
COMMAND = [sys.executable, "-c", "from spanbert_kernels.cli import main; main()"]


def read_results(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return results


def loads(html: str) -> list[str]:
    """Everything in a page that makes a browser fetch something; data URIs and anchors inside the page do not."""
    found = re.findall(r"""(?:src|srcset|href|data|action|poster)\s*=\s*["']?\s*([^"'\s>]+)""", html)
    found += re.findall(r"""url\(\s*["']?([^"')]+)""", html) + re.findall(r"@import\s+(\S+)", html)
    return [target for target in found if not target.startswith(("data:", "#"))]


def test_version_and_help(run: Run) -> None:
    assert run("--version").output == f"spanbert-kernels, version {spanbert_kernels.__version__}\n"
    overview = run("--help")
    assert overview.exit_code == 0
    assert "demo" in overview.output
    text = run("demo", "--help").output
    assert all(option in text for option in ("--model", "--tokens", "--json", "--output", "--dtype", "--threads"))
    assert "[default: 8192" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_default_documents(run: Run, tmp_path: Path) -> None:
    result = run("demo", *QUICK, "--json", "numbers.json")
    assert result.exit_code == 0, result.output
    out = result.stdout
    assert re.search(r"^\d+ documents? of 14 used, \d+ tokens in \d+ windows\.$", out, re.MULTILINE)
    assert re.search(r"^\d+ documents left out: beyond the --tokens budget\.$", out, re.MULTILINE)
    for title in ("Encoder", "Spans up to 30 tokens", "Cross-document attention"):
        assert re.search(rf"^{title}\b", out, re.MULTILINE)
    assert re.search(r"^accelerated: SpanBERTModel, 2 layers$", out, re.MULTILINE)
    assert re.search(r"^calls: \d+ packed-inference$", out, re.MULTILINE)
    assert re.search(r"^kept: fused, float32, \d+ MiB of repacked weights$", out, re.MULTILINE)
    assert "int8" not in out
    assert "cross_document_attention on cpu" in out
    assert "All stages are within the tolerance" in out
    assert out.endswith("Report: spanbert-report.html\n")
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in result.output
    assert result.stderr.splitlines()[0] == "Loading PyTorch ..."

    results = read_results(tmp_path / "here/numbers.json")
    assert results["tokens"] <= 600
    assert [stage["within_tolerance"] for stage in results["stages"]] == [True] * 3
    assert [stage["timing"]["most"] for stage in results["stages"]] == [1] * 3
    assert all(stage["timing"]["accelerated_seconds"] > 0 for stage in results["stages"])
    assert results["machine"]["processor"]
    assert results["versions"]["torch"] == torch.__version__
    html = (tmp_path / "here/spanbert-report.html").read_text(encoding="utf-8")
    assert loads(html) == []
    assert set(re.findall(r"https?://[^\s\"'<>]+", html)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert results["summary"].split(";")[0] in html
    assert str(tmp_path) not in html
    assert os.uname().nodename not in html


def test_a_model_folder(run: Run, model_folder: Path, corpus: Path, tmp_path: Path) -> None:
    result = run("demo", corpus, "--model", model_folder, "--repeats", 1, "--json", "n.json", "--max-width", 4)
    assert result.exit_code == 0, result.output
    results = read_results(tmp_path / "here/n.json")
    assert results["documents"] == 6
    assert results["model"].startswith(f"weights of {model_folder}: 2 layers, hidden size 32, 4 heads")
    assert results["tokenizer"].startswith(f"the tokenizer of {model_folder}")
    # Every document is longer than 22 tokens; what each is cut into covers it.
    assert results["split"] == 6
    assert "6 documents longer than the model's 24 positions: split into" in result.stdout
    html = (tmp_path / "here/spanbert-report.html").read_text(encoding="utf-8")
    assert f"split into {results['windows']} windows" in html
    assert "Spans up to 4 tokens" in result.stdout


def test_bfloat16_and_threads(run: Run, model_folder: Path, corpus: Path, tmp_path: Path) -> None:
    result = run(
        *("demo", corpus, "--model", model_folder, "--repeats", 1, "--dtype", "bfloat16", "--threads", 1),
        *("--batch-size", 3, "--output", "r.html", "--json", "n.json"),
    )
    assert result.exit_code == 0, result.output
    results = read_results(tmp_path / "here/n.json")
    assert results["model"].endswith("bfloat16")
    assert results["machine"]["cores"].endswith("1 thread in PyTorch")
    assert results["batch_size"] == 3
    assert results["command"].startswith(f"spanbert-kernels demo {corpus} --model {model_folder} --batch-size 3 ")


@pytest.mark.skipif(encoder_stack_refusal("int8") is not None, reason=str(encoder_stack_refusal("int8")))
def test_weights_of_8_bits_say_what_they_changed(run: Run, model_folder: Path, corpus: Path, tmp_path: Path) -> None:
    folder = copy_model(model_folder, tmp_path / "tagger")
    torch.manual_seed(0)
    BertForTokenClassification.from_pretrained(model_folder, num_labels=40).save_pretrained(folder)
    result = run(
        *("demo", corpus, "--model", folder, "--repeats", 1, "--weights", "int8", "--max-width", 2, "--json", "n.json")
    )
    assert result.exit_code == 0, result.output
    results = read_results(tmp_path / "here/n.json")
    [encoder, *_] = results["stages"]
    changed, error = encoder["changed_predictions"], encoder["relative_error"]
    assert 0 < changed < results["tokens"] / 2
    assert 1e-4 < error < 0.05
    said = (
        f"int8 weights changed the hidden states by at most {error:.2%} of the largest, and the prediction of "
        f"{changed:,} of {results['tokens']:,} tokens ({changed / results['tokens']:.2%})."
    )
    assert said in " ".join(result.stdout.split())
    assert re.search(r"^kept: fused, int8, \d+ MiB of repacked weights$", result.stdout, re.MULTILINE)
    assert "int8 changed the hidden states by up to" in result.stdout
    html = (tmp_path / "here/spanbert-report.html").read_text(encoding="utf-8")
    assert said in html
    assert "\n".join(results["acceleration"]) in html
    assert results["weights"] == "int8"


def test_unreadable_files_are_named_and_the_rest_is_done(run: Run, write: Write, tmp_path: Path) -> None:
    for number in range(3):
        write(f"in/{number}.txt", f"A ship number {number} sails to the harbour. " * 5)
    write("in/binary.txt", b"\0\1\2")
    write("in/empty.txt", "")
    write("in/lines.jsonl", '{"text": "A good line about a ship."}\nbad\n')
    write("in/LICENSE", "All rights.")
    result = run("demo", tmp_path / "in", tmp_path / "missing.txt", *QUICK, "--json", "n.json")
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.stderr.splitlines() if line.startswith("Warning")]
    assert warnings[:3] == [
        f"Warning: {tmp_path}/in/binary.txt is binary (character 0 is NUL); skipped",
        f"Warning: {tmp_path}/in/empty.txt is empty; skipped",
        f"Warning: {tmp_path}/missing.txt does not exist; skipped",
    ]
    assert warnings[3].startswith(f"Warning: {tmp_path}/in/lines.jsonl: line 2 is not JSON")
    assert len(warnings) == 4
    assert "4 documents of 4 used" in result.stdout
    assert "3 files skipped with a warning." in result.stdout
    assert "1 file passed over: no documents." in result.stdout
    html = (tmp_path / "here/spanbert-report.html").read_text(encoding="utf-8")
    for name in ("binary.txt", "empty.txt", "missing.txt", "lines.jsonl", "LICENSE"):
        assert name in html


def test_many_warnings_are_counted(run: Run, write: Write, tmp_path: Path) -> None:
    write("in/good.txt", "A ship sails to the harbour. " * 9)
    for number in range(12):
        write(f"in/{number}.txt", "")
    result = run("demo", tmp_path / "in", *QUICK)
    assert result.exit_code == 0
    assert result.stderr.count("is empty; skipped") == 8
    assert "4 more warnings; the report has all of them" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.txt"], "no document to work on: missing.txt does not exist"),
        (["."], "no document to work on: . the folder holds no files"),
        (["--tokens", "3"], "Invalid value for '--tokens': 3 is not in the range 16<=x<="),
        (["--tokens", "many"], "'many' is not a valid integer"),
        (["--max-width", "0"], "Invalid value for '--max-width': 0 is not in the range"),
        (["--threads", "-1"], "Invalid value for '--threads': -1"),
        (["--dtype", "float8"], "Invalid value for '--dtype': 'float8' is not one of 'float32', 'bfloat16'"),
        (["--weights", "int4"], "Invalid value for '--weights': 'int4' is not 'int8'"),
        (["--fast"], "No such option '--fast'"),
        (["--quick", "--model", "x"], "--quick is a tiny random model, so it cannot be combined with --model x"),
        (["--output", "."], "cannot write the report to .: it is a folder"),
        (["--output", "no/r.html"], "cannot write the report to no/r.html: there is no folder no"),
        (["--json", "no/n.json"], "cannot write the results to no/n.json: there is no folder no"),
        (["--model", "no/such/folder"], "cannot load the model 'no/such/folder': there is no folder"),
        (["--model", "spanbert-huge"], "cannot load the model 'spanbert-huge': no checkpoint is called"),
    ],
)
def test_wrong_values_are_named_with_exit_code_2(run: Run, arguments: list[str], message: str) -> None:
    result = run("demo", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_none_left_gives_the_first_reasons(run: Run, write: Write, tmp_path: Path) -> None:
    for number in range(5):
        write(f"in/{number}.txt", b"\0")
    result = run("demo", tmp_path / "in")
    assert result.exit_code == 2
    first = f"{tmp_path}/in/0.txt is binary (character 0 is NUL); "
    assert result.stderr.startswith(f"Error: no document to work on: {first}")
    assert result.stderr.endswith("(and 2 more)\n")
    write("notes/README.md", "Nothing.")
    assert f"{tmp_path}/notes holds no documents" in run("demo", tmp_path / "notes").stderr


def test_documents_without_a_token(run: Run, write: Write, model_folder: Path) -> None:
    result = run("demo", write("a.txt", "\u200d\u200d\ufeff"), "--model", model_folder)
    assert result.exit_code == 2
    assert "the tokenizer makes no token of any document" in result.stderr


def test_models_that_are_none(run: Run, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    result = run("demo", "--model", folder)
    assert result.exit_code == 2
    assert "holds no config.json, so it is no checkpoint" in result.stderr

    roberta = tmp_path / "roberta"
    RobertaModel(
        RobertaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    ).save_pretrained(roberta)
    result = run("demo", "--model", roberta)
    assert result.exit_code == 2
    assert "holds a model of type 'roberta'" in result.stderr


def copy_model(source: Path, target: Path, leave_out: str = "") -> Path:
    target.mkdir()
    for path in source.iterdir():
        if path.name != leave_out:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_model_without_a_vocabulary(run: Run, model_folder: Path, tmp_path: Path) -> None:
    result = run("demo", "--model", copy_model(model_folder, tmp_path / "copy", "vocab.txt"))
    assert result.exit_code == 2
    assert "cannot load the tokenizer of" in result.stderr
    assert "holds no vocabulary" in result.stderr


def test_a_checkpoint_that_lacks_weights(run: Run, model_folder: Path, tmp_path: Path) -> None:
    """Left to itself, transformers fills in random ones and says so where nobody looks."""
    folder = copy_model(model_folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    result = run("demo", "--model", folder)
    assert result.exit_code == 2
    assert "its checkpoint lacks 16 of the encoder's weights, such as encoder.layer.2." in result.stderr


def test_a_vocabulary_larger_than_the_model(run: Run, model_folder: Path, tmp_path: Path) -> None:
    folder = copy_model(model_folder, tmp_path / "copy")
    with (folder / "vocab.txt").open("a") as vocabulary:
        vocabulary.write("\n".join(f"extra{i}" for i in range(9)) + "\n")
    result = run("demo", "--model", folder)
    assert result.exit_code == 2
    assert re.search(r"has \d+ entries, but its model only \d+", result.stderr)


def test_a_stage_that_fails_is_shown_and_the_exit_code_is_1(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    span_pool = ops.span_pool
    monkeypatch.setattr(ops, "span_pool", lambda *args: span_pool(*args) * 1.001)
    result = run("demo", *QUICK, "--json", "n.json")
    assert result.exit_code == 1
    out = " ".join(result.stdout.split())
    assert re.search(r"accelerated .* FAILED", out)
    assert "FAILED: Spans up to 30 tokens: off by" in out
    assert "within the tolerance, checked" not in out
    assert max(map(len, result.stdout.splitlines())) <= 80
    results = read_results(tmp_path / "here/n.json")
    assert [stage["within_tolerance"] for stage in results["stages"]] == [True, False, True]
    html = (tmp_path / "here/spanbert-report.html").read_text(encoding="utf-8")
    assert "FAILED: the results of Spans up to 30 tokens are outside the tolerance." in html
    assert html.count(">FAILED") == 2  # in the table, and beside the float64 comparison


def test_results_that_are_not_numbers_are_shown(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    span_pool = ops.span_pool
    monkeypatch.setattr(ops, "span_pool", lambda *args: span_pool(*args) * float("nan"))
    result = run("demo", *QUICK, "--json", "n.json")
    assert result.exit_code == 1
    assert "NaN" in result.stdout
    results = read_results(tmp_path / "here/n.json")
    assert results["stages"][1]["agreement"]["largest_difference"] is None


def test_names_that_are_markup_or_no_unicode(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    text = "A ship sails to the harbour and back again. "
    for number, name in enumerate([b"<b>&$x_1$[red].txt", b"caf\xe9.txt", "日本.txt".encode()]):
        Path(os.fsdecode(bytes(folder) + b"/" + name)).write_text(text * 4 + str(number))
    Path(os.fsdecode(bytes(folder) + b"/\xff[bold].txt")).write_bytes(b"")
    result = run("demo", folder, *QUICK)
    assert result.exit_code == 0, result.output
    assert "/\ufffd[bold].txt is empty; skipped" in result.stderr
    html = (tmp_path / "here/spanbert-report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;$x_1$[red]" in html
    assert "<b>" not in html
    assert "日本" in html


def test_one_short_document(run: Run, write: Write) -> None:
    result = run("demo", write("a.txt", "Ahoy!"), *QUICK)
    assert result.exit_code == 0, result.output
    assert "1 document of 1 used" in result.stdout


def test_an_interrupt_leaves_no_traceback(tmp_path: Path) -> None:
    """Also where whoever started the tests ignores interrupts, which the child must not inherit."""
    command = [*COMMAND, "demo", "--quick", "--repeats", "1000000"]
    pipe = subprocess.PIPE
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with children.started(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
            signal.signal(signal.SIGINT, ignored)
            assert process.stderr is not None
            seen = "".join(itertools.takewhile(lambda line: not line.startswith("Encoder"), process.stderr))
            process.send_signal(signal.SIGINT)
            out, rest = process.communicate()
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert "Traceback" not in seen + rest
    assert rest.rstrip().endswith("Aborted!")
    assert out == ""
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
