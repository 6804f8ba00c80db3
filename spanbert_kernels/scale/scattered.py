"""Clusters whose documents do not stand in a row, and so do not see each other: found in memory that has an end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

REMEMBERED = 1 << 18  # clusters, of some 100 bytes each
NAMED = 3  # in a message


@dataclass
class ScatteredClusters:
    """Hears of every run of documents of one cluster, in any order, and keeps which clusters have more than one.

    Attributes:
        remembered: of so many clusters, the first that it hears of, it tells when they come again.
        names: of the first that came again.

    Example:
        >>> found = ScatteredClusters()
        >>> found.add(["storm", "flood", "storm", "fire"])
        >>> found.add(["flood", "storm"])
        >>> found.message("topic")
        "2 of 3 clusters do not stand in a row ('storm', 'flood'): each run of documents is a cluster of its own. Sort \
the input by 'topic'"
    """

    remembered: int = REMEMBERED
    names: list[str] = field(default_factory=list)
    _once: set[bytes] = field(default_factory=set, repr=False)
    _again: set[bytes] = field(default_factory=set, repr=False)
    _more: bool = False

    def add(self, runs: Iterable[str]) -> None:
        """Hears of runs, each by the name of its cluster."""
        for name in runs:
            key = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest()
            if key in self._again:
                continue
            if key in self._once:
                self._once.remove(key)
                self._again.add(key)
                if len(self.names) < NAMED:
                    self.names.append(name)
            elif len(self._once) + len(self._again) < self.remembered:
                self._once.add(key)
            else:
                self._more = True

    @property
    def count(self) -> int:
        """Clusters that have more than one run."""
        return len(self._again)

    def message(self, name: str) -> str | None:
        """What to tell of them; None where there are none.

        Args:
            name: of the field that names clusters.
        """
        if not self.count:
            return None
        of = f"{'the first ' if self._more else ''}{len(self._once) + self.count:,} clusters"
        names = ", ".join(repr(each[:40]) for each in self.names)
        return (
            f"{self.count:,} of {of} do not stand in a row ({names}{', ...' if self.count > len(self.names) else ''}): "
            f"each run of documents is a cluster of its own. Sort the input by {name!r}"
        )
