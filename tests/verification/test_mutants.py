"""The planted faults: forty and more, each of which replaces something that is there."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from functools import reduce
from typing import Any

import pytest

from tests.mutants import coupling, removing, rewriting, selecting
from tests.mutants.hunting import Pool, alarm_on, hunt
from tests.mutants.mutant import Mutant, planted
from tests.mutants.programs import drawn

MUTANTS = (*selecting.MUTANTS, *rewriting.MUTANTS, *removing.MUTANTS, *coupling.MUTANTS)


def test_there_are_forty_of_different_names():
    assert len(MUTANTS) >= 40
    assert Counter(m.name for m in MUTANTS).most_common(1)[0][1] == 1


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_a_mutant_replaces_what_is_there_and_puts_it_back(mutant: Mutant):
    before = standing(mutant.target)
    with planted(mutant):
        assert standing(mutant.target) is not before
    assert standing(mutant.target) is before


def standing(target: str) -> Any:
    """What stands at "module:Class.attribute", not bound to its class."""
    module, _, path = target.partition(":")
    *outer, attribute = path.split(".")
    owner: Any = reduce(getattr, outer, importlib.import_module(module))
    return inspect.getattr_static(owner, attribute)


def test_a_crash_catches_nothing():
    def crash(original: object) -> object:
        def fail(*args: object) -> None:
            raise ArithmeticError("no")

        return fail

    found = hunt(Mutant("crash", "fxprune.passes.cut:_of_entries", crash), Pool(drawn(3, 5)))
    assert found.by is None
    assert found.programs == 3
    assert found.crash in (None, "ArithmeticError: no")


@pytest.mark.thorough
@pytest.mark.parametrize("mutant", MUTANTS[:20:4], ids=[m.name for m in MUTANTS[:20:4]])
def test_some_are_caught(mutant: Mutant):
    assert hunt(mutant, Pool(drawn(40, 1_000_000))).by is not None


@pytest.mark.thorough
def test_without_a_fault_there_is_no_alarm():
    assert [alarm_on(draw) for draw in drawn(9, 77)] == [None] * 9
