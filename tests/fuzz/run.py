"""The fuzzer by hand: `run.py --seconds 600` for calls from a new seed on, `run.py --seed N` for one call alone."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "ops")]
    import conftest  # noqa: F401  (what is decided before Triton and the libraries are loaded)

import torch  # noqa: E402
from fuzz import compare  # noqa: E402

MOST_FAILURES = 20


def main(arguments: list[str] | None = None) -> int:
    """0 where every call passed and there were any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--seed", type=int, help="one call alone")
    parser.add_argument("--first", type=int, help="the first of the seeds, one after the other; drawn by default")
    parser.add_argument("--calls", type=int, help="at most so many")
    parser.add_argument("--operation", help="pass over the calls of all others")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    alone = options.seed is not None
    first = options.seed if alone else secrets.randbelow(10**12) if options.first is None else options.first
    last = first + (1 if alone else options.calls or 10**12)
    if alone:
        print(compare.draw_call(first))
    began, seed, calls, failures, ran = time.monotonic(), first, 0, 0, Counter[str]()
    while seed < last and time.monotonic() - began < options.seconds and failures < MOST_FAILURES:
        if options.operation in (None, compare.draw_call(seed).operation):
            calls += 1
            try:
                ran.update(map(str, compare.run_seed(seed)))
            except compare.CallFailed as failure:
                failures += 1
                print(failure, end="\n\n", flush=True)
        seed += 1
    print(f"{calls} calls, seeds {first} to {seed - 1}, {time.monotonic() - began:.0f} s, {failures} failed")
    print("ran on " + (", ".join(f"{place} ({count})" for place, count in sorted(ran.items())) or "nothing"))
    return 1 if failures or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
