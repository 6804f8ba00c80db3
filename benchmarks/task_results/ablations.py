"""Does a part earn its place: the same training with it and without, compared document by document.

SPANBERT_KERNELS_DATA=... python -m benchmarks.task_results.ablations [NAME ...] [--threads 1]

Each run is short, so that all of them are affordable: documents are cut, epochs few and fixed, and nothing is chosen by
their scores. A run that is recorded is not repeated.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

from spanbert_kernels.cli import checkout
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.data.counts import tallying
from spanbert_kernels.data.entities import read_marked
from spanbert_kernels.data.labelled import LabelledDocument
from spanbert_kernels.models import SpanBERTForPreTraining
from spanbert_kernels.tasks import atomic, pretraining
from spanbert_kernels.tasks.base import load
from spanbert_kernels.tasks.batches import without
from spanbert_kernels.tasks.progress import bars, quiet_transformers
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions, fit

from . import paired, recording, splits
from .questions import questions, sentences_of
from .rows import GUM, ROWS, WNUT

BUILD = checkout.ROOT / "build" / "ablations"
MEANTIME = "meantime/meantime.conll"
WORDS, SENTENCES = 50, 4  # of a document of meantime
FIRST = 1000  # sentences and questions to train on
SAME = ("row", "seed", "options", "data", "model")  # what a run that is recorded has in common with one to do


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        fields: of the model's configuration.
        spans: what a step sees of a document.
        pretrained: whether pre-training goes on before, and if so whether with the span boundary objective.
        seeds: how many.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    spans: SpanTraining | None = None
    pretrained: bool | None = None
    seeds: int = 3


@dataclass(frozen=True)
class Ablation:
    """A row's task, trained in several ways.

    Attributes:
        question: in words.
        row: of `ROWS`.
        data: in words.
        files: cuts the data.
        parts: what was found, document by document.
        compared: the score that is made of these.
        options: of the training.
        arms: the first one is what the others are compared with.
    """

    question: str
    row: str
    data: str
    files: splits.Files
    parts: paired.Parts
    compared: str
    options: Mapping[str, Any]
    arms: Mapping[str, Arm]


def options(epochs: float, **more: Any) -> dict[str, Any]:
    """Learning rates as the rows have them."""
    return {"epochs": epochs, "learning_rate": 1e-4, "head_learning_rate": 5e-4, **more}


def leads(files: splits.Files) -> splits.Files:
    """The same of meantime's documents cut to the sentences that their first `WORDS` words stand in."""

    def cut(data: Path, folder: Path) -> splits.Split:
        short = folder / "leads"
        (short / "meantime").mkdir(parents=True, exist_ok=True)
        name = "meantime/list_instances.csv"
        atomic.write_text(short / name, (data / name).read_text(encoding="utf-8"))
        atomic.write_text(short / MEANTIME, shortened((data / MEANTIME).read_text(encoding="utf-8"), WORDS))
        return files(short, folder)

    return cut


def shortened(text: str, words: int) -> str:
    r"""Documents in columns, up to the sentence that has the last of so many words.

    Example:
        >>> shortened("#begin document d\na -\nb -\n\nc -\n\nd -\n\n#end document\n", 3)
        '#begin document d\na -\nb -\n\nc -\n\n#end document'
    """
    found, left = [], 0
    for sentence in text.split("\n\n"):
        lines = sentence.split("\n")
        if any(line.startswith("#begin") for line in lines):
            left = words
        kept = [line for line in lines if line.startswith("#") or left > 0]
        left -= sum(not line.startswith("#") for line in kept)
        if kept:
            found.append("\n".join(kept))
    return "\n\n".join(found)


def topics_of_sentences(data: Path, folder: Path) -> splits.Split:
    """The topic of each of a document's first sentences; a document is a cluster."""
    parts: dict[str, list[LabelledDocument]] = {}
    for part, documents in splits.every_third(read_marked(data / MEANTIME)).items():
        pieces = parts.setdefault(part, [])
        for document in documents:
            topic = document.name.strip("(").split("/")[0]
            texts = (" ".join(document.words[a:b]) for a, b in sentences_of(document)[:SENTENCES])
            pieces += [LabelledDocument(text, topic, document.name, document.path, 1) for text in texts]
    return splits.written(folder, "topics-of-sentences", parts)


