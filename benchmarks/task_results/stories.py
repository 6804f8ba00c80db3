"""Two worked examples on real data, as a user would go about them: `python -m benchmarks.task_results.stories`.

Long interviews (gum): nested entities and coreference, trained as the rows of the table are. Thirty news articles,
which entities are the same (meantime): coreference across documents, which begins with the interviews' model and is
trained for minutes. Each predicts for texts that it has not seen, and writes pages and pictures of it.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from spanbert_kernels.cli import main as command
from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.data.entities import read_marked
from spanbert_kernels.data.sources import files_of

from . import splits
from .excerpt import across, excerpt
from .rows import ROWS

SHOWN, EXCERPT = 200, 1150  # predictions on a page, characters of a text
ENTITIES, ARTICLES = 4, 3  # that are shown of those across texts, and in how many of these
TOPIC = "corpus_apple"  # of meantime, of which nothing is trained on
BEFORE = re.compile(r" (?=[.,;:!?)%\]]|'s\b|n't\b|'(?:re|ve|ll|d|m)\b)|(?<=[(\[$]) ")  # a space that no text has


@dataclass(frozen=True)
class Story:
    """A story's title, its rows, the files that they learn from, which of its test's documents are read, and options.

    Attributes:
        title: what is asked.
        rows: of the table.
        split: the files.
        wanted: what is in the names of the documents to read.
        begins_with: a model of another story to begin with, instead of the encoder.
        options: of the training, instead of the row's.
        excerpt: the text of which the beginning is shown with all that was found.
    """

    title: str
    rows: tuple[str, ...]
    split: splits.Files
    wanted: str = ""
    begins_with: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    excerpt: str = ""


STORIES = {
    "interviews": Story(
        "Long interviews",
        ("nested", "coreference"),
        ROWS["nested"].files,
        "interview",
        excerpt="GUM_interview_libertarian.txt",
    ),
    "news": Story(
        "Thirty news articles, which entities are the same",
        ("cross-document-coreference",),
        partial(splits.without_topic, TOPIC),
        begins_with="interviews/coreference",
        options={"steps": 100, "evaluate_steps": 25, "span_length": 128, "crop": "input"},
    ),
}


def tell(name: str, model: str, data: Path, output: Path, training: list[str]) -> None:
    """Trains for each row of a story where that is not done yet, predicts and explains, into `output`/name."""
    story, folder = STORIES[name], output / name
    print(story.title)
    folder.mkdir(parents=True, exist_ok=True)
    split = story.split(data, folder)
    texts = write_texts(split.test, story.wanted, folder / "texts")
    for row in story.rows:
        task, trained = ROWS[row].task, folder / row
        if not (trained / "config.json").is_file():
            read = ["--data", split.train, "--dev", split.dev, "--test", split.test]
            begin = output / story.begins_with if story.begins_with else model
            options = {**ROWS[row].options, **story.options}
            words = chain.from_iterable((f"--{key.replace('_', '-')}", value) for key, value in options.items())
            run("train", task, *read, "--model", begin, "--output", trained, *words, *training)
        run("predict", task, texts, "--model", trained, "--output", folder / f"{row}.jsonl")
        page = folder / f"{row}.html"
        run("explain", task, texts, "--model", trained, "--output", page, "--limit", SHOWN)
    if story.excerpt:
        found = (folder / f"{row}.jsonl" for row in ("nested", "coreference"))
        text = excerpt(*found, story.excerpt, EXCERPT)
        _write_fragment(folder / "excerpt.html", text)
    if "cross-document-coreference" in story.rows:
        _write_fragment(folder / "entities.html", across(folder / f"{story.rows[0]}.jsonl", ENTITIES, ARTICLES))


def _write_fragment(path: Path, text: str) -> None:
    path.write_text(f'<div class="story">{text}</div>\n', encoding="utf-8")


def write_texts(source: Path, wanted: str, folder: Path) -> Path:
    """Documents as somebody has them: a text each, a sentence a line, called by its first one where it has a name."""
    folder.mkdir(exist_ok=True)
    for path in files_of(source, (".conll",)):
        for document in read_marked(path):
            if wanted in document.name:
                sentences = BEFORE.sub("", _in_lines(document)).splitlines()
                title = sentences[0] if "/" in document.name else path.stem
                name = re.sub(r"[^\w .-]", "", title).rstrip(". ")
                (folder / f"{name}.txt").write_text("\n".join([*sentences, ""]), encoding="utf-8")
    return folder


def _in_lines(document: MarkedDocument) -> str:
    """Its words, with a line's end where lines of the file are between them."""
    ends = [" " if after == line + 1 else "\n" for line, after in pairwise(document.lines)]
    return "".join(map("".join, zip(document.words, [*ends, ""], strict=True)))


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
