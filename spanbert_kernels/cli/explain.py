"""`spanbert-kernels explain`: which documents and which words carried a prediction, as a page and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.explained_picture import draw
from spanbert_kernels.cli.files import PATH, check_output, write
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.cli.training_options import COUNT, data_in_words, told, watched
from spanbert_kernels.tasks.registry import TASKS

if TYPE_CHECKING:
    from spanbert_kernels.tasks.explanation import ClusterExplanation, Explanation

MENTIONS = ("nested", "coreference", "cross_document_coreference")


@click.command()
@click.argument("task", type=click.Choice(list(TASKS)))
@click.argument("data", nargs=-1, required=True, type=PATH)
@click.option("--model", required=True, type=PATH, help="The folder that train wrote.")
@click.option(
    "--output",
    default="explanation.html",
    show_default=True,
    type=PATH,
    help="The page, or with a name in .png the picture.",
)
@click.option("--limit", default=100, show_default=True, type=COUNT, help="Predictions, or clusters, at most.")
def explain(task: str, data: tuple[Path, ...], model: Path, output: Path, limit: int) -> None:
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
    from spanbert_kernels.tasks.progress import bars, quiet_transformers

    quiet_transformers()
    with bars(watched(), told), data_in_words():
        clusters, spans = _explained(task, model, data, limit + 1)
    hidden = len(clusters) + len(spans) > limit
    name = formatting.path(Path(name_of([Path(each.name) for each in data])))
    write("page", page_path, page(name, clusters[:limit], spans[:limit], hidden, task in MENTIONS))
    draw(name, clusters[:limit], spans[:limit], picture, hidden)
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
    task: str, folder: Path, data: Sequence[Path], limit: int
) -> tuple[list[ClusterExplanation], list[Explanation]]:
    from spanbert_kernels.tasks import explanation
    from spanbert_kernels.tasks.base import load

    found = load(task)
    items = found.read_to_predict(data)
    model, tokenizer = found.load(folder)
    if task == "classification":
        return explanation.explain_classification(model, tokenizer, items, limit), []
    return [], found.explain(model, tokenizer, items, limit)


def page(
    name: str,
    clusters: list[ClusterExplanation],
    spans: list[Explanation],
    hidden: bool = False,
    fold: bool = False,
) -> str:
    """The page as HTML text, which loads nothing from anywhere.

    Args:
        name: of the data.
        clusters: of documents.
        spans: predictions in documents.
        hidden: whether there are more.
        fold: whether predictions of one word are folded away.
    """
    from spanbert_kernels.cli import explained, pages

    return pages.render(
        "explanation.html",
        name=name,
        clusters=list(explained.clusters_of(clusters)),
        groups=list(explained.groups_of(spans, fold)),
        count=len(clusters) or len(spans),
        hidden=hidden,
        looked=any(each.weights for each in clusters) or any(each.seen for each in spans),
        several=len({*(file for each in clusters for file in each.files), *(each.file for each in spans)}) > 1,
    )
