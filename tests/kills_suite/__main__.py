"""`python -m tests.kills_suite`: which faults the quick tests see of those that all tests see."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from tests.kills_suite.drawing import Edit, edits_of
from tests.kills_suite.plugin import FAULT, MUTANTS
from tests.kills_suite.tracing import PROFILES, ROOT, Trace

ROOMS = ("ranking", "recipe", "files", "channels")
OUT = ROOT / "out" / "kills_suite"
COPIED = (
    "fxprune",
    "passes",
    "tests",
    "examples",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
)


@dataclass(frozen=True)
class Fault:
    """A fault: one of `tests.mutants`, or an edit of a line.

    Attributes:
        name: what is wrong and where.
        path: the file that it is in.
        lines: whose tests may see it.
        edit: the edit; None for one of `tests.mutants`.
    """

    name: str
    path: Path
    lines: range
    edit: Edit | None = None


@dataclass(frozen=True)
class Result:
    """What the tests of a profile say of a fault.

    Attributes:
        fault: its name.
        profile: "quick" or "thorough".
        tests: how many execute it.
        by: the first that fails; None where none does, or time is up.
        seconds: until then.
        late: whether time was up.
    """

    fault: str
    profile: str
    tests: int
    by: str | None
    seconds: float
    late: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, help="how many faults, a sample of all; default: all")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--drawn", type=int, default=60, help="how many faults are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--rooms", nargs="*", default=ROOMS, help="folders or files of fxprune/")
    parser.add_argument("--tests", nargs="*", default=(), help="trace these alone; default: all")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for a fault's tests")
    parser.add_argument("--out", type=Path, default=OUT, help="traces and results; goes on there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    traces = [Trace(options.out, profile, options.tests) for profile in PROFILES]
    rng = random.Random(options.seed)
    faults = [*planted_faults(), *drawn_faults(options.rooms, options.drawn, traces, rng)]
    faults = [fault for fault in faults if options.only in fault.name]
    if options.count is not None and options.count < len(faults):
        faults = rng.sample(faults, options.count)
    kept = Results(options.out / "results.jsonl")
    for number, fault in enumerate(faults, 1):
        print(f"{number:3} of {len(faults)}  {fault.name}", flush=True)
        for trace in traces:
            result = kept.of(fault, trace) or kept.add(run(fault, trace, options.limit))
            late = ", time is up" if result.late else ""
            told = result.by or f"NOT SEEN{late}"
            print(f"     {trace.profile:8} {result.tests:5} tests {result.seconds:6.1f} s  {told}")
            if result.by is not None:
                break  # what the quick tests see, all tests see
    return kept.summary(faults)


class Results:
    """What was found so far, in a file to go on from.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [Result(**json.loads(line)) for line in lines]
        self._found = {(result.fault, result.profile): result for result in found}

    def of(self, fault: Fault, trace: Trace) -> Result | None:
        return self._found.get((fault.name, trace.profile))

    def add(self, result: Result) -> Result:
        self._found[result.fault, result.profile] = result
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        return result

    def summary(self, faults: list[Fault]) -> int:
        """Print what only the thorough tests see, and the counts; 1 if there is such a fault."""
        seen = {
            profile: {f.name for f in faults if self._is_seen(f.name, profile)}
            for profile in PROFILES
        }
        for name in sorted(seen["thorough"]):
            print(f"only by the thorough tests: {name}")
        quick, whole = len(seen["quick"]), len(seen["quick"] | seen["thorough"])
        print(f"of {len(faults)} faults the quick tests see {quick}, all tests {whole}")
        return 0 if quick == whole else 1

    def _is_seen(self, name: str, profile: str) -> bool:
        result = self._found.get((name, profile))
        return result is not None and result.by is not None


def planted_faults() -> Iterator[Fault]:
    """Give the faults of `tests.mutants`, each with the body of the function that it replaces."""
    for name, mutant in MUTANTS.items():
        module, _, attributes = mutant.target.partition(":")
        loaded = importlib.import_module(module)
        target: Any = inspect.unwrap(reduce(getattr, attributes.split("."), loaded))
        source = Path(inspect.getsourcefile(loaded) or "")
        try:
            lines, first = inspect.getsourcelines(target)
        except TypeError:  # a constant: all that the module does
            yield Fault(name, source, range(1, 10_000))
        else:
            path = Path(inspect.getsourcefile(target) or source)
            yield Fault(name, path, range(first + body_of(lines), first + len(lines)))


def body_of(lines: list[str]) -> int:
    """Count the lines before a function's first statement: an import executes them too."""
    text = "".join(lines)
    indent = len(text) - len(text.lstrip())
    tree = ast.parse("".join(line[indent:] or "\n" for line in lines))
    body = getattr(tree.body[0], "body", [])
    return body[0].lineno - 1 if body else 0


def drawn_faults(
    rooms: list[str], count: int, traces: list[Trace], rng: random.Random
) -> Iterator[Fault]:
    """Draw edits of lines that tests execute, as many in each room."""
    for at, room in enumerate(rooms):
        place = ROOT / "fxprune" / room
        paths = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        edits = [
            edit
            for path in paths
            for edit in edits_of(path, lambda n, p=path: seen(p, n, traces), rng)
        ]
        share = count // len(rooms) + (at < count % len(rooms))
        for edit in rng.sample(edits, min(share, len(edits))):
            name = f"{edit.path.relative_to(ROOT)}:{edit.line} {edit.kind}: {edit.after.strip()}"
            yield Fault(name, edit.path, range(edit.line, edit.line + 1), edit)


def seen(path: Path, line: int, traces: list[Trace]) -> bool:
    return any(trace.tests_of(path, range(line, line + 1)) for trace in traces)


def run(fault: Fault, trace: Trace, limit: float) -> Result:
    """Run the tests of a profile that execute a fault, until one fails or time is up."""
    tests = trace.tests_of(fault.path, fault.lines)
    if not tests:
        return Result(fault.name, trace.profile, 0, None, 0.0, late=False)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = ROOT if fault.edit is None else edited(fault.edit, Path(name))
        listed = Path(name, "tests.txt")
        listed.write_text("\n".join(tests), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "--tb=no", "-m"]
        command += [PROFILES[trace.profile], "-p", "no:cacheprovider", f"@{listed}"]
        env = {**os.environ, "PYTHONPATH": str(folder), "CI": "true"}
        if fault.edit is None:
            command += ["-p", "tests.kills_suite.plugin"]
            env[FAULT] = fault.name
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Result(fault.name, trace.profile, len(tests), None, limit, late=True)
    seconds = round(time.perf_counter() - start, 1)
    by = None if done.returncode == 0 else first_failure(done.stdout) or done.stdout[-200:]
    return Result(fault.name, trace.profile, len(tests), by, seconds, late=False)


def edited(edit: Edit, folder: Path) -> Path:
    """Copy the project, and change the line there."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    place = folder / edit.path.relative_to(ROOT)
    place.write_text(edit.apply(place.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def first_failure(output: str) -> str | None:
    found = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", output, flags=re.MULTILINE)
    return found.group(1) if found else None


if __name__ == "__main__":
    sys.exit(main())
