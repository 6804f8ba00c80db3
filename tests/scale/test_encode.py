"""`spanbert-kernels encode`: every document exactly once, and what it says of it."""

from __future__ import annotations

import bz2
import gc
import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from spanbert_kernels import scale
from spanbert_kernels.cli import main
from spanbert_kernels.data.text import other_form
from spanbert_kernels.scale import DocumentEncoder, Wanted, corpus
from spanbert_kernels.scale.scattered import ScatteredClusters
from spanbert_kernels.scale.shards import ShardRecord
from spanbert_kernels.tasks import atomic

ROOT = Path(__file__).parents[2]
parquet = pytest.importorskip("pyarrow.parquet", reason="files of vectors are Parquet")


def encode(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["encode", *map(str, words), "--tokenizers", "0", "--batch-tokens", "64"])
    assert done.exit_code == code, done.output
    return done.output


def rows(folder: Path) -> list[dict[str, Any]]:
    return parquet.read_table(sorted(folder.glob("part-*.parquet"))).to_pylist()


def test_lines_in_their_order(model: str, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(lines, "--model", model, "--output", out, "--shard-documents", 25)
    texts = lines.read_text().splitlines()
    found = rows(out)
    assert [row["line"] for row in found] == list(range(1, len(texts) + 1))
    expected = DocumentEncoder(model)({"text": texts})["vector"]
    np.testing.assert_allclose(np.array([row["vector"] for row in found]), expected, atol=2e-6)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"]
    assert [shard["documents"] for shard in manifest["shards"]] == [25, 25, 10]
    assert "60 vectors of 60 documents" in (out / "summary.html").read_text()


def test_the_garbage_collector_looks_through_documents_alone_while_it_lasts(
    model: str, lines: Path, tmp_path: Path
) -> None:
    seen: list[int] = []
    given = {"shard_documents": 20, "batch_tokens": 64, "tokenizers": 0}

    def hear(_: corpus.CorpusProgress) -> None:
        seen.append(gc.get_freeze_count())

    gc.unfreeze()  # what the tests have frozen
    try:
        scale.encode(lines, model, tmp_path / "out", Wanted(), hear=hear, **given)
        left = gc.get_freeze_count()
        gc.freeze()
        scale.encode(lines, model, tmp_path / "again", Wanted(), **given)
        others = gc.get_freeze_count()
    finally:
        gc.freeze()
    assert max(seen) > 10_000
    assert left == 0
    assert others > 10_000  # what somebody else has frozen stays so


def test_what_was_done_is_kept_and_what_is_missing_or_changed_is_made(
    model: str, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = (lines, "--model", model, "--output", out, "--shard-documents", 20)
    encode(*words)
    before = rows(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    (out / "part-00000-00001.parquet").write_bytes((out / "part-00000-00001.parquet").read_bytes()[:-9])
    left = out / f".part-00000-00002.x{atomic.PARTIAL}"
    left.write_text("half")
    assert "40 documents were there from an earlier run" in encode(*words)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert [name for name in times if times[name] != after[name]] == ["part-00000-00001.parquet"]
    assert not left.exists()
    assert [row["line"] for row in rows(out)] == [row["line"] for row in before]
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:30]))
    assert "20 documents were there" in encode(*words)
    assert [row["line"] for row in rows(out)] == list(range(1, 31))
    assert "another model" in encode(*words, "--half", code=2)


