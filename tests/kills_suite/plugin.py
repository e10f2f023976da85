"""A plugin of pytest: plants one of `tests.mutants`, and notes how long each test takes."""

from __future__ import annotations

import json
import os
from collections.abc import Generator

import pytest

from tests.mutants import coupling, removing, rewriting, selecting
from tests.mutants.mutant import Mutant, planted

FAULT, DURATIONS = "FXPRUNE_FAULT", "FXPRUNE_DURATIONS"
"""Environment variables: the name of a mutant; the file that takes (test, seconds) by line."""

MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant
    for kind in (selecting, rewriting, removing, coupling)
    for mutant in kind.MUTANTS
}


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Generator[None, object, object]:
    """Run all tests with the fault planted: what they imported by name before is as it was."""
    if FAULT not in os.environ:
        return (yield)
    with planted(MUTANTS[os.environ[FAULT]]):
        return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write how long a test took."""
    if (
        DURATIONS in os.environ
        and report.when == "call"
        and "PYTEST_XDIST_WORKER" not in os.environ
    ):
        with open(os.environ[DURATIONS], "a", encoding="utf-8") as file:
            file.write(json.dumps([report.nodeid, report.duration]) + "\n")
