"""The page made of records."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from records import figures
from records.record import Record, Row, dumps
from records.report import render

Make = Callable[..., Record]
MakeRow = Callable[..., Row]
OUT = {"kind": "peer", "unavailable": "runs out of memory: takes more than 3000 MB"}


@pytest.fixture
def page(make_record: Make, make_row: MakeRow) -> str:
    rounds = {"kind": "peer", "milliseconds": 10.0, "ratio": [4.7, 5.1, 5.3]}
    lost = make_row(workload="lost <here>", ours=20.0, goals=["missed: 0.5 x faster than bag, at least 2 x asked"])
    curve = [
        make_row(workload=f"{n} tokens", curve="mean", scaling="tokens", axes={"tokens": n}, providers=more)
        for n, more in ((10, {}), (100, {}), (1000, {"bag": OUT}))
    ]
    failure = {"suite": "span_gather", "workload": "planned", "reason": "ours: off by 1, allowed 0"}
    skipped = {"suite": "encoder", "workload": "gum", "reason": "not there"}
    rows = make_row(providers={"bag": rounds}), lost, *curve
    return render([make_record(*rows, failures=[failure], skipped=[skipped]), make_record()], True)


def test_everything_is_on_the_page(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page)
    assert "Ours is faster than every other way on 4 of 5 workloads" in text
    assert "lost &lt;here&gt;" in text
    assert "FAILED: span_gather, planned: ours: off by 1, allowed 0" in text
    assert "Skipped: encoder, gum: not there" in text
    assert "missed" in text
    assert "0.5 x faster than bag, at least 2 x asked" in text
    assert "out of 3,000 MB" in text
    assert "A processor" in text
    assert re.search(r"5\.10? x +4\.70? x", " ".join(text.split()))
    for heading in ("Roofline", "Time as inputs grow", "Peak memory as inputs grow", "Where it loses"):
        assert heading in text
    assert page.count("<svg") == 4  # roofline, two curves; and the second record's roofline
    assert "None" not in text
    assert "bag runs out of memory: takes more than 3000 MB" in " ".join(text.split())


def test_the_page_begins_with_the_speed_ups(page: str) -> None:
    first, chart, table = (page.index(text) for text in ("<h2", '<div class="bars"', "<table"))
    assert first < chart < table
    assert "How much faster" in page[first:chart]


def test_goals_are_for_those_who_ask(make_record: Make, make_row: MakeRow) -> None:
    record = make_record(make_row(), make_row(workload="lost", goals=["missed: 0.5 x faster than bag"]))
    for goals in (True, False):
        page = render([record], goals)
        assert ("Figures asked for" in page) == goals
        assert ("figures asked for, 1 were met" in page) == goals
        assert ("0.5 x faster than bag" in page) == goals


def test_bars_lie_on_one_axis(make_row: MakeRow) -> None:
    bars = figures.speed_ups([make_row(), make_row(workload="lost", ours=20.0)])
    assert [(bar.factor, bar.words, bar.marks) for bar in bars] == [(5.0, "bag", (20.0,)), (0.5, "bag", (2.0,))]
    places = [float(bars.place(value).removesuffix("%")) for value in (0.5, 1, 5, 20)]
    assert places == sorted(places)
    assert places[0] > 0
    assert places[-1] < 100
    assert bars.ticks() == [0.5, 1, 2, 5, 10, 20]


def test_points_of_curves_have_bars_where_nothing_else_has(make_row: MakeRow) -> None:
    curve = [make_row(workload=f"{n} tokens", curve="mean", scaling="tokens") for n in (10, 100)]
    assert "10 tokens" in figures.speed_ups(curve)[0].name
    assert [bar.name for bar in figures.speed_ups([make_row(), *curve])] == [make_row().title]


def test_the_page_needs_no_network(page: str) -> None:
    assert not re.search(r'(src|href)\s*=\s*"(?!#|data:)', page.replace("xlink:href", "href"))
    assert "@import" not in page
    assert not re.search(r"url\((?!#|data:)", page)
    assert "<script" not in page


def test_the_command(run: Callable[..., Result], make_record: Make, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(dumps(make_record()))
    result = run("report", tmp_path / "record.json", "--output", "page.html")
    assert result.exit_code == 0, result.output
    assert "<h1" in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("content", "arguments", "reason"),
    [
        (None, (), "no such file"),
        ("[]", (), "is not a record"),
        ("[]", ("--output", "nowhere/page.html"), "there is no folder nowhere"),
    ],
)
def test_wrong_input_is_one_line(
    run: Callable[..., Result], tmp_path: Path, content: str | None, arguments: tuple[str, ...], reason: str
) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_text(content)
    result = run("report", path, *arguments)
    assert result.exit_code == 2
    assert reason in result.output
    assert "Traceback" not in result.output
