"""The tasks on real data: pre-training and its use, each task against its trivial baseline, over several seeds.

    SPANBERT_KERNELS_DATA=... python benchmarks/task_results.py [ROW ...] [--seeds 3] [--output FILE]

Small models, minutes each; no setting was chosen on the data that a row is scored on. A row that is there already is
replaced. The JSON says what ran; the docs' table is made from it by `readme_tables.py`.
"""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from spanbert_kernels import SpanBERTForPreTraining, SpanBERTForSequenceClassification
from spanbert_kernels.data.conllu import read_sentences
from spanbert_kernels.data.entities import read_marked, read_tagged
from spanbert_kernels.data.labelled import LabelledDocument, read_labelled
from spanbert_kernels.data.summaries import read_summarised
from spanbert_kernels.tasks import classification
from spanbert_kernels.tasks.base import load
from spanbert_kernels.tasks.cross_document_coreference import clusters_of
from spanbert_kernels.tasks.pretraining import MaskedBlocks, blocks_of, pretrain
from spanbert_kernels.tasks.progress import quiet_transformers
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

Files = tuple[Path, Path]  # to train and to test on


def write_labelled(path: Path, documents: list[LabelledDocument]) -> Path:
    fields = ({"text": d.text, "label": d.label, "cluster": d.cluster} for d in documents)
    path.write_text("".join(json.dumps(each) + "\n" for each in fields))
    return path


def sentiment(data: Path, scratch: Path) -> Files:
    """senti4sd; posts of the test file that stand in the training file as well are left out of the latter."""
    test = read_labelled(data / "senti4sd/test1326itemPOLARITY.csv")
    known = {document.text for document in test}
    train = [d for d in read_labelled(data / "senti4sd/train3098itemPOLARITY.csv") if d.text not in known]
    return write_labelled(scratch / "train.jsonl", train), write_labelled(scratch / "test.jsonl", test)


def sentiment_of_clusters(data: Path, scratch: Path) -> Files:
    """The same posts in clusters of four of one polarity: clusters by construction, not by nature."""
    found = []
    for path in sentiment(data, scratch):
        documents = read_labelled(path)
        random.Random(0).shuffle(documents)
        documents.sort(key=lambda document: document.label)
        seen: dict[str, int] = {}
        clustered = []
        for document in documents:
            number = seen[document.label] = seen.get(document.label, -1) + 1
            cluster = f"{document.label} {number // 4}"
            clustered.append(LabelledDocument(document.text, document.label, cluster, path, document.line))
        found.append(write_labelled(path.with_name(f"clustered-{path.name}"), clustered))
    return found[0], found[1]


