"""Small texts whose names follow a rule."""

from __future__ import annotations

PEOPLE, PLACES = ("Anna", "Boris", "Clara", "David"), ("Paris", "Oslo", "Quito", "Lima")
FRAMES = ("{p} went to {l} .", "In {l} they met {p} .", "{p} wrote to {q} from {l} .", "Nobody was there .")


def sentences(count: int, first: int = 0) -> list[list[tuple[str, str]]]:
    """Words and BIO labels: a person is met or travels, a place is a place."""
    found = []
    for i in range(first, first + count):
        names = {"p": PEOPLE[i % 4], "q": PEOPLE[(i // 4 + 1) % 4], "l": PLACES[(i // 2) % 4]}
        words = FRAMES[i % len(FRAMES)].format(**names).split()
        kinds = {**dict.fromkeys(PEOPLE, "B-person"), **dict.fromkeys(PLACES, "B-place")}
        found.append([(word, kinds.get(word, "O")) for word in words])
    return found
