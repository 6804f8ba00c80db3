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
    lost = make_row(workload="lost <here>", ours=20.0, goals=["missed: 0.5 x faster than bag, at least 2 x asked"])
    curve = [
        make_row(workload=f"{n} tokens", curve="mean", scaling="tokens", axes={"tokens": n}, providers=more)
        for n, more in ((10, {}), (100, {}), (1000, {"bag": OUT}))
    ]
    failure = {"suite": "span_gather", "workload": "planned", "reason": "ours: off by 1, allowed 0"}
    skipped = {"suite": "encoder", "workload": "gum", "reason": "not there"}
    return render([make_record(make_row(), lost, *curve, failures=[failure], skipped=[skipped]), make_record()])


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
    for heading in ("Roofline", "Time as inputs grow", "Peak memory as inputs grow", "Where it loses"):
        assert heading in text
    assert page.count("<svg") == 6  # bars, roofline, two curves; and the second record's bars and roofline
    assert "None" not in text
    assert "bag runs out of memory: takes more than 3000 MB" in " ".join(text.split())


def test_names_beside_bars_have_room(make_row: MakeRow) -> None:
    """The widest bar has the longest name."""
    name = "a way with a long name, compiled"
    other = {"kind": "peer", "milliseconds": 1.0, "quartiles": [1.0, 1.0], "rounds": 9, "error": 0.0, "share": 1.0}
    row = make_row(ours=0.01, bag=20.0, providers={name: other})
    plot = figures.speed_ups([row])
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', plot)[1])  # type: ignore[index]
    place = re.search(rf'translate\(([\d.]+) [^>]*>100 x {name}<|x="([\d.]+)"[^>]*>100 x {name}<', plot)
    assert place, plot
    assert float(place[1] or place[2]) + 5 * len(f"100 x {name}") < width


def test_points_of_curves_have_bars_where_nothing_else_has(make_row: MakeRow) -> None:
    curve = [make_row(workload=f"{n} tokens", curve="mean", scaling="tokens") for n in (10, 100)]
    assert "10 tokens" in figures.speed_ups(curve)
    assert "10 tokens" not in figures.speed_ups([make_row(), *curve])


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
