"""`spanbert-kernels explain`: which documents and which words carried a prediction, as a page and a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.files import PATH, check_output, write
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.cli.training_options import COUNT, data_in_words, watched
from spanbert_kernels.tasks import atomic
from spanbert_kernels.tasks.registry import TASKS

if TYPE_CHECKING:
    from spanbert_kernels.tasks.explanation import ClusterExplanation, Explanation

MOST_READ = 8  # words of a document in the picture
PICTURED = 12  # clusters, mentions or documents in the picture, which a page of paper holds


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
    with bars(watched()), data_in_words():
        clusters, spans = _explained(task, model, data, limit + 1)
    hidden = len(clusters) + len(spans) > limit
    write(
        "page",
        page_path,
        page(
            formatting.path(Path(name_of([Path(each.name) for each in data]))), clusters[:limit], spans[:limit], hidden
        ),
    )
    draw(clusters[:PICTURED], spans[:PICTURED], picture)
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


def page(name: str, clusters: list[ClusterExplanation], spans: list[Explanation], hidden: bool = False) -> str:
    """The page as HTML text, which loads nothing from anywhere."""
    from spanbert_kernels.cli import pages

    several = len({*(file for cluster in clusters for file in cluster.files), *(each.file for each in spans)}) > 1
    return pages.render("explanation.html", name=name, clusters=clusters, spans=spans, hidden=hidden, several=several)


def draw(clusters: list[ClusterExplanation], spans: list[Explanation], path: Path) -> None:
    """The picture: a square of document weights for each cluster, or a row of shaded words for each mention or text."""
    import matplotlib

    from spanbert_kernels.cli.svg import TEXT

    with matplotlib.rc_context(TEXT), atomic.new_file(path) as aside:
        _draw(clusters, spans, aside)


def _draw(clusters: list[ClusterExplanation], spans: list[Explanation], aside: Path) -> None:
    from matplotlib.figure import Figure

    means = ((number, each.mean()) for number, each in enumerate(clusters, start=1))
    seen = [(number, mean) for number, mean in means if mean is not None]
    columns = min(max(len(seen), 1), 4)
    rows = -(-len(seen) // columns) if seen else 1
    shown = spans or _most_read(clusters)[:PICTURED]
    height = 2.4 * rows if seen else 0.4 * max(len(shown), 1) + 0.6
    figure = Figure(figsize=(2.4 * columns if seen else 8, height), layout="constrained")
    if not seen:
        _draw_spans(figure.subplots(), shown)
    for place, (number, weights) in enumerate(seen, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"Cluster {number}", fontsize=9)
        ticks = range(len(weights))
        axes.set_xticks(ticks, [str(i + 1) for i in ticks], fontsize=7)
        axes.set_yticks(ticks, [str(i + 1) for i in ticks], fontsize=7)
        axes.set_xlabel("looked at", fontsize=7)
    figure.savefig(aside, dpi=150, format="png")


def _drawn(text: str, length: int) -> str:
    return textwrap.shorten(formatting.one_line(text), length, placeholder="…") or "…"


def _most_read(clusters: list[ClusterExplanation]) -> list[Explanation]:
    from spanbert_kernels.tasks.explanation import Explanation

    return [
        Explanation("", label, words, shares)
        for cluster in clusters
        for words, shares, label in zip(cluster.words, cluster.word_shares, cluster.labels, strict=True)
    ]


def _most(explanation: Explanation) -> tuple[list[str], list[float]]:
    """The `MOST_READ` words that count most, in the order of the text, and how much beside the first of them."""
    shares = explanation.shares
    chosen = sorted(shares.argsort(kind="stable")[::-1][:MOST_READ].tolist())
    return [explanation.words[i].strip() for i in chosen], (
        shares[chosen] / max(float(shares.max(initial=0)), 1e-30)
    ).tolist()


def _draw_spans(axes: Any, spans: list[Explanation]) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(spans) - 0.5, 0.5)
    if not spans:
        axes.text(0, 0, "no weights to show", va="center")
    for row, span in enumerate(spans):
        axes.text(0, -row, _drawn(span.label, 18), fontsize=8, va="center")
        if span.seen:
            name, share = max(span.seen.items(), key=lambda entry: entry[1])
            looked = _drawn(f"{span.document} looked at {name}: {share:.2f}", 48)
            axes.text(1, -row, looked, fontsize=8, va="center", ha="right")
        words, shares = _most(span)
        wide = (0.45 if span.seen else 0.8) / max(sum(len(word) + 1 for word in words), 1)
        left = 0.2
        for word, weight in zip(words, shares, strict=True):
            size = wide * (len(word) + 1)
            box = {"facecolor": "tab:blue", "alpha": float(weight) * 0.6, "edgecolor": "none"}
            axes.text(left, -row, formatting.one_line(word), fontsize=8, va="center", bbox=box)
            left += min(size, 0.016 * (len(word) + 1))
