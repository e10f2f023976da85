"""Run cases and watch them: what they raise, how long they take, what they do."""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fxprune.errors import FxpruneError
from tests.fuzz.inputs import KINDS, SHARES, Seeds, seeds

_LONGEST = 10  # seconds
_ACTS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")


@dataclass
class Outcome:
    """What came of the cases.

    Args:
        cases: how many there were, by kind.
        refused: how many raised an error of fxprune's, by kind.
        crashes: kind, seed and traceback of each that raised anything else, hung or ran code.
        slowest: seconds, kind and seed.
        peak: the process's largest memory, in MiB.
        grown: by how much of that the cases were more than what starting took.
    """

    cases: Counter[str] = field(default_factory=Counter[str])
    refused: Counter[str] = field(default_factory=Counter[str])
    crashes: list[tuple[str, int, str]] = field(default_factory=list[tuple[str, int, str]])
    slowest: tuple[float, str, int] = (0.0, "", 0)
    peak: float = 0.0
    grown: float = 0.0


class _HungError(BaseException):
    pass


class _Watch:
    """Notes what no input may make a process do."""

    def __init__(self) -> None:
        self.acts: list[str] = []
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event in _ACTS:
            self.acts.append(f"{event} {str(args)[:100]}")


def fuzz(count: int, *, seed: int = 0, only: str | None = None) -> Outcome:
    """Run cases one after another.

    Args:
        count: how many.
        seed: of the first; each next one has the next.
        only: a kind; None for all, in their shares.
    """
    torch.set_num_threads(1)
    outcome, watch = Outcome(), _Watch()
    kinds, shares = list(SHARES), list(SHARES.values())
    signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ready = seeds(Path(folder))
        os.mkfifo(ready.folder / "pipe")
        start = _peak()
        for number in range(seed, seed + count):
            kind = only or random.Random(number).choices(kinds, shares)[0]
            _case(ready, kind, number, outcome, watch)
            if number % 500 == 0:
                gc.collect()
    outcome.peak = _peak()
    outcome.grown = outcome.peak - start
    return outcome


def _case(ready: Seeds, kind: str, number: int, outcome: Outcome, watch: _Watch) -> None:
    outcome.cases[kind] += 1
    start = time.perf_counter()
    fault = None
    signal.setitimer(signal.ITIMER_REAL, _LONGEST)
    watch.on = True
    try:
        KINDS[kind](ready, random.Random(number))
    except FxpruneError:
        outcome.refused[kind] += 1
    except (Exception, _HungError):  # noqa: BLE001 - that is what is looked for
        fault = traceback.format_exc()
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - start
    outcome.slowest = max(outcome.slowest, (seconds, kind, number))
    if ready.canary.exists():
        ready.canary.rmdir()
        fault = "code in the input was run"
    if watch.acts:
        fault = f"the input made the process do: {watch.acts.pop()}"
        watch.acts.clear()
    if fault is not None:
        outcome.crashes.append((kind, number, fault))


def _hang(number: int, frame: Any) -> None:
    raise _HungError


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