def test_memory_holds_the_rejects_of_no_file_that_is_written(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand in the files of vectors; a run that finds these there says the same."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("".join(f'{{"text": "it rains {n}"}}\n{{"number": {n}}}\n' for n in range(40)))
    held: list[ShardRecord] = []
    write = corpus._write_rejects
    monkeypatch.setattr(
        corpus, "_write_rejects", lambda folder, records: held.extend(records) or write(folder, records)
    )
    found = []
    for _ in range(2):
        done = corpus.encode(source, model, out, Wanted("documents"), shard_documents=10, tokenizers=0)
        assert done.manifest["rejects"] == done.progress.rejects == 40
        found.append((out / "rejects.jsonl").read_text())
        (out / "rejects.jsonl").unlink()
    assert found[0] == found[1]
    assert [json.loads(line)["line"] for line in found[0].splitlines()] == list(range(2, 81, 2))
    assert len(held) == 2 * len(done.manifest["shards"]) > 4
    assert not any(record.rejects for record in held)


def test_the_docs_sort_an_input_by_its_clusters(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = re.findall(r"^python -c '(.*)'$", (ROOT / "docs" / "encode.md").read_text(), re.M)
    monkeypatch.chdir(tmp_path)
    texts = {"a": "places", "b": "weather", "c": "places"}
    records = (json.dumps({"id": name, "text": "it rains", "topic": topic}) for name, topic in texts.items())
    Path("corpus.jsonl").write_text("\n".join(records))
    exec(line)
    said = encode("corpus.parquet", "--model", model, "--output", "vectors", "--clusters", "topic")
    assert "do not stand in a row" not in said
    assert sorted(row["id"] for row in rows(Path("vectors"))[:2]) == ["a", "c"]


def test_compressed_files_and_rejects(model: str, tmp_path: Path) -> None:
    import pyarrow as pa

    good, bad = b'{"id": "a", "text": "it rains"}\n', b'\n{"id"\n{"text": 3}\n{"text": "\xff"}\n{"text": " "}\n'
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl.gz").write_bytes(gzip.compress(good + bad))
    (source / "b.jsonl.bz2").write_bytes(bz2.compress(good))
    (source / "c.jsonl.xz").write_bytes(lzma.compress(good))
    with pa.output_stream(str(source / "d.jsonl.zst"), compression="zstd") as stream:
        stream.write(good)
    table = pa.table({"text": ["we go", None], "id": [5, 6], "more": [0.5, 1.0]})
    parquet.write_table(table, source / "e.parquet")
    (source / "f.txt.gz").write_bytes(gzip.compress(b"we go\n" * 999)[:-20])
    out = tmp_path / "out"
    encode(source, "--model", model, "--output", out, code=3)
    assert [row["id"] for row in rows(out)][:5] == ["a", "a", "a", "a", "5"]
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    found = [(Path(each["file"]).name, each["line"], each["reason"].split(":")[0]) for each in rejects]
    assert found[:5] == [
        ("a.jsonl.gz", 3, "not JSON"),
        ("a.jsonl.gz", 4, "text is no text"),
        ("a.jsonl.gz", 5, "not UTF-8 text (byte 10 of the record is 0xff)"),
        ("a.jsonl.gz", 6, "the text has no token"),
        ("e.parquet", 2, "no field 'text' that holds text"),
    ]
    assert [each[0] for each in found[5:]] == ["f.txt.gz"]


def test_clusters_that_do_not_stand_in_a_row_are_told_of(model: str, tmp_path: Path) -> None:
    """And what a vector is made of does not depend on where files of vectors end."""
    source, topics = tmp_path / "a.jsonl", ["x", 1, "1", "y", "x", "x"]
    texts = ["we go", "a storm", "it rains", "home", "we go home", "a storm"]
    records = [{"text": text, "topic": topic} for text, topic in zip(texts, topics, strict=True)]
    source.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    words = (source, "--model", model, "--clusters", "topic", "--output")
    message = "1 of 3 clusters do not stand in a row ('x'): each run of documents is a cluster of its own. Sort the"
    assert f"{source}: {message} input by 'topic'" in encode(*words, tmp_path / "one")
    assert message in encode(*words, tmp_path / "some", "--shard-documents", 1)
    assert message in encode(*words, tmp_path / "some", "--shard-documents", 1)  # also where all is there
    expected = DocumentEncoder(model, clusters="topic")({"text": texts, "topic": ["a", "b", "b", "c", "d", "d"]})
    for name in ("one", "some"):
        found = np.array([row["vector"] for row in rows(tmp_path / name)])
        np.testing.assert_allclose(found, expected["vector"], atol=2e-6)
    assert json.loads((tmp_path / "one/manifest.json").read_text())["scattered_clusters"] == 1
    again = tmp_path / "b.jsonl"  # of a cluster with a bad record inside, where a file of vectors may end
    again.write_text("{}\nbad\n{}\n".format(*map(json.dumps, records[4:])))
    words = (again, "--model", model, "--clusters", "topic", "--output")
    assert "1 of 1 clusters do not" in encode(*words, tmp_path / "cut", "--shard-documents", 1, code=3)
    found, alone = np.array([row["vector"] for row in rows(tmp_path / "cut")]), DocumentEncoder(model)
    np.testing.assert_allclose(found, alone({"text": texts[4:]})["vector"], atol=2e-6)
    again.write_text("".join(f"{json.dumps(record)}\n" for record in records[:2]))
    told = encode(again, "--model", model, "--clusters", "topic", "--output", tmp_path / "none")
    assert "in a row" not in told
    assert "2 documents, 2 vectors in 1 file: " in told


def test_no_more_clusters_are_remembered_than_so_many() -> None:
    found = ScatteredClusters(remembered=1000)
    for _ in range(2):
        found.add(str(number) for number in range(5000))
    assert found.count == 1000
    assert len(found._once) + len(found._again) == 1000
    assert "1,000 of the first 1,000 clusters do not stand in a row ('0', '1', '2', ...)" in str(found.message("topic"))


def test_tables_and_other_encodings(model: str, tmp_path: Path) -> None:
    """A table is as long as it likes; its rows are known by the names in its first line."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    table = "ID;TEXT;X\r\n" + "".join(f'{i};"it\nrains";x\r\n' for i in range(300)) + "300;we go\r\n;;\r\n"
    (source / "a.csv.gz").write_bytes(gzip.compress(table.encode("utf-16")))
    (source / "b.tsv").write_text('ID\tREMARK\n1\t"it rains\n')
    (source / "c.txt").write_bytes("it rains\r\nwe go\u2028home\r\n".encode("utf-16"))
    (source / "d.txt").write_bytes(b"PK\x03\x04")
    (source / "e.txt").write_bytes(b"it rains\0\n")
    (source / "f.csv").write_text('text\nwe go\n"it rains\n')
    said = encode(source, "--model", model, "--output", out, code=3)
    assert [row["id"] for row in rows(out)][:300] == [str(i) for i in range(300)]
    assert [row["line"] for row in rows(out)][299:] == [600, 1, 2, 2]
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(Path(each["file"]).name, each["line"], each["reason"]) for each in rejects] == [
        ("a.csv.gz", 602, "3 columns are wanted (ID, TEXT, X), got 2"),
        ("b.tsv", 2, "no field 'text' that holds text; there is no text among ID, REMARK"),
        ("d.txt", 1, f"the rest of the file cannot be read: it {other_form(b'PK' + bytes([3, 4]))}"),
        ("e.txt", 1, "binary (character 8 of the record is NUL)"),
        ("f.csv", 3, f"the rest of the file cannot be read: {rejects[-1]['reason'].split(': ')[1]}"),
    ]
    assert "line 602: 3 columns are wanted" in said
    encode(source / "b.tsv", "--model", model, "--output", tmp_path / "more", "--text", "REMARK")
    assert [row["id"] for row in rows(tmp_path / "more")] == ["1"]


def test_nothing_half_written_is_left(model: str, lines: Path, tmp_path: Path) -> None:
    """A worker that dies leaves a file aside, and Ray begins another in its place."""
    out = tmp_path / "out"
    left = out / f".part-00000-00000.parquet.x{atomic.PARTIAL}"
    scale.encode([lines], model, out, Wanted(), tokenizers=0, hear=lambda progress: left.write_text("half"))
    assert {path.name for path in out.iterdir()} == {"part-00000-00000.parquet", "manifest.json"}


def test_a_folder_of_somebody_else_is_left_alone(model: str, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert "is not empty, and no encoding began there" in encode(lines, "--model", model, "--output", out, code=2)


def test_spans_of_another_file(model: str, tmp_path: Path) -> None:
    source, spans, out = tmp_path / "a.txt", tmp_path / "spans.jsonl", tmp_path / "out"
    source.write_text("It rains in Paris.\nWe go home\n")
    spans.write_text(json.dumps({"id": f"{source}:1", "spans": [[12, 17], {"start": 0, "end": 8}]}))
    encode(source, "--model", model, "--output", out, "--spans-from", spans, code=3)
    assert [(row["text"], row["start"]) for row in rows(out)] == [("Paris", 12), ("It rains", 0)]
    assert "no field 'spans'" in (out / "rejects.jsonl").read_text()


def test_spans_have_characters_and_texts(model: str, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_text('{"id": "x", "text": "It rains in Paris."}\n')
    encode(source, "--model", model, "--output", out, "--spans", 2, "--parts", "start,end", "--half")
    found = rows(out)
    texts = ["It", "It rains", "rains", "rains in", "in", "in Paris", "Paris", "Paris.", "."]
    assert [(row["text"], row["start"]) for row in found] == list(
        zip(texts, [0, 0, 3, 3, 9, 9, 12, 12, 17], strict=True)
    )
    assert len(found[0]["vector"]) == 32
