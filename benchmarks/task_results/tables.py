"""What the tasks score on real data, for docs/tasks.md: from the newest record, and from one of random weights."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from spanbert_kernels.cli import checkout

from . import embeddings, recording
from .rows import ROWS

COLUMNS = (
    *("", "data", "score", "mean", "of each seed", "asked", "trivial baseline", "which is"),
    *("training, times as fast as transformers' own", "asked", "minutes", "peak, MB (transformers' own)"),
)
FROM_NOTHING = checkout.RESULTS / "tasks.json"  # models of random weights, trained for minutes
OF_THESE = ("", "data", "score", "mean", "of each seed", "trivial baseline", "which is")
BOTH = ("auto", "eager")
OF_A_STEP = ("lower_layers", "batch_size", "batch_tokens")  # options that change what a step computes
LOSS = "loss"  # of a token, which stands beside the score of generated text
BASELINES = {
    "tagging": "a word's commonest label",
    "nested": "word sequences known from training",
    "coreference": "the same mentions, not linked",
    "cross_document_coreference": "the same mentions, not linked",
    "relations": "mentions that follow each other",
    "summarisation": "the first sentence",
    "extraction": "the first sentence",
    "translation": "the source, copied",
    "parsing": "the word before as head",
    "classification": "the commonest label",
    "question_answering": "the whole text",
    LOSS: "frequencies of tokens",
}


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def lines(record: Mapping[str, Any]) -> Iterator[list[str]]:
    """A line of the table for each row, also for those that were not measured."""
    for name, row in ROWS.items():
        runs = recording.scored(record, name)
        layers = f"; the lowest {kept} layers" if (kept := row.options.get("lower_layers")) else ""
        layers += (
            f"; begun from the model of {ROWS[row.begins_with].task} on {ROWS[row.begins_with].data}"
            if row.begins_with
            else ""
        )
        about = [row.task.replace("_", " "), row.data + layers]
        goal = "" if row.goal is None else f"{row.goal:.3g}"
        speed, peak = [_speed(record, name), f"{row.faster:g}"], _peak(record, name)
        if not runs:
            yield [*about, row.measure, "not measured", "", goal, "", "", *speed, "", peak]
            continue
        cost = [f"{statistics.mean(run['seconds'] for run in runs) / 60:.1f}", peak]
        for score in (row.measure, LOSS) if LOSS in runs[0]["scores"] else (row.measure,):
            values = [run["scores"][score] for run in runs]
            trivial = ", ".join(sorted({f"{run['baseline'][score]:.3f}" for run in runs}))
            which = BASELINES[LOSS if score == LOSS else row.task]
            first = score == row.measure
            mean = f"{statistics.mean(values):.3f}"
            yield [
                *(*about, score, mean, _numbers(values), goal if first else "", trivial, which),
                *([*speed, *cost] if first else [""] * 4),
            ]
    yield from embeddings.lines(embeddings.newest())


def _pairs(record: Mapping[str, Any], name: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Of a row as it is now the runs of both paths over the same steps, by the maker of the processor."""
    found = {}
    wanted = [ROWS[name].options.get(option) for option in OF_A_STEP]
    for processor in sorted({str(run.get("processor", "")) for run in record["runs"]}):
        own = [run for run in record["runs"] if str(run.get("processor", "")) == processor]
        own = [run for run in own if [run["options"].get(option) for option in OF_A_STEP] == wanted]
        timed = recording.of_steps({"runs": own}, name, dropout=True)
        if len(timed) == len(BOTH):
            found[processor.split("(")[0].split(" ")[0]] = (timed["auto"], timed["eager"])
    return found


def _speed(record: Mapping[str, Any], name: str) -> str:
    """Of the same steps on both paths."""
    found = (
        f"{theirs['training seconds'] / ours['training seconds']:.2f}{maker and f' ({maker})'}"
        for maker, (ours, theirs) in _pairs(record, name).items()
    )
    return ", ".join(found) or "not measured"


def _peak(record: Mapping[str, Any], name: str) -> str:
    """Of the processes that both paths were timed in, the first processor's."""
    for ours, theirs in _pairs(record, name).values():
        return f"{ours['peak MB']:,} ({theirs['peak MB']:,})"
    return ""


