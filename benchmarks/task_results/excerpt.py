"""What was found in texts as fragments of HTML: entities that lie in each other, and what is the same across texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from spanbert_kernels.cli.explained import called

Place = tuple[int, int]  # characters
BESIDE = 90  # characters around a mention


def excerpt(nested: Path, coreference: Path, name: str, length: int) -> str:
    """The beginning of a text of that file name, of what `predict` wrote for both tasks."""
    kinds: dict[Place, str] = {}
    for record in _of_file(nested, name):
        start = record.get("start", 0)
        kinds |= {(start + each["start"], start + each["end"]): each["label"] for each in record["entities"]}
    (whole,) = _of_file(coreference, name)
    mentions = {(each["start"], each["end"]): each["entity"] for each in whole["mentions"]}
    counts = Counter(mentions.values())
    linked = {place: entity for place, entity in mentions.items() if counts[entity] > 1}
    end = whole["text"].rfind(".", 0, length) + 1 or len(whole["text"])
    return fragment(whole["text"][:end], kinds, linked)


def _of_file(path: Path, name: str) -> list[dict[str, Any]]:
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [each for each in records if Path(each["file"]).name == name]


def fragment(text: str, kinds: Mapping[Place, str], linked: Mapping[Place, str]) -> str:
    """Boxes in boxes, each with its type, and a number where it is an entity that is named more than once.

    Example:
        >>> fragment("Ada!", {(0, 3): "person"}, {(0, 3): "7"})
        '<span class="entity">Ada<sub>person <b>1</b></sub></span>!'
    """
    number: dict[str, int] = {}
    places = sorted((p for p in {*kinds, *linked} if p[1] <= len(text)), key=lambda place: (place[0], -place[1]))
    found, open_, at = "", list[Place](), 0
    for place in [*places, (len(text), len(text))]:
        while open_ and open_[-1][1] <= place[0]:
            closed = open_.pop()
            found += escape(text[at : closed[1]]) + _label(closed, kinds, linked, number)
            at = closed[1]
        found += escape(text[at : place[0]])
        at = place[0]
        if place[0] < place[1] and all(place[1] <= each[1] for each in open_):
            found += '<span class="entity">'
            open_.append(place)
            if place in linked:
                number.setdefault(linked[place], len(number) + 1)
    return found.replace("\n", "<br>")


def _label(place: Place, kinds: Mapping[Place, str], linked: Mapping[Place, str], number: Mapping[str, int]) -> str:
    words: Iterable[str] = (kinds.get(place, ""), f"<b>{number[linked[place]]}</b>" if place in linked else "")
    return f"<sub>{' '.join(filter(None, words))}</sub></span>"


def across(found: Path, entities: int, texts: int) -> str:
    """The entities of most texts, each with a mention in some of them, of what `predict` wrote.

    Mentions are shown that are called otherwise than those before, as far as there are any.
    """
    records = list(map(json.loads, found.read_text(encoding="utf-8").splitlines()))
    own: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for number, record in enumerate(records):
        for mention in record["mentions"]:
            own.setdefault(mention["entity"], {}).setdefault(number, []).append(mention)
    most = sorted(own.values(), key=lambda each: (-len(each), -sum(map(len, each.values()))))
    return "".join(_entity(each, records, texts) for each in most[:entities])


def _entity(own: Mapping[int, list[dict[str, Any]]], records: list[dict[str, Any]], texts: int) -> str:
    every = [mention["text"] for mentions in own.values() for mention in mentions]
    shown: dict[int, dict[str, Any]] = {}
    for text in dict.fromkeys(map(str.lower, every)):
        place = next(
            (n for n, all_ in own.items() if n not in shown and text in (m["text"].lower() for m in all_)), None
        )
        if place is not None:
            shown[place] = next(mention for mention in own[place] if mention["text"].lower() == text)
    shown = {**shown, **{number: mentions[0] for number, mentions in own.items() if number not in shown}}
    lines = (line(records[n]["text"], (m["start"], m["end"]), Path(records[n]["file"]).stem) for n, m in shown.items())
    title = f"<b>{escape(called(every))}</b>, {len(every)} mentions in {len(own)} of {len(records)} articles"
    return f"<p>{title}</p><ul>{''.join(list(lines)[:texts])}</ul>\n"


def line(text: str, place: Place, title: str) -> str:
    r"""A mention among the words of its line, below the title of its text.

    Example:
        >>> line("Yes.\nAda laughs.\n", (5, 8), "A day")
        '<li><i>A day</i>: <span class="entity">Ada</span> laughs.</li>'
    """
    start, end = place
    first, last = text.rfind("\n", 0, start) + 1, (text.find("\n", end) + 1 or len(text) + 1) - 1
    before, after = text[first:start], text[end:last]
    if len(before) > BESIDE:
        before = f"\u2026{before[-BESIDE:].partition(' ')[2]}"
    if len(after) > BESIDE:
        after = f"{after[:BESIDE].rpartition(' ')[0]}\u2026"
    mention = f'<span class="entity">{escape(text[start:end])}</span>'
    return f"<li><i>{escape(title)}</i>: {escape(before)}{mention}{escape(after)}</li>"
