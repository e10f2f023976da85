"""Files that an earlier fxprune wrote load as before, and mean the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fxprune

DATA = Path(__file__).parent.parent / "data"
PROGRAMS = ["masked", "shrunk"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_reported_as_before(name: str, tmp_path: Path) -> None:
    told = (DATA / f"{name}_report.json").read_text()
    program = fxprune.load(DATA / f"{name}.fxp")
    assert fxprune.report(program).to_json() + "\n" == told
    again = fxprune.load(fxprune.save(program, tmp_path / "again.fxp"))
    assert fxprune.report(again).to_json() + "\n" == told


def test_a_plan_is_written_as_before() -> None:
    data = json.loads((DATA / "plan.json").read_text())
    loaded = fxprune.Plan.load(DATA / "plan.json")
    assert json.loads(loaded.to_json()) == data
    program = fxprune.load(DATA / "dense.fxp")
    assert not loaded.diff(fxprune.plan(program, loaded.recipe))
    assert fxprune.prune(program, loaded).masks


def test_an_explanation_is_as_before() -> None:
    program = fxprune.load(DATA / "dense.fxp")
    found = fxprune.explain(program, fxprune.Plan.load(DATA / "plan.json"))
    assert found.to_json() + "\n" == (DATA / "explanation.json").read_text()
    assert str(found) + "\n" == (DATA / "explanation.txt").read_text()