def _agreement(record: Mapping[str, Any]) -> str:
    """How far the losses of both paths are apart without dropout, at most."""
    apart = []
    for name in ROWS:
        found = recording.of_steps(record, name, dropout=False)
        if len(found) == len(BOTH):
            ours, theirs = (found[backend]["logged"] for backend in BOTH)
            apart += [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
    if not apart:
        return ""
    return (
        f" Without dropout the losses of both, means over 10 steps, differ by {max(apart):.1g} of their size at most."
    )


def _whole(record: Mapping[str, Any]) -> str:
    """What whole trainings on both paths score, beside what seeds differ by."""
    found = []
    for name, row in ROWS.items():
        ours, theirs = recording.scored(record, name), recording.scored(record, name, "eager")
        if len(ours) > 1 and theirs:
            values = [run["scores"][row.measure] for run in ours]
            same = next(run for run in ours if run["seed"] == theirs[0]["seed"])["scores"][row.measure]
            other = theirs[0]["scores"][row.measure]
            found.append(f"{name} {other:.3f} for {same:.3f} (seeds are {max(values) - min(values):.3f} apart)")
    return f" The same seed, trained whole on transformers' own path: {'; '.join(found)}." if found else ""


def splits(record: Mapping[str, Any]) -> str:
    """How the data are cut, and who ran it."""
    rules: dict[str, list[str]] = {}
    for row in ROWS.values():
        rules.setdefault(row.split, []).append(row.data)
    cut = "".join(f"- {rule}: {'; '.join(dict.fromkeys(data))}\n" for rule, data in rules.items())
    runs = record["runs"]
    timed = {run["steps asked"] for run in runs if run["steps asked"] and not run["model"].endswith(recording.STILL)}
    began = {run["model"] for run in runs if run["scores"]}
    commits = {run["commit"][:9] for run in runs}
    own = record["machine"]["processor"]
    threads, two = ({run["threads"] for run in runs if bool(run["scores"]) == whole} for whole in (True, False))
    many, few = (
        " and ".join(sorted({run.get("processor", own) for run in runs if bool(run["scores"]) == whole}))
        for whole in (True, False)
    )
    return (
        f"How the data are cut:\n\n{cut}\nBegun from {_listed(began)}, on {_threads(threads)} of "
        f"{many}{record.get('conditions', '')}, at commit {_listed(commits)}; both paths are timed over "
        f"{_listed(timed)} steps of the same batches, on {_threads(two)} of {few}.{_agreement(record)}"
        f"{_whole(record)} {recording.hours(record):.1f} hours in all.\n"
    )


def _threads(values: set[int]) -> str:
    return f"{_listed(values)} thread{'' if values == {1} else 's'}"


def _listed(values: set[Any]) -> str:
    return ", ".join(map(str, sorted(values))) or "no"


def from_nothing(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """A line for each row of models that began with random weights."""
    for row in found["rows"].values():
        runs = row["runs"]
        for score in (row["score"], LOSS) if LOSS in runs[0]["scores"] else (row["score"],):
            values = [run["scores"][score] for run in runs]
            trivial = ", ".join(sorted({f"{run['baseline'][score]:.3f}" for run in runs}))
            which = BASELINES[LOSS if score == LOSS else row["task"]]
            about = [row["task"].replace("_", " "), row["data"], score]
            yield [*about, f"{statistics.mean(values):.3f}", _numbers(values), trivial, which]


def tasks(table: Any) -> str:
    """The section."""
    found = json.loads(FROM_NOTHING.read_text(encoding="utf-8"))
    path = recording.newest()
    record = {"runs": []} if path is None else recording.load(path)
    source = "nothing was measured yet" if path is None else f"`benchmarks/results/{path.name}`"
    began = f"From a trained encoder ({source}):\n\n{table(COLUMNS, lines(record))}\n"
    cut = "" if path is None else f"{splits(record)}\n"
    older = (
        f"Models of the size {found['size']} that began with random weights, trained for minutes "
        f"(`benchmarks/results/{FROM_NOTHING.name}`). Of losses, less is better; so little text teaches no model to "
        "write well:\n\n"
    )
    return f"{began}{cut}{older}{table(OF_THESE, from_nothing(found))}"