def genres(data: Path, scratch: Path) -> Files:
    """Pieces of five sentences of gum's documents, each labelled with its genre; a document is a cluster."""
    found = []
    for part in ("train", "test"):
        pieces = []
        for path in sorted((data / "gum/dep" / part).glob("*.conllu")):
            sentences = [sentence.text() for sentence in read_sentences(path) if sentence.tokens]
            texts = (" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5))
            pieces += [LabelledDocument(text, path.stem.split("_")[1], path.stem, path, 1) for text in texts]
        found.append(write_labelled(scratch / f"{part}.jsonl", pieces))
    return found[0], found[1]


def topics(data: Path, scratch: Path) -> Files:
    """The four topics of meantime; every third document is held out."""
    parts: tuple[list[LabelledDocument], list[LabelledDocument]] = ([], [])
    for number, each in enumerate(sorted(read_marked(data / "meantime/meantime.conll"), key=lambda each: each.name)):
        topic = each.name.strip("(").split("/")[0]
        document = LabelledDocument(" ".join(each.words), topic, None, scratch, 1)
        parts[number % 3 == 2].append(document)
    return write_labelled(scratch / "train.jsonl", parts[0]), write_labelled(scratch / "test.jsonl", parts[1])


def meantime(data: Path, scratch: Path) -> Files:
    """Topics are clusters; of each, every third document is held out. Chains cross topics, within a part only there."""
    text = (data / "meantime/meantime.conll").read_text()
    parts: tuple[list[str], list[str]] = ([], [])
    for number, block in enumerate(text.split("#begin document ")[1:]):
        parts[number % 3 == 2].append(f"#begin document {block}")
    files = scratch / "train.conll", scratch / "test.conll"
    for path, blocks in zip(files, parts, strict=True):
        path.write_text("".join(blocks))
    return files


def participants(data: Path, scratch: Path) -> Files:
    """Events of meantime and their participants, whatever their role, where a part has mentions of both."""
    links = []
    for line in (data / "meantime/list_instances.csv").read_text().splitlines():
        columns = line.split("\t")
        if len(columns) > 12 and columns[1] == "EVENT":
            links += [(columns[0], part.rsplit("_", 1)[0]) for part in re.split(r"[;, ]+", columns[12]) if "_" in part]
    folders = []
    for file in meantime(data, scratch):
        folder = scratch / file.stem
        folder.mkdir()
        text = file.read_text()
        (folder / "documents.conll").write_text(text)
        names = {re.sub("^(cross_|intra_)+", "", name): name for name in re.findall(r"[a-z_]+[A-Z]{3}\d+", text)}
        topics = [
            {mention.entity for document in cluster for mention in document.mentions}
            for cluster in clusters_of(read_marked(folder / "documents.conll"))
        ]
        found = [(names[a], names[b]) for a, b in dict.fromkeys(links) if a in names and b in names]
        rows = (f"{a}\t{b}\tparticipant\n" for a, b in found if any({a, b} <= topic for topic in topics))
        (folder / "relations.tsv").write_text("".join(rows))
        folders.append(folder)
    return folders[0], folders[1]


def ntrex(language: str) -> Callable[[Path, Path], Files]:
    """Lines of every fifth document are held out."""

    def files(data: Path, scratch: Path) -> Files:
        folder = data / "ntrex"
        names = (folder / "DOCUMENT_IDS.tsv").read_text().split()
        held_out = set(list(dict.fromkeys(names))[4::5])
        parts = scratch / "train", scratch / "test"
        for side, name in (("source", "src.eng"), ("target", f"ref.{language}")):
            lines = (folder / f"newstest2019-{name}.txt").read_text().split("\n")
            for part, wanted in zip(parts, (False, True), strict=True):
                part.mkdir(exist_ok=True)
                kept = (line for line, own in zip(lines, names, strict=False) if (own in held_out) == wanted)
                (part / f"{side}.txt").write_text("\n".join(kept) + "\n")
        return parts

    return files


def below(train: str, test: str) -> Callable[[Path, Path], Files]:
    """Files that are used as they are."""
    return lambda data, scratch: (data / train, data / test)


@dataclass(frozen=True)
class RowOfTask:
    """A task on data, how long it trains, and the score that is compared with the baseline's."""

    task: str
    data: str
    files: Callable[[Path, Path], Files]
    score: str
    options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False


def training(epochs: float, batch_size: int = 16, learning_rate: float = 5e-4) -> dict[str, Any]:
    return {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}


SCITLDR = below("scitldr/train.jsonl", "scitldr/test.jsonl")
WNUT = below("wnut17/wnut17train.conll", "wnut17/emerging.test.annotated")
EWT = below("ewt/en_ewt-ud-train.part.conllu", "ewt/en_ewt-ud-test.conllu")
GUM = below("gum/coref/train", "gum/coref/test")
ROWS = {
    "tagging": RowOfTask("tagging", "wnut17", WNUT, "f1", training(20)),
    "tagging-pretrained": RowOfTask("tagging", "wnut17, pre-trained", WNUT, "f1", training(20), pretrained=True),
    "nested": RowOfTask("nested", "gum", GUM, "F1", training(20, 8)),
    "coreference": RowOfTask("coreference", "gum", GUM, "CoNLL F1", training(30, 4)),
    "cross-document-coreference": RowOfTask(
        "cross_document_coreference", "meantime, every third document held out", meantime, "CoNLL F1", training(60, 1)
    ),
    "relations": RowOfTask(
        "relations", "meantime's events and participants, the same documents", participants, "F1", training(20, 1)
    ),
    "summaries-scitldr": RowOfTask("summarisation", "scitldr", SCITLDR, "ROUGE-L", training(10)),
    "summaries-gum": RowOfTask(
        "summarisation", "gum, human summaries", below("gum/dep/train", "gum/dep/test"), "ROUGE-L", training(20, 4)
    ),
    "translation-zh": RowOfTask("translation", "ntrex en-zh, split by document", ntrex("zho-CN"), "BLEU", training(15)),
    "translation-de": RowOfTask("translation", "ntrex en-de, split by document", ntrex("deu"), "BLEU", training(15)),
    "parsing-ewt": RowOfTask("parsing", "ewt", EWT, "LAS", training(15)),
    "parsing-gum": RowOfTask("parsing", "gum", below("gum/dep/train", "gum/dep/test"), "LAS", training(15)),
    "sentiment": RowOfTask("classification", "senti4sd", sentiment, "accuracy", training(6)),
    "sentiment-of-clusters": RowOfTask(
        "classification", "senti4sd, clusters of 4 by construction", sentiment_of_clusters, "accuracy", training(6, 8)
    ),
    "genres": RowOfTask("classification", "genres of gum, pieces of a document", genres, "accuracy", training(20, 4)),
    "topics": RowOfTask("classification", "topics of meantime", topics, "accuracy", training(20, 8)),
}
SPEED = "speed"
PRETRAINING = {"steps": 5000, "batch_size": 32, "learning_rate": 1e-3, "evaluate_steps": 500}


def texts_of(data: Path) -> list[str]:
    """Of the training parts of gum, ewt, scitldr, senti4sd and wnut17."""
    found = []
    for path in [*sorted((data / "gum/dep/train").glob("*.conllu")), data / "ewt/en_ewt-ud-train.part.conllu"]:
        for sentence in read_sentences(path):
            if sentence.new_document is not None:
                found.append("")
            found[-1] = f"{found[-1]} {sentence.text()}".strip()
    found += [pair.source for pair in read_summarised(data / "scitldr/train.jsonl", targets=False)]
    found += [document.text for document in read_labelled(data / "senti4sd/train3098itemPOLARITY.csv")]
    found += [" ".join(sentence.words) for sentence in read_tagged(data / "wnut17/wnut17train.conll")]
    return found


def pretrained(data: Path, folder: Path, seed: int, size: str) -> dict[str, Any]:
    """Model and vocabulary in `folder`, and the losses on held-out documents."""
    texts = texts_of(data)
    held_out, train = texts[9::10], [text for i, text in enumerate(texts) if i % 10 != 9]
    start = Start(size=size)
    tokenizer = start.tokenizer(train)
    model = start.build(SpanBERTForPreTraining, tokenizer, seed)
    begin = time.perf_counter()
    log = pretrain(model, tokenizer, train, held_out, TrainingOptions(folder, seed=seed, quiet=True, **PRETRAINING))
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in entries))
    return {
        "seed": seed,
        "seconds": time.perf_counter() - begin,
        "MLM": log.values("eval_mlm_loss"),
        "SBO": log.values("eval_sbo_loss"),
        "paths": log.paths,
    }


