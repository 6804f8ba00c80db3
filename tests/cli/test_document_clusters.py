"""Which documents belong together, told from names, folders or order."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanbert_kernels.cli.clusters import assign_clusters
from spanbert_kernels.data.documents import Document


def labels(*names: str) -> tuple[list[str], str]:
    """From names; what stands before a colon is the folder of the file."""
    documents = []
    for name in names:
        folder, _, rest = name.rpartition(":")
        documents.append(Document(rest, "text", Path(folder, "file.txt")))
    return assign_clusters(documents)


@pytest.mark.parametrize(
    ("names", "expected", "how"),
    [
        (["a/1", "b/2", "a/3", "b/4"], ["a", "b", "a", "b"], "the topic in the document's name"),
        (["up_1", "up_2", "down_1", "down_2"], ["up", "up", "down", "down"], "the document's name without its last"),
        # Without the last word "up_x" would be alone, by the first word nobody is.
        (["up_1", "up_2", "up_x_y", "a_1", "a_2"], ["up", "up", "up", "a", "a"], "the first word of the document's"),
        (["x:1", "x:2", "y:3", "y:4"], ["x", "x", "y", "y"], "the folder of the file"),
        ([str(i) for i in range(9)], ["group 1"] * 8 + ["group 2"], "order, 8 at a time"),
        (["one_1", "two_2", "three_3"], ["group 1"] * 3, "order, 8 at a time"),
    ],
)
def test_the_scheme_that_leaves_the_fewest_alone(names: list[str], expected: list[str], how: str) -> None:
    found, said = labels(*names)
    assert found == expected
    assert said.startswith(how)