def first_sentences(data: Path, folder: Path) -> splits.Split:
    """The first `FIRST` sentences to train on."""
    split = WNUT(data, folder)
    sentences = split.train.read_text(encoding="utf-8").split("\n\n")
    atomic.write_text(folder / "first.conll", "\n\n".join(sentences[:FIRST]) + "\n\n")
    return dataclasses.replace(split, train=folder / "first.conll")


def first_questions(data: Path, folder: Path) -> splits.Split:
    """Every so many-th article's questions to train on, about `FIRST`."""
    split = questions(data, folder)
    found = json.loads(split.train.read_text(encoding="utf-8"))
    asked = sum(len(passage["qas"]) for article in found["data"] for passage in article["paragraphs"])
    found["data"] = found["data"][:: max(1, round(asked / FIRST))]
    atomic.write_text(folder / "first.json", json.dumps(found) + "\n")
    return dataclasses.replace(split, train=folder / "first.json")


LOWER = {"num_hidden_layers": 3}  # of six; that halves what a run costs
ALONE = Arm({**LOWER, "cross_document_layers": []})


def together(seeds: int = 3, **fields: Any) -> Arm:
    """Documents see each other in the upper two of these layers."""
    return Arm({**LOWER, "cross_document_layers": [1, 2], **fields}, seeds=seeds)


ABLATIONS = {
    "coreference": Ablation(
        "documents that see each other",
        "cross-document-coreference",
        f"meantime, the first {WORDS} words of a document; lower three layers",
        leads(splits.meantime),
        paired.of_mentions,
        "B3",
        options(15, learning_rate=2e-4, head_learning_rate=1e-3, batch_size=1),
        {
            "without": ALONE,
            "tokens x tokens": together(),
            "tokens x anchors": together(3, cross_document_keys="anchors"),
            "tokens x tokens, pairwise": together(1, cross_document_normalize="pairwise"),
        },
    ),
    "relations": Ablation(
        "documents that see each other",
        "relations",
        f"meantime, the first {WORDS} words of a document; lower three layers",
        leads(splits.participants),
        paired.of_relations,
        "F1",
        options(10, batch_size=1),
        {"without": dataclasses.replace(ALONE, seeds=2), "tokens x tokens": together(2)},
    ),
    "topics": Ablation(
        "documents that see each other",
        "topics",
        f"the first {SENTENCES} sentences of meantime's documents, which are the clusters; lower three layers",
        topics_of_sentences,
        paired.of_labels,
        "accuracy",
        options(10, batch_size=4),
        {"without": dataclasses.replace(ALONE, seeds=2), "anchors x anchors": together(2)},
    ),
    "tagging": Ablation(
        "pre-training that goes on",
        "tagging",
        f"wnut17, {FIRST} sentences to train on",
        first_sentences,
        paired.of_entities,
        "f1",
        options(3, batch_tokens=1024),
        {
            "minilm": Arm(seeds=1),
            "span masking": Arm(pretrained=False, seeds=1),
            "span masking and span boundaries": Arm(pretrained=True, seeds=1),
        },
    ),
    "questions": Ablation(
        "pre-training that goes on",
        "questions",
        f"questions by rule, {FIRST} to train on",
        first_questions,
        paired.of_answers,
        "F1",
        options(2, batch_tokens=2048),
        {
            "span masking": Arm(pretrained=False, seeds=1),
            "span masking and span boundaries": Arm(pretrained=True, seeds=1),
        },
    ),
    "nested": Ablation(
        "a span of 64 tokens a step",
        "nested",
        "gum",
        GUM,
        paired.of_spans,
        "F1",
        options(4, batch_size=8),
        {
            "whole": Arm(seeds=1),
            "crop input": Arm(spans=SpanTraining(64, "input"), seeds=1),
            "crop loss": Arm(spans=SpanTraining(64, "loss"), seeds=1),
        },
    ),
    "genres": Ablation(
        "a span of 64 tokens a step",
        "genres",
        "genres of gum, pieces of five sentences",
        splits.genres,
        paired.of_labels,
        "accuracy",
        options(3, batch_size=2),
        {"whole": Arm(seeds=1), "crop input": Arm(spans=SpanTraining(64, "input"), seeds=1)},
    ),
}
PRETRAINING = {**options(1), "batch_size": 8}
COLUMNS = ("", "data", "", "score", "mean", "of each seed", "difference by document", "95 %", "p", "minutes")


