"""What was taken, cut and left out is said once, by the data that it belongs to."""

from __future__ import annotations

from spanbert_kernels.data.counts import Counts, counting, cut, left_out, say, tallying, took


def test_lines() -> None:
    heard: list[str] = []
    with tallying(heard.append):
        with counting("Training data"):
            took("document", 1_000)
            took("entity", 1)
            cut("document", "to its first 512 tokens", 2)
            left_out("mention", "wider than 30 words")
            left_out("mention", "twice", 2)
            left_out("mention", "across windows", 0)
        with counting("Test data"):
            say()
            took("entity", 0)
        with counting("Training data"):
            took("document")
    assert heard == [
        "Training data: took 1,000 documents, 1 entity; cut 2 documents (to its first 512 tokens); left out 1 mention "
        "(wider than 30 words), 2 mentions (twice)",
        "Test data: took 0 entities",
    ]


def test_nothing_is_said_of_nothing() -> None:
    heard: list[str] = []
    with tallying(heard.append), counting("Test data"):
        left_out("mention", "twice", 0)
    took("mention")  # nobody listens
    assert heard == []
    assert not Counts()


def test_numbers_reach_the_end_of_a_command_that_fails() -> None:
    heard: list[str] = []
    try:
        with tallying(heard.append):
            left_out("sentence", "too long")
            raise ValueError
    except ValueError:
        pass
    assert heard == ["Data: took nothing; left out 1 sentence (too long)"]
