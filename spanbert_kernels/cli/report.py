"""The report: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from spanbert_kernels.cli import formatting, pages, plots, table
from spanbert_kernels.cli.results import DemoResult

FILES_LISTED = 200
CLUSTERS_SHOWN = 40
BACKENDS = ("cpu", "eager", "cuda", "triton")


def render(result: DemoResult) -> str:
    """The report as HTML text."""
    documents = [
        (
            encoded.document.name,
            formatting.path(Path(encoded.document.source.name)),
            _cluster(label),
            f"{len(encoded.document.text.split()):,}",
            f"{encoded.tokens:,}",
            len(encoded.windows),
        )
        for encoded, label in zip(result.selection.documents, result.cluster_labels, strict=True)
    ]
    collection = result.collection
    files = (
        ("Skipped, with a warning", True, collection.skipped),
        ("Read in part, with a warning", True, collection.faults),
        ("Passed over", False, collection.passed_over),
    )
    return pages.render(
        "report.html",
        {
            **{"number": "{:,}".format, "error": pages.error, "memory": formatting.memory, "path": formatting.path},
            **{"first_words": pages.first_words, "cluster": _cluster},
        },
        result=result,
        summary=pages.unbroken(result.summary()),
        columns=_speed_up_first(table.COLUMNS),
        stages=[
            (stage, *(_speed_up_first(tuple(map(pages.unbroken, row))) for row in table.cells(stage)))
            for stage in result.stages
        ],
        ran=table.ran,
        duration=formatting.seconds(result.seconds),
        documents=documents[:FILES_LISTED],
        more_documents=max(0, len(documents) - FILES_LISTED),
        files=[(title, open_, of[:FILES_LISTED], max(0, len(of) - FILES_LISTED)) for title, open_, of in files],
        backends=BACKENDS,
        availability=_availability(result),
        speed_ups=plots.speed_ups(result),
        memories=Markup(plots.memories(result)),
        lengths=Markup(plots.lengths(result)),
        clusters_shown=CLUSTERS_SHOWN,
    )


def _cluster(label: str) -> str:
    return formatting.path(Path(Path(label).name)) if label else ""


def _speed_up_first(cells: tuple[str, ...]) -> tuple[str, ...]:
    """A narrow page shows the first columns; the others have to be scrolled to."""
    place = table.COLUMNS.index("speed-up")
    return cells[place], *cells[:place], *cells[place + 1 :]


def _availability(result: DemoResult) -> dict[str, dict[str, str]]:
    """Operation -> backend -> "ran", "works" or why it does not."""
    ran = {call for stage in result.stages for call in stage.backends}
    rows: dict[str, dict[str, str]] = {}
    for operation, backend, reason in result.backends:
        word = "ran" if (operation, backend) in ran else reason or "works"
        rows.setdefault(operation, {})[backend] = word
    return rows
