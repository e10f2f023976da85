"""`python -m tests.fuzz --count 100000`: two processes, a table of what came of it."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.fuzz.inputs import KINDS
from tests.fuzz.run import Outcome, fuzz

_SHARE = 2500  # cases of one task


def main() -> int:
    """Run the cases and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=list(KINDS))
    given = parser.parse_args()
    start = time.perf_counter()
    firsts = range(given.seed, given.seed + given.count, _SHARE)
    counts = [min(_SHARE, given.seed + given.count - first) for first in firsts]
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.processes, mp_context=spawned) as pool:
        parts = zip(counts, firsts, strict=True)
        work = [pool.submit(fuzz, count, seed=first, only=given.only) for count, first in parts]
        outcomes = [part.result() for part in work]
    return _print(outcomes, time.perf_counter() - start)


def _print(outcomes: list[Outcome], seconds: float) -> int:
    cases, refused = Counter[str](), Counter[str]()
    for outcome in outcomes:
        cases += outcome.cases
        refused += outcome.refused
    for kind, count in cases.items():
        print(f"{kind:16} {count:7} cases, {refused[kind]:7} refused")
    crashes = [crash for outcome in outcomes for crash in outcome.crashes]
    for kind, number, text in crashes[:20]:
        print(f"\n{kind}, seed {number}:\n{text}")
    slow = max(outcome.slowest for outcome in outcomes)
    print(
        f"{sum(cases.values())} cases, {len(crashes)} crashes; slowest {slow[0]:.1f} s ({slow[1]}, "
        f"seed {slow[2]}); peak memory {max(o.peak for o in outcomes):.0f} MiB, "
        f"{max(o.grown for o in outcomes):.0f} more than at the start; {seconds:.0f} s"
    )
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
