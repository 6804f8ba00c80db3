"""Names and texts of strangers on a terminal and in pictures: no control gets there, and `$` is no mathematics."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.figure import Figure

from spanbert_kernels.cli import formatting, main, svg, terminal
from spanbert_kernels.cli.explain import draw, page, paths_of
from spanbert_kernels.tasks.explanation import ClusterExplanation, Explanation

Run = Callable[..., Result]
PLAYING = "a\x1b[2J\x1b]0;title\x07\r\x9b31m\u202egpj\u2066.exe\x00"
FORBIDDEN = "\x1b\x07\r\x9b\u202e\u2066\x00"
MATHEMATICS = ("$x^$", r"\frac{", "$", r"a\$b", "$\\undefined$", "100 $ for {", "%", "_^_")


def test_controls_are_escaped_and_people_s_scripts_are_not() -> None:
    shown = formatting.one_line(PLAYING + "\n")
    assert shown.isprintable()
    assert shown == r"a\x1b[2J\x1b]0;title\x07\r\x9b31m\u202egpj\u2066.exe\x00\n"
    for text in ("naïve café", "日本語", "👩‍👩‍👧", "می‌خواهم", "no\u00a0break", "e\u0301"):
        assert formatting.one_line(text) == text


def test_long_lines_lose_their_middle() -> None:
    text = f"train.conll, line 3: {'x' * 10**6} is not a label"
    shown = formatting.for_terminal(text)
    assert len(shown) == formatting.LONGEST_LINE
    assert shown.startswith("train.conll, line 3: xxx")
    assert shown.endswith("xxx is not a label")


@pytest.mark.parametrize("name", sorted(main.commands))
def test_no_command_prints_the_controls_of_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command says of a file that is not there."""
    monkeypatch.chdir(tmp_path)
    named = PLAYING.rstrip("\x00")
    lines = {
        "bench": ("--compare", named),
        "demo": (named,),
        "encode": (named, "--model", named, "--output", "x"),
        "evaluate": ("tagging", "--model", named, "--data", named),
        "explain": ("nested", named, "--model", named, "--output", f"{named}/x"),
        "predict": ("tagging", named, "--model", named),
        "pretrain": (named, "--output", "x"),
        "report": (named,),
        "train": ("tagging", "--data", named, "--output", "x"),
    }
    for line in (lines[name], (*lines[name], named, named), (f"--{named}", *lines[name])):
        result = CliRunner().invoke(main, [name, *line])
        assert result.exit_code == 2, result.output
        assert r"a\x1b[2J" in result.output
        assert not set(FORBIDDEN) & set(result.output)


def test_results_keep_their_controls_unless_a_terminal_shows_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.pour("Anna\x1b[2J\tB-person\n\n")
    assert capsys.readouterr().out == "Anna\x1b[2J\tB-person\n\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    terminal.pour("Anna\x1b[2J\tB-person\n\n")
    assert capsys.readouterr().out == "Anna\\x1b[2J\tB-person\n\n"


def test_warnings_and_tables_go_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.warn(PLAYING)
    terminal.Console(highlight=False).print(PLAYING, markup=False)
    found = capsys.readouterr()
    assert not set(FORBIDDEN) & set(found.out + found.err)
    assert found.err.startswith(r"Warning: a\x1b[2J")


@pytest.mark.parametrize("text", [*MATHEMATICS, PLAYING])
def test_texts_in_pictures_are_texts(text: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    weights = np.ones(1, dtype=np.float32)
    span = Explanation(text, text, (text,), weights, seen={text: 1.0})
    cluster = ClusterExplanation((text,), (text,), (1.0,), {}, ((text,),), (weights,))
    for number, (clusters, spans) in enumerate((([], [span]), ([cluster], []))):
        draw(text, clusters, spans, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    import matplotlib

    with matplotlib.rc_context(svg.STYLE):
        figure = Figure()
        axes = figure.add_subplot()
        axes.set_title(text)
        axes.set_xticks([0], [text])
        axes.plot([0], [0], label=text)
        figure.legend()
        drawn = svg.svg(figure, f'"><script>{text}')
    assert "<script>" not in drawn
    assert not set(FORBIDDEN) & set(drawn)
    escaped = formatting.one_line(text).replace("&", "&amp;")
    assert drawn.count(escaped) >= 3


def test_the_page_of_an_explanation_escapes_what_it_shows() -> None:
    weights = np.ones(1, dtype=np.float32)
    text = "<script>alert(1)</script>"
    cluster = ClusterExplanation((text,), (text,), (1.0,), {}, ((text,),), (weights,))
    shown = page(text, [cluster], [Explanation(text, text, (text,), weights, seen={text: 1.0})])
    assert "<script>" not in shown


def test_a_picture_does_not_take_the_page_s_place() -> None:
    """Named by the picture or by the page, the two are two files."""
    for output in ("x.png", "x.PNG", "x.html", "x", "a.b.png", ".png"):
        named, picture = paths_of(Path(output))
        assert named != picture
        assert Path(output) in (named, picture)
        assert picture.suffix.lower() == ".png"
