"""`spanbert-kernels explain`: which documents and which words carried a prediction, as a page and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.explained_picture import draw
from spanbert_kernels.cli.files import PATH, check_output, write
from spanbert_kernels.cli.tasks import data_to_read, load_task, task_argument
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.cli.training_options import COUNT, data_in_words, told, watched

if TYPE_CHECKING:
    from spanbert_kernels.tasks.explanation import ClusterExplanation, Explanation

COUNTED = 2000  # items in which predictions that are not shown are counted
MENTIONS = ("nested", "coreference", "cross_document_coreference")


@click.command()
@task_argument
@data_to_read("The same as DATA; may be repeated.")
@click.option("--model", required=True, type=PATH, help="The folder that train wrote.")
@click.option(
    "--output",
    default="explanation.html",
    show_default=True,
    type=PATH,
    help="The page, or with a name in .png the picture.",
)
@click.option("--limit", default=100, show_default=True, type=COUNT, help="Predictions, or clusters, at most.")
@click.option(
    "--words/--no-words",
    default=None,
    show_default="--words; --no-words for clusters of many documents",
    help="Whether to compute which words counted, which takes most of the time.",
)
def explain(task: str, data: tuple[Path, ...], model: Path, output: Path, limit: int, words: bool | None) -> None:
    """Show what carried the predictions for DATA, files or folders: a page, and beside it a picture.

    Which words counted for each prediction, by integrated gradients; for classification and cross_document_coreference,
    which documents of its cluster each document or mention looked at, too. DATA is what predict takes.

    Exit code: 0; 2 if a file cannot be used.
    """
    check_output("page", output)
    page_path, picture = paths_of(output)
    check_output("page", page_path)
    check_output("picture", picture)
    from spanbert_kernels.data.sources import name_of
    from spanbert_kernels.tasks.progress import bars

    with bars(watched(), told), data_in_words():
        clusters, spans, count = _explained(task, model, data, limit, words)
    name = formatting.path(Path(name_of([Path(each.name) for each in data])))
    write("page", page_path, page(name, clusters, spans, count, task in MENTIONS))
    draw(name, clusters, spans, picture, count)
    say(f"Page: {formatting.path(page_path)}. Picture: {formatting.path(picture)}")


def paths_of(output: Path) -> tuple[Path, Path]:
    """Of the page and the picture, one of which is named; the other is called the same, but for its ending.

    Example:
        >>> [path.name for path in paths_of(Path("a.html"))], [path.name for path in paths_of(Path("a.png"))]
        (['a.html', 'a.png'], ['a.html', 'a.png'])
    """
    if output.suffix.lower() == ".png":
        return output.with_suffix(".html"), output
    return output, output.with_suffix(".png")


def _explained(
    name: str, folder: Path, data: Sequence[Path], limit: int, words: bool | None
) -> tuple[list[ClusterExplanation], list[Explanation], str]:
    """The explanations, and in words how many there could be."""
    from spanbert_kernels.tasks import classification, explanation

    task = load_task(name)
    items = task.read_to_predict(data)
    model, tokenizer = task.load(folder)
    with_words = task.quick(items) if words is None else words
    if words is None and not with_words:
        say("The words that counted are left out: in clusters so large they take hours. --words has them.", error=True)
    if name == "classification":
        count = f"{len(classification.clusters_of(items)):,}"
        return explanation.explain_classification(model, tokenizer, items, limit, with_words), [], count
    found = task.explain(model, tokenizer, items, limit, with_words)
    if len(found) == limit and len(items) > COUNTED:
        return [], found, f"{limit:,} or more"
    every = task.explainable(model, tokenizer, items) if len(found) == limit else len(found)
    return [], found, f"{every:,}"


def page(
    name: str,
    clusters: list[ClusterExplanation],
    spans: list[Explanation],
    count: str = "",
    fold: bool = False,
) -> str:
    """The page as HTML text, which loads nothing from anywhere.

    Args:
        name: of the data.
        clusters: of documents.
        spans: predictions in documents.
        count: how many clusters or predictions there could be, in words; by default those that are there.
        fold: whether predictions of one word are folded away.
    """
    from spanbert_kernels.cli import explained, pages

    shown = f"{len(clusters) or len(spans):,}"
    return pages.render(
        "explanation.html",
        name=name,
        clusters=list(explained.clusters_of(clusters)),
        groups=list(explained.groups_of(spans, fold)),
        shown=shown,
        count=count or shown,
        shaded=any(each.shares.any() for each in spans)
        or any(own.any() for each in clusters for own in each.word_shares),
        across=explained.across_documents(spans),
        looked=any(each.weights for each in clusters) or any(each.seen for each in spans),
        several=len({*(file for each in clusters for file in each.files), *(each.file for each in spans)}) > 1,
    )
