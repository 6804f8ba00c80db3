"""Records: written and read again, compared, summed up."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from records import comparing, running, table
from records.record import NotARecord, Record, Row, dumps, load
from records.summary import Summary
from rich.console import Console

Make = Callable[..., Record]
MakeRow = Callable[..., Row]
RESULTS = sorted(path for path in (running.SUITES / "results").glob("*.json") if '"format"' in path.read_text()[:50])


def test_what_is_written_is_read_again(make_record: Make, make_row: MakeRow, tmp_path: Path) -> None:
    out = {"kind": "peer", "unavailable": "runs out of memory: takes more than 3000 MB"}
    record = make_record(make_row(providers={"dense": out}), make_row(workload="other", curve="c", scaling="tokens"))
    (tmp_path / "record.json").write_text(dumps(record))
    assert load(tmp_path / "record.json") == record


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a record"),
        ('{"benchmarks": []}', "is not a record"),
        ('{"format": 7}', "format 7"),
        ('{"format": 1, "rows": []}', "lacks"),
    ],
)
def test_what_is_no_record_says_so(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(NotARecord, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ({}, {}, "same"),
        ({}, {"ours": 2.2}, "slower"),
        ({}, {"ours": 1.8}, "faster"),
        # The whole machine became slower: the other ways too.
        ({}, {"ours": 3.0, "eager": 60.0, "bag": 15.0}, "same"),
        ({}, {"ours": 4.0, "eager": 60.0, "bag": 15.0}, "slower"),
        # Other ways that disagree about the machine: a change as large as their distance means nothing.
        ({}, {"ours": 2.5, "eager": 30.0, "bag": 15.0}, "same"),
    ],
)
def test_slower_is_what_lies_beyond_the_noise(
    before: dict[str, float], after: dict[str, float], verdict: str, make_row: MakeRow
) -> None:
    change = comparing.change_of(make_row(**before), make_row(**after))
    assert (change.slower, change.faster) == (verdict == "slower", verdict == "faster"), change


def test_one_round_tells_little(make_row: MakeRow) -> None:
    hasty = {"kind": "ours", "milliseconds": 2.5, "quartiles": [2.5, 2.5], "rounds": 1}
    assert not comparing.change_of(make_row(), make_row(providers={"ours": hasty})).slower


def test_our_other_ways_say_nothing_about_the_machine(make_row: MakeRow) -> None:
    """They share code with the way that is judged: a slower kernel must not pass for a slower machine."""

    def row(milliseconds: float) -> Row:
        mine = {"kind": "peer", "milliseconds": milliseconds, "quartiles": [milliseconds] * 2, "rounds": 9}
        return make_row(ours=milliseconds, providers={f"ours, {name}": mine for name in ("a", "b", "c", "d")})

    assert comparing.change_of(row(2.0), row(4.0)).slower


def test_only_rows_of_both_records_are_compared(
    make_record: Make, make_row: MakeRow, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = make_row(suite="encoder")
    first = make_record(make_row(), make_row(workload="went"), elsewhere)
    second = make_record(make_row(ours=4.0), make_row(workload="came"), make_row(dtype="bfloat16"))
    changes = list(comparing.changes(first, second))
    assert [change.row for change in changes] == [second.rows[0]]
    gone, new = comparing.without_counterpart(first, second)
    assert gone == [first.rows[1]]  # the other suite was not asked for
    assert new == second.rows[1:]
    table.show_changes(changes, gone, new, "earlier", Console(width=80))
    told = capsys.readouterr().out
    assert "SLOWER" in told
    assert "Gone: span_pool: went" in told
    assert "New: span_pool: came" in told
    table.show_changes([], [], [], "earlier", Console(width=80))
    assert "no row in common" in capsys.readouterr().out


def test_the_table_is_narrow_and_names_suites_whole(
    make_record: Make, make_row: MakeRow, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"kind": "peer", "milliseconds": 1.0, "quartiles": [1.0, 1.0], "rounds": 3}
    row = make_row(suite="cross_document_attention", providers={"SDPA per cluster with a mask": other})
    table.show(make_record(row), Console(width=80))
    told = capsys.readouterr().out
    assert "cross_document_attention" in told
    assert re.search(r"goals *\n.*met *\n", told)  # the last column is not cut off


def test_the_table_says_why_a_provider_has_no_figure(
    make_record: Make, make_row: MakeRow, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {"kind": "peer", "unavailable": "has no backward"}
    table.show(make_record(make_row(providers={"slices": out})), Console(width=160))
    assert "slices has no backward" in capsys.readouterr().out


BENCHMARKS = (running.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_a_kept_record_is_whole(path: Path) -> None:
    record = load(path)
    assert path.stat().st_size < 300_000
    assert re.fullmatch("[0-9a-f]{40}", record.commit)
    assert record.machine.keys() & {"processor", "gpu"}
    assert record.versions["torch"]
    for failure in record.failures:  # a workload that was refused stands in the docs, with the reason
        assert f"- {failure['suite']}: {failure['workload']}: {failure['reason']}" in BENCHMARKS
    assert {"copy, GB/s", "float32, GFLOP/s", "bfloat16, GFLOP/s"} <= set(record.ceilings)
    for row in record.rows:
        assert row.ours.error is not None, row.title
        assert row.ours.allowed is not None, row.title
        assert row.ours.error <= row.ours.allowed, row.title
        for name, entry in row.providers.items():
            if entry.milliseconds is None:
                assert entry.unavailable, (row.title, name)
            elif entry.kind != "floor":
                assert entry.error is not None, (row.title, name)
                if row.floor:
                    assert entry.share == pytest.approx(row.floor / entry.milliseconds, rel=0.01), (row.title, name)


def test_wins_and_losses(make_record: Make, make_row: MakeRow) -> None:
    rows = [make_row(), make_row(workload="even", ours=10.0), make_row(workload="lost", ours=20.0)]
    summary = Summary(make_record(*rows))
    assert [row.workload for row, *_ in summary.wins] == ["mean, all spans"]
    assert [row.workload for row, *_ in summary.draws] == ["even"]
    assert [(row.workload, name, factor) for row, name, factor in summary.losses] == [("lost", "bag", 0.5)]
    (suite,) = summary.suites()
    assert (suite.wins, suite.draws, suite.losses) == (1, 1, 1)
    assert suite.lowest == 0.5
    assert suite.highest == 5.0
    assert suite.mean == pytest.approx((0.5 * 1 * 5) ** (1 / 3))
    assert suite.peak == pytest.approx(0.05)


def test_our_other_backends_are_no_rivals(make_row: MakeRow) -> None:
    mine = {"kind": "peer", "milliseconds": 1.0, "quartiles": [1.0, 1.0], "rounds": 0}
    assert list(make_row(providers={"ours, triton": mine}).rivals) == ["bag", "gather"]
