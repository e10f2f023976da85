"""Which tests execute a line, and how long each takes, noted once by a run of all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from coverage import CoverageData

from tests.kills_suite.plugin import DURATIONS

ROOT = Path(__file__).parents[2]
PROFILES = {"quick": "not thorough", "thorough": "thorough"}
SELF = "test_mutants.py"  # plants the faults itself


class Trace:
    """The tests of a profile, by the lines that they execute.

    Args:
        folder: keeps what was noted; a folder without it is filled by a run of the tests.
        profile: "quick" or "thorough".
        places: what is run; all tests if nothing is named.
    """

    def __init__(self, folder: Path, profile: str, places: Sequence[str] = ()) -> None:
        self.profile, self.places = profile, places
        self.lines, self.seconds = folder / f"{profile}.sqlite", folder / f"{profile}.jsonl"
        if not self.lines.exists():
            self._run()

    def _run(self) -> None:
        self.seconds.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-m", PROFILES[self.profile]]
        command += [
            "-p",
            "tests.kills_suite.plugin",
            "--cov",
            "--cov-context=test",
            "--cov-report=",
        ]
        part = self.lines.with_suffix(".part")
        env = {**os.environ, "COVERAGE_FILE": str(part), DURATIONS: str(self.seconds)}
        # Tests that measure time may fail when traced: they execute their lines all the same.
        subprocess.run(command, cwd=ROOT, env=env, check=False)
        part.rename(self.lines)

    @cached_property
    def _data(self) -> CoverageData:
        data = CoverageData(str(self.lines))
        data.read()
        return data

    @cached_property
    def _durations(self) -> dict[str, float]:
        return dict(map(json.loads, self.seconds.read_text(encoding="utf-8").splitlines()))

    @cached_property
    def _contexts(self) -> dict[Path, dict[int, list[str]]]:
        return {}

    def tests_of(self, path: Path, lines: range) -> list[str]:
        """List the tests that execute any of the lines of a file, quickest first."""
        if path not in self._contexts:
            self._contexts[path] = self._data.contexts_by_lineno(str(path))
        contexts = self._contexts[path]
        found = {context.partition("|")[0] for line in lines for context in contexts.get(line, ())}
        tests = [test for test in found if test in self._durations and SELF not in test]
        return sorted(tests, key=lambda test: (self._durations[test], test))
