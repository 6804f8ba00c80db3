"""cross_document_attention over the ranks of a group: as in one process, and no byte more than is stated."""

from __future__ import annotations

from pathlib import Path

import pytest
import rank_cases
import ranks


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_over_ranks(size: int, tmp_path: Path) -> None:
    """Every case, forward and backward, on each rank; on four one has no document."""
    ranks.on_ranks(rank_cases.every_case, size, tmp_path)
