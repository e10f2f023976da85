"""Pipelines: needs and gives are checked before anything runs, and each step after it ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, is_dataclass
from typing import Any, ClassVar

import pytest
import torch

from fxprune.compiler.pipeline import Pipeline, Stage
from fxprune.compiler.run import edit, run_stages
from fxprune.errors import InvariantError, PassError, PassTypeError
from fxprune.program import parameters
from fxprune.program.program import Program
from fxprune.recipe.rule import Rule
from fxprune.rewrite.facts import Importance, Scores, Selection
from fxprune.rewrite.passes import Analysis, Facts, Pass, Rewrite
from fxprune.rewrite.pattern import Refusal
from fxprune.rewrite.registry import find, names
from fxprune.rewrite.rewriter import Rewriter, rule
from fxprune.testing.assert_pass import snapshot
from fxprune.verification.listener import OnPass
from tests.tools.helpers import program


@dataclass(frozen=True)
class Count:
    """How many parameters there are."""

    number: int


@dataclass(frozen=True)
class Double:
    """Twice that."""

    number: int


@dataclass(frozen=True)
class CountParameters(Analysis):
    name: ClassVar[str] = "count"
    gives: ClassVar = (Count,)

    def run(self, program: Program, facts: Facts) -> Count:
        return Count(len(parameters.aliases(program)))


@dataclass(frozen=True)
class DoubleCount(Analysis):
    name: ClassVar[str] = "double"
    needs: ClassVar = (Count,)
    gives: ClassVar = (Double,)

    def run(self, program: Program, facts: Facts) -> Double:
        return Double(2 * facts[Count].number)


@dataclass(frozen=True)
class Edit(Rewrite):
    """Do what it is given."""

    edit: Callable[[Rewriter], Any]
    name: ClassVar[str] = "edit"
    needs: ClassVar = (Double,)

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        self.edit(rewriter)


def nothing(rewriter: Rewriter) -> None:
    """Edit nothing."""


def mask_both(rewriter: Rewriter) -> None:
    """Make masks that no graph reads."""
    for name in ("weight", "bias"):
        rewriter.add_mask(name, torch.ones_like(rewriter.program.parameter(name)))


# Needs and gives


def test_facts_go_from_pass_to_pass():
    facts = Facts()
    trace = Pipeline((CountParameters(), DoubleCount(), Edit(nothing))).run(
        program("linear"), facts
    )
    assert facts[Double] == Double(4)
    assert facts.kinds == {Count, Double}
    assert [name for name, _ in trace.seconds] == ["count", "double", "edit"]
    assert all(seconds >= 0 for _, seconds in trace.seconds)
    assert (trace.edits, trace.refusals) == (0, ())


NEEDS = "the pass 'double' needs Count, which no pass before it gives"


def test_a_need_that_nothing_gives_is_an_error():
    with pytest.raises(PassError) as caught:
        Pipeline((DoubleCount(), CountParameters())).check()
    assert str(caught.value) == f"{NEEDS} (before it: nothing)"
    with pytest.raises(PassError, match=r"needs Double, .* \(before it: count\)"):
        Pipeline((CountParameters(), Edit(nothing))).check()


def test_what_is_given_from_the_start_counts():
    Pipeline((DoubleCount(), Edit(nothing))).check([Count])
    facts = Facts([Count(5)])
    Pipeline((DoubleCount(), Edit(nothing))).run(program("linear"), facts)
    assert facts[Double] == Double(10)


def test_needs_are_checked_before_anything_runs():
    ran: list[str] = []
    p = program("linear")
    before = snapshot(p)
    steps = (CountParameters(), Edit(lambda rewriter: ran.append("edit")))
    with pytest.raises(PassError, match="needs Double"):
        Pipeline(steps).run(p, Facts(), listeners=[OnPass(ran.append)])
    assert ran == []
    assert snapshot(p) == before


def test_every_stage_is_checked_before_the_first_runs():
    ran: list[str] = []
    sound = Stage((Rule(name="a", select="*", method="identity"),), Pipeline((CountParameters(),)))
    faulty = Stage((Rule(name="b", select="*", method="identity"),), Pipeline((DoubleCount(),)))
    with pytest.raises(PassError, match=NEEDS):
        run_stages(program("linear"), [sound, faulty], inplace=True, listeners=[OnPass(ran.append)])
    assert ran == []


def test_a_fact_that_nobody_gave_cannot_be_read():
    with pytest.raises(PassError, match=r"no pass gave a Scores; run one that gives it before"):
        Facts([Count(1)])[Scores]


def test_a_later_fact_replaces_an_earlier_one():
    facts = Facts([Count(1)])
    facts.put(Count(2))
    assert facts[Count] == Count(2)
    assert facts.kinds == {Count}


@dataclass(frozen=True)
class Liar(CountParameters):
    """Gives another fact than it says."""

    fact: Any = None

    def run(self, program: Program, facts: Facts) -> Any:
        return self.fact


@pytest.mark.parametrize(("fact", "name"), [(Double(1), "Double"), (None, "NoneType")])
def test_a_pass_that_gives_another_fact_is_an_error(fact: Any, name: str):
    with pytest.raises(PassError, match=rf"the pass 'count' gave {name}, but says Count"):
        Pipeline((Liar(fact), DoubleCount())).run(program("linear"), Facts())


# Running


def test_passes_are_told_before_they_run():
    told: list[str] = []
    steps = (CountParameters(), DoubleCount(), Edit(lambda rewriter: told.append("inside")))
    Pipeline(steps).run(program("linear"), Facts(), listeners=[OnPass(told.append)])
    assert told == ["count", "double", "edit", "inside"]


def test_edits_and_refusals_are_summed_up_over_the_passes():
    @rule("linear(x, W)", name="refuse")
    def refuse(rw: Rewriter, node: Any, x: Any, W: Any) -> Refusal:  # noqa: N803
        return Refusal("no", node)

    def rename(rewriter: Rewriter) -> None:
        rewriter.apply([refuse])
        for node in rewriter.program.graph.nodes:
            if node.op == "get_attr":
                rewriter.retarget(node, node.target)

    trace = Pipeline((Edit(rename), Edit(rename))).run(program("linear"), Facts([Double(0)]))
    assert trace.edits == 4
    assert [refusal.reason for refusal in trace.refusals] == ["no", "no"]


def test_the_program_is_checked_after_each_rewrite():
    told: list[str] = []
    with pytest.raises(InvariantError, match=r"edit: node weight reads 'weight'"):
        Pipeline((Edit(mask_both), Edit(nothing))).run(
            program("linear"), Facts([Double(0)]), listeners=[OnPass(told.append)]
        )
    assert told == ["edit"]


# The passes that are installed


@pytest.mark.parametrize("name", names())
def test_an_installed_pass_keeps_to_the_form(name: str):
    found = find(name)
    assert found.name == name
    assert issubclass(found, Pass)
    assert issubclass(found, Analysis) != issubclass(found, Rewrite)
    assert is_dataclass(found)
    assert found.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    assert len(found.gives) == issubclass(found, Analysis)


def test_the_options_of_a_pass_do_not_change():
    with pytest.raises(FrozenInstanceError):
        find("rank")(amount=0.5).amount = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_facts_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Selection(()).sites = ()  # pyright: ignore[reportAttributeAccessIssue]
    assert Importance().tensors == {}


def test_an_edit_takes_programs_only():
    with pytest.raises(PassTypeError, match=r"edit takes a Program, not Linear"):
        edit(torch.nn.Linear(2, 2), Edit(nothing), inplace=True)  # pyright: ignore[reportArgumentType]
