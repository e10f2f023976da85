"""Hold fxprune to torch.nn.utils.prune over many random sequences of pruning calls.

    python -m tests.functional.parity.run --count 2000 --seed 0 --processes 2

Prints the first sequence that differs, as code; exits with 1 if any does.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import queue
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fxprune.testing.comparing import DifferenceError
from fxprune.testing.parity import check_sequence
from tests.models.cases import Case, sequences

# Sequences on one architecture: they share its capture, which takes longer than they do.
SHARED = 5


def failure_of(case: Case) -> str | None:
    """Check one case; say what differs, or what went wrong."""
    try:
        check_sequence(case.arch, case.calls)
    except DifferenceError as difference:
        return str(difference)
    except Exception:  # noqa: BLE001 - a crash is a difference too, and the count goes on
        return traceback.format_exc()
    return None


def run_some(count: int, first_seed: int, results: Any) -> None:
    """Check `count` sequences and put `(case, failure)` of each into a queue."""
    torch.set_num_threads(1)
    left = count

    @settings(
        max_examples=-(-count // SHARED),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(sequences(SHARED))
    def check(drawn: tuple[Case, ...]) -> None:
        nonlocal left
        for case in drawn[:left]:
            failure = failure_of(case)
            results.put((repr(case), failure))
            left -= 1

    while left > 0:  # hypothesis may give fewer examples than it is asked for
        seed(first_seed + left)(check)()


def results_of(count: int, first_seed: int, processes: int) -> Iterator[tuple[str, str | None]]:
    """Check `count` sequences over some processes and give each result as it comes."""
    context = mp.get_context("spawn")
    results = context.Queue()
    shares = [count // processes + (i < count % processes) for i in range(processes)]
    # far apart, so that no two processes or neighbouring seeds draw the same
    jobs = [(n, first_seed * 10**9 + i * 10**7, results) for i, n in enumerate(shares) if n]
    workers = [context.Process(target=run_some, args=job, daemon=True) for job in jobs]
    for worker in workers:
        worker.start()
    while True:
        alive = any(worker.is_alive() for worker in workers)
        try:
            yield results.get(timeout=0.5)
        except queue.Empty:
            if not alive:  # all done, or killed: the count then falls short
                return


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=200, help="sequences to check")
    parser.add_argument("--seed", type=int, default=0, help="of the draw; the same gives the same")
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    columns = [TextColumn("sequences"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    done, failures = 0, list[tuple[str, str]]()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("sequences", total=options.count)
        for case, failure in results_of(options.count, options.seed, max(1, options.processes)):
            done += 1
            progress.advance(task)
            if failure is not None:
                failures.append((case, failure))
    if failures:
        print(f"the first that differs:\n{failures[0][0]}\n{failures[0][1]}")
    if done < options.count:
        print(f"a process ended early: {options.count - done} sequences were not checked")
    print(f"{done} sequences, {len(failures)} differing")
    return 1 if failures or done < options.count else 0


if __name__ == "__main__":
    sys.exit(main())
