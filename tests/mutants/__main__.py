"""`python -m tests.mutants`: which planted faults the checker catches, and its false alarms."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from typing import Any

from tests.mutants import coupling, removing, rewriting, selecting
from tests.mutants.hunting import Hunt
from tests.mutants.workers import alarmed, hunted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=1000, help="Programs without a fault")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    mutants = [m for kind in (selecting, rewriting, removing, coupling) for m in kind.MUTANTS]
    names = [m.name for m in mutants if options.only in m.name]
    start = time.perf_counter()
    n, each = options.processes, 50
    spans = [(i, min(each, options.programs - i)) for i in range(0, options.programs, each)]
    with multiprocessing.get_context("spawn").Pool(n) as workers:
        # Mutants first, dealt out in turn: what is slow is spread.
        hunts = workers.map_async(hunted, [names[i :: 4 * n] for i in range(4 * n)], chunksize=1)
        alarms = workers.imap_unordered(alarmed, spans)
        found = {done.name: done for part in hunts.get() for done in part}
        for name in names:
            _tell(found[name])
        clean = list[tuple[int, list[str]]]()
        for done in alarms:
            clean.append(done)
            print(
                f"{sum(n for n, _ in clean)} Programs without a fault, "
                f"{sum(len(told) for _, told in clean)} false alarms, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    caught = sum(1 for done in found.values() if done.by is not None)
    programs, false = sum(done for done, _ in clean), [text for _, part in clean for text in part]
    for text in false:
        print(f"false alarm: {text}")
    print(f"{caught} of {len(names)} mutants caught")
    print(f"{len(false)} false alarms on {programs} Programs without a fault")
    print(f"{time.perf_counter() - start:.0f} s")
    return 0 if caught == len(names) and not false else 1


def _tell(done: Hunt) -> None:
    says: Any = done.by or f"NOT CAUGHT (crash: {done.crash})"
    line = " ".join(str(says).split())
    print(f"{done.name:34} {done.programs:3} {done.seconds:6.1f} s  {line[:150]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
