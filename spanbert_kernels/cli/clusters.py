"""Which documents belong together: by the path in their names, their names, their folders, or their order."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from spanbert_kernels.data.documents import Document

_WORDS = re.compile("([-_])")
GROUP_SIZE = 8  # documents of a cluster where nothing says which belong together


_SCHEMES: tuple[tuple[str, Callable[[Document], str]], ...] = (
    ("the topic in the document's name", lambda document: document.name.rpartition("/")[0]),
    ("the document's name without its last word", lambda document: "".join(_WORDS.split(document.name)[:-2])),
    ("the first word of the document's name", lambda document: "".join(_WORDS.split(document.name)[:-1][:1])),
    ("the folder of the file", lambda document: str(document.source.parent)),
)


def assign_clusters(documents: Sequence[Document]) -> tuple[list[str], str]:
    """A cluster label for each document, and what it was made from.

    A scheme serves if it makes at least two clusters and leaves at most a fifth of the documents alone. Of those that
    serve the one that leaves the fewest alone is taken, the first of equals.

    Example:
        >>> from pathlib import Path
        >>> documents = [Document(name, "text", Path("x")) for name in ("sea_1", "sea_2", "sky_1", "sky_2")]
        >>> assign_clusters(documents)
        (['sea', 'sea', 'sky', 'sky'], "the document's name without its last word")
    """
    best: tuple[int, list[str], str] | None = None
    for how, key in _SCHEMES:
        labels = [key(document) for document in documents]
        counts = Counter(labels)
        alone = sum(label == "" or counts[label] == 1 for label in labels)
        if len(counts) >= 2 and 5 * alone <= len(labels) and (best is None or alone < best[0]):
            best = alone, labels, how
    if best is not None:
        return best[1:]
    return [f"group {i // GROUP_SIZE + 1}" for i in range(len(documents))], f"order, {GROUP_SIZE} at a time"