def told(arm: Arm, of: Ablation) -> dict[str, Any]:
    """All options of an arm's training, for the record."""
    spans = {} if arm.spans is None else dataclasses.asdict(arm.spans)
    before = {} if arm.pretrained is None else {"pretraining": {**PRETRAINING, "span boundaries": arm.pretrained}}
    return {**of.options, **arm.fields, **spans, **before}


def pretrained(model: str, boundaries: bool, data: Path) -> Path:
    """The encoder, trained on with span masking, perhaps with the span boundary objective too, unless that was done."""
    output = BUILD / f"{Path(model).name}-{'with' if boundaries else 'without'}-boundaries"
    if (output / "config.json").is_file():
        return output
    news = splits.every_third(read_marked(data / MEANTIME))["train"]
    texts = [" ".join(document.words) for document in (*read_marked(data / "gum/coref/train"), *news)]
    start = Start(model=model)
    tokenizer = start.tokenizer(texts)
    network = start.build(SpanBERTForPreTraining, tokenizer, 0)
    blocks = pretraining.MaskedBlocks(pretraining.blocks_of(texts, tokenizer, 128), tokenizer, 0)
    collate = pretraining.collate if boundaries else without(pretraining.collate, ("spans",))
    training = TrainingOptions(output, quiet=True, **PRETRAINING)
    fit(network, training, blocks, collate, write_vocabulary=tokenizer.save_pretrained)
    return output


def run(ablation: Ablation, arm: Arm, seed: int, model: str, split: splits.Split, folder: Path) -> dict[str, Any]:
    """Trains and scores; the model is that of the last step."""
    row, begin = ROWS[ablation.row], time.perf_counter()
    task = load(row.task)
    fields = task.fields
    task = dataclasses.replace(task, fields=lambda *of: {**fields(*of), **arm.fields})
    training = TrainingOptions(folder, seed=seed, quiet=True, **ablation.options)
    with bars(False, lambda line: say(line, error=True)), tallying():
        found = task.train(split.train, None, Start(model=model), training, arm.spans).training
        judged = task.judge(folder, split.test, "auto")
    (seconds,) = found.values("train_runtime")
    sums = ablation.parts(judged)
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "training seconds": seconds,
        "steps": max(int(entry["step"]) for entry in found.log if "step" in entry),
        "losses": found.losses,
        "scores": judged.scores,
        "compared": {ablation.compared: float(paired.f1(sum(sums.values())))},
        "documents": paired.written(sums),
    }


def lines(record: Mapping[str, Any]) -> Iterator[list[str]]:
    """A line of the table for each arm, also for those that were not measured."""
    for name, ablation in ABLATIONS.items():
        measure, arms = ROWS[ablation.row].measure, list(ablation.arms)
        runs = {arm: {run["seed"]: run for run in recording.scored(record, f"{name}: {arm}")} for arm in arms}
        for arm in arms:
            about = [ablation.question, f"{ROWS[ablation.row].task.replace('_', ' ')}, {ablation.data}", arm, measure]
            own, base = runs[arm], runs[arms[0]]
            if not own:
                yield [*about, "not measured", *[""] * 5]
                continue
            values = [run["scores"][measure] for run in own.values()]
            both = sorted(own.keys() & base.keys()) if arm != arms[0] else []
            sides = [[paired.read(each[seed]["documents"]) for seed in both] for each in (own, base)]
            yield [
                *(*about, f"{statistics.mean(values):.3f}", ", ".join(f"{value:.3f}" for value in values)),
                *(compared(ablation.compared, paired.difference(*sides)) if both else [""] * 3),
                f"{statistics.mean(run['seconds'] for run in own.values()) / 60:.1f}",
            ]


