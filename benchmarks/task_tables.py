"""What the tasks score on real data, for docs/tasks.md: from the file that `task_results.py` writes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from task_results import ROWS

RESULTS = Path(__file__).resolve().parent / "results" / "tasks.json"
COLUMNS = ("", "data", "score", "mean", "of each seed", "trivial baseline", "which is")
LOSS = "loss"  # of a token, which stands beside the score of generated text
BASELINES = {
    "tagging": "a word's commonest label",
    "nested": "word sequences known from training",
    "coreference": "the same mentions, not linked",
    "cross_document_coreference": "the same mentions, not linked",
    "relations": "mentions that follow each other",
    "summarisation": "the first sentence",
    "translation": "the source, copied",
    "parsing": "the word before as head",
    "classification": "the commonest label",
    LOSS: "frequencies of tokens",
}


def lines(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """A line of the table for each row, also for those that were not measured."""
    for name, known in ROWS.items():
        task = known.task.replace("_", " ")
        row = found["rows"].get(name)
        if row is None:
            yield [task, known.data, known.score, "not measured", "", "", ""]
            continue
        runs = row["runs"]
        for score in (row["score"], LOSS) if LOSS in runs[0]["scores"] else (row["score"],):
            values = [run["scores"][score] for run in runs]
            baselines = sorted({f"{run['baseline'][score]:.3f}" for run in runs})
            each = ", ".join(f"{value:.3f}" for value in values)
            baseline = BASELINES[LOSS if score == LOSS else known.task]
            yield [task, row["data"], score, f"{statistics.mean(values):.3f}", each, ", ".join(baselines), baseline]


def pretraining(found: Mapping[str, Any]) -> str:
    """How both losses went down."""
    parts = []
    for name in ("MLM", "SBO"):
        first, last = ([run[name][place] for run in found["pretraining"]] for place in (0, -1))
        parts.append(f"{name} from {statistics.mean(first):.2f} to {statistics.mean(last):.2f}")
    return f"Pre-training, {len(found['pretraining'])} seeds, losses on held-out documents: {', '.join(parts)}.\n"


def speed(found: Mapping[str, Any]) -> str:
    """Both paths of a training, and the sampler of masks."""
    paths, sampler = found["speed"]["paths"], found["speed"]["sampler"]
    ours, eager = paths["auto"], paths["eager"]
    off = max(abs(a - b) / b for a, b in zip(ours["losses"], eager["losses"], strict=True))
    return (
        f"A training step on posts of {paths['mean length']:.0f} tokens on average, {paths['longest']} at most, is "
        f"{ours['steps a second'] / eager['steps a second']:.2f} times as fast on the accelerated path, with losses "
        f"that differ by {off:.1g} at most. The sampler of masks draws {sampler['tokens a second'] / 1e6:.1f} million "
        "tokens a second.\n"
    )


def tasks(table: Any) -> str:
    """The section, or that nothing was measured."""
    if not RESULTS.exists():
        return "Not measured yet.\n"
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    columns: Sequence[str] = COLUMNS
    about = (
        f"A model of the size {found['size']}, trained for minutes (`benchmarks/results/{RESULTS.name}`). Of losses, "
        "less is better; so little text teaches no model to write well:\n\n"
    )
    return f"{about}{table(columns, lines(found))}\n{pretraining(found)}{speed(found)}"