def both_paths(data: Path, folder: Path, size: str) -> dict[str, Any]:
    """A classifier of posts trained on either path, without dropout, whose random numbers differ: losses and speed."""
    train, _ = sentiment(data, folder)
    documents = read_labelled(train)
    found: dict[str, Any] = {}
    for backend in ("auto", "eager"):
        start = Start(size=size)
        tokenizer = start.tokenizer(document.text for document in documents)
        labels = dict(enumerate(sorted({document.label for document in documents})))
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = start.build(SpanBERTForSequenceClassification, tokenizer, 0, id2label=labels, **none)
        options = TrainingOptions(
            folder / backend, steps=100, batch_size=32, learning_rate=2e-4, quiet=True, backend=backend
        )
        log = classification.train(model, tokenizer, documents, options)
        (per_second,) = log.values("train_steps_per_second")
        found[backend] = {"losses": log.values("loss"), "steps a second": per_second, "paths": log.paths}
    lengths = [
        len(each["input_ids"]) for each in classification.encode(documents, tokenizer, list(labels.values()), 512)
    ]
    return found | {"longest": max(lengths), "mean length": sum(lengths) / len(lengths)}


def sampler(data: Path) -> dict[str, float]:
    """Tokens that are masked in a second, by one thread, blocks of 128 as `pretrain` draws them."""
    texts = texts_of(data)
    tokenizer = Start().tokenizer(texts)
    masked = MaskedBlocks(blocks_of(texts, tokenizer, 128), tokenizer, 0)
    begin = time.perf_counter()
    tokens = sum(len(masked[index]["input_ids"]) for index in range(len(masked)))
    return {"tokens": tokens, "tokens a second": tokens / (time.perf_counter() - begin)}