def compared(measure: str, found: paired.Gap) -> list[str]:
    """Three cells."""
    return [f"{found.mean:+.3f} {measure}", f"{found.low:+.3f} to {found.high:+.3f}", f"{found.p:.2g}"]


def section(table: Any) -> str:
    """For docs/tasks.md."""
    path = recording.newest("ablations")
    record = {"runs": []} if path is None else recording.load(path)
    source = "nothing was measured yet"
    if path is not None:
        runs = record["runs"]
        names = {key: ", ".join(sorted({str(run[key]) for run in runs})) for key in ("model", "threads")}
        commits = ", ".join(sorted({run["commit"][:9] + "+" * run["commit"].endswith("+") for run in runs}))
        source = (
            f"`benchmarks/results/{path.name}`: {len(runs)} runs in {recording.hours(record):.1f} hours, begun from "
            f"{names['model']}, on {names['threads']} thread of {record['machine']['processor']} that others used too, "
            f"at commit {commits}"
        )
    return f"({source})\n\n{table(COLUMNS, lines(record))}"


def planned(names: Sequence[str]) -> list[tuple[str, str, int]]:
    """The runs of ablations: first those of arms with most seeds, a seed of all after the other.

    Example:
        >>> planned(["relations"])[:3]
        [('relations', 'without', 0), ('relations', 'tokens x tokens', 0), ('relations', 'without', 1)]
    """
    found = [
        (-arm.seeds, seed, place, name, title)
        for place, name in enumerate(names)
        for title, arm in ABLATIONS[name].arms.items()
        for seed in range(arm.seeds)
    ]
    return [(name, title, seed) for _, seed, _, name, title in sorted(found, key=lambda each: each[:3])]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(ABLATIONS)), metavar="NAME ...")
@click.option("--model", help="The folder of a trained encoder; by default minilm beside the data.")
@click.option("--threads", default=1, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="The record; by default the newest, or a new one.")
def main(names: tuple[str, ...], model: str | None, threads: int, output: Path | None) -> None:
    """Train the arms of the ablations NAME, by default of all."""
    quiet_transformers()
    data = os.environ.get("SPANBERT_KERNELS_DATA")
    if not data:
        raise click.ClickException("SPANBERT_KERNELS_DATA does not name the folder of the data")
    model = model or str(Path(data).parent / "models/minilm")
    path = output or recording.newest("ablations") or checkout.record_of_today("ablations")
    torch.set_num_threads(threads)
    code = recording.commit()
    for name, title, seed in planned(names or tuple(ABLATIONS)):
        ablation, folder = ABLATIONS[name], BUILD / name
        folder.mkdir(parents=True, exist_ok=True)
        split, arm = ablation.files(Path(data), folder), ablation.arms[title]
        about = {
            **{"row": f"{name}: {title}", "backend": "auto", "seed": seed, "steps asked": None},
            **{"threads": threads, "model": Path(model).name, "options": told(arm, ablation)},
            **{"commit": code, "data": split.digest()},
        }
        if any(all(each[of] == about[of] for of in SAME) for each in recording.load(path)["runs"]):
            say(f"{about['row']}, seed {seed}: recorded already")
            continue
        begin = model if arm.pretrained is None else str(pretrained(model, arm.pretrained, Path(data)))
        found = run(ablation, arm, seed, begin, split, folder / "model")
        recording.add(path, {**about, **found})
        measure = ROWS[ablation.row].measure
        say(f"{about['row']}, seed {seed}: {measure} {found['scores'][measure]:.4f}, {found['seconds']:.0f} s")


if __name__ == "__main__":
    main()
