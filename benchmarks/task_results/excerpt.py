"""A text with the entities that lie in each other and what is the same, as a fragment of HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

Place = tuple[int, int]  # characters


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
