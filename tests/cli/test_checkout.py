"""Which commit a record names."""

from __future__ import annotations

from pathlib import Path

import children

from spanbert_kernels.cli import checkout


def test_the_commit_is_the_last_one_of_the_code(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return children.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert checkout.commit("code", root=tmp_path) == checkout.UNKNOWN
    git("init", "-q")
    for name in ("code", "docs"):
        (tmp_path / name).write_text("a")
        git("add", name)
        git("commit", "-q", "-m", name)
    first = git("rev-parse", "HEAD~1")
    assert checkout.commit("code", root=tmp_path) == first
    (tmp_path / "docs").write_text("b")
    assert checkout.commit("code", root=tmp_path) == first
    (tmp_path / "code").write_text("b")
    assert checkout.commit("code", root=tmp_path) == f"{first}+"
