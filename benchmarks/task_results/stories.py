"""Two worked examples on real data, as a user would go about them: `python -m benchmarks.task_results.stories`.

Thirty news articles, which entities are the same (meantime): coreference across documents. Long interviews (gum):
nested entities and coreference. Each trains a model from an encoder as its row of the table does, predicts for texts
that it has not seen, and writes a page and a picture of what carried the predictions.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from spanbert_kernels.cli import main as command

from . import splits
from .rows import ROWS

SHOWN = 200  # predictions on a page
TOPIC = "corpus_apple"  # of meantime, of which nothing is trained on


@dataclass(frozen=True)
class Story:
    """A story's title, its rows, the files that they learn from, and those of its texts to read."""

    title: str
    rows: tuple[str, ...]
    split: splits.Files
    texts: Callable[[splits.Split], list[Path]]


STORIES = {
    "news": Story(
        "Thirty news articles, which entities are the same",
        ("cross-document-coreference",),
        partial(splits.without_topic, TOPIC),
        lambda split: [split.test],
    ),
    "interviews": Story(
        "Long interviews",
        ("nested", "coreference"),
        ROWS["nested"].files,
        lambda split: sorted(split.test.glob("*interview*")),
    ),
}


def tell(name: str, model: str, data: Path, output: Path, training: list[str]) -> None:
    """Trains for each row of a story where that is not done yet, predicts and explains, into `output`/name."""
    story, folder = STORIES[name], output / name
    print(story.title)
    folder.mkdir(parents=True, exist_ok=True)
    split = story.split(data, folder)
    for row in story.rows:
        task, trained = ROWS[row].task, folder / row
        if not (trained / "config.json").is_file():
            read = ["--data", split.train, "--dev", split.dev, "--test", split.test]
            options = chain.from_iterable(
                (f"--{key.replace('_', '-')}", each) for key, each in ROWS[row].options.items()
            )
            run("train", task, *read, "--model", model, "--output", trained, *options, *training)
        texts = story.texts(split)
        run("predict", task, *texts, "--model", trained, "--output", folder / f"{row}.jsonl")
        page = folder / f"{row}.html"
        run("explain", task, *texts, "--model", trained, "--output", page, "--limit", SHOWN)


def run(*words: object) -> None:
    """A command line, in this process."""
    command([str(word) for word in words], standalone_mode=False)


def main() -> None:
    """Tells the stories that are named, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", nargs="*", default=list(STORIES), help=f"of {', '.join(STORIES)}")
    parser.add_argument("--model", required=True, help="a trained encoder: a folder or a hub name")
    parser.add_argument("--data", type=Path, default=os.environ.get("SPANBERT_KERNELS_DATA"), help="the data sets")
    parser.add_argument("--output", type=Path, default=Path("build/stories"))
    parser.add_argument("--training", nargs=argparse.REMAINDER, default=[], help="more options of train, at the end")
    given = parser.parse_args()
    if given.data is None:
        parser.error("--data or SPANBERT_KERNELS_DATA says where the data sets are")
    for name in given.stories:
        tell(name, given.model, Path(given.data), given.output, given.training)


if __name__ == "__main__":
    main()