def runs(name: str, data: Path, seeds: int, size: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A row's training and scores, a seed each. Taggers with and without pre-training have the same vocabulary."""
    row = ROWS[name]
    scratch = folder / name
    scratch.mkdir()
    train, test = row.files(data, scratch)
    for seed in range(seeds):
        options = TrainingOptions(scratch / f"model-{seed}", seed=seed, quiet=True, **row.options)
        start = Start(size=size)
        if row.task == "tagging":
            base = folder / f"pretrained-{seed}"
            start = Start(model=str(base)) if row.pretrained else Start(size=size, vocabulary=base / "vocab.txt")
        begin = time.perf_counter()
        outcome = load(row.task).train(train, test, start, options, None)
        yield {
            "seed": seed,
            "seconds": time.perf_counter() - begin,
            "scores": outcome.scores,
            "baseline": outcome.baseline,
            "paths": outcome.training.paths,
        }


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*ROWS, SPEED]), metavar="ROW ...")
@click.option("--seeds", default=3, show_default=True)
@click.option("--size", default="tiny", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(names: tuple[str, ...], seeds: int, size: str, output: Path) -> None:
    """Train and score ROWs, by default all; "speed" compares both paths and times the sampler of masks."""
    data = os.environ.get("SPANBERT_KERNELS_DATA")
    if not data:
        raise click.ClickException("SPANBERT_KERNELS_DATA does not name the folder of the data")
    quiet_transformers()
    found: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    found |= {"torch": torch.__version__, "size": size}
    threads = {"threads": torch.get_num_threads()}
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        chosen = names or (SPEED, *ROWS)
        if SPEED in chosen:
            found[SPEED] = {**threads, "paths": both_paths(Path(data), folder, "small"), "sampler": sampler(Path(data))}
            console.print(json.dumps(found[SPEED]))
            output.write_text(json.dumps(found, indent=1) + "\n")
        if any(ROWS[name].task == "tagging" for name in chosen if name in ROWS):
            found["pretraining"] = []
            for seed in range(seeds):
                result = pretrained(Path(data), folder / f"pretrained-{seed}", seed, size)
                found["pretraining"].append(result)
                console.print(f"pre-training, seed {seed}: MLM {result['MLM']}, SBO {result['SBO']}")
        for name in (name for name in chosen if name in ROWS):
            results = []
            for result in runs(name, Path(data), seeds, size, folder):
                results.append(result)
                console.print(f"{name}: {json.dumps(result)}")
            row = ROWS[name]
            entry = {"task": row.task, "data": row.data, "score": row.score, **row.options, **threads, "runs": results}
            found.setdefault("rows", {})[name] = entry
            output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
