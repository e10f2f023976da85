"""`python -m tests.kills --count 500`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.kills.run import kill_writers


def main() -> int:
    """Kill, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)  # a process of several threads must not fork
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_writers(given.count, Path(folder), seed=given.seed)
    for target, count in outcome.kills.items():
        print(f"{target:24} {count:5} kills")
    for fault in outcome.torn:
        print(fault)
    print(
        f"{sum(outcome.kills.values())} kills, {len(outcome.torn)} torn; {outcome.changed} after a "
        f"write was done, {outcome.leftovers} temporary files left, "
        f"{time.perf_counter() - start:.0f} s"
    )
    return 1 if outcome.torn else 0


if __name__ == "__main__":
    sys.exit(main())
