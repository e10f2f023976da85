"""Pipelines: passes that declare what they need and give, checked before any of them runs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from fxprune.checker import check_invariants
from fxprune.errors import PassError
from fxprune.pattern import Refusal
from fxprune.program import Program
from fxprune.rewriter import Rewriter

__all__ = ["Analysis", "Facts", "Pass", "Pipeline", "Rewrite", "Trace"]

F = TypeVar("F")


class Facts:
    """Facts by their type: what the passes of one rule hand to each other.

    Args:
        given: facts that are there from the start.
    """

    def __init__(self, given: Iterable[Any] = ()) -> None:
        self._facts: dict[type[Any], Any] = {type(fact): fact for fact in given}

    def __getitem__(self, kind: type[F]) -> F:
        if kind not in self._facts:
            raise PassError(f"no pass gave a {kind.__name__}; run one that gives it before")
        return self._facts[kind]

    def get(self, kind: type[F]) -> F | None:
        """Return a fact, or None where there is none of its type."""
        return self._facts.get(kind)

    def put(self, fact: Any) -> None:
        """Add a fact, in the place of an earlier one of its type."""
        self._facts[type(fact)] = fact

    @property
    def kinds(self) -> set[type[Any]]:
        """The types that are there."""
        return set(self._facts)


class Pass(ABC):
    """A step of a pipeline; a frozen dataclass whose fields are its options.

    Attributes:
        name: the name in the registry.
        needs: types of facts that earlier passes must have given.
        gives: types of facts that it gives.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[type[Any], ...]] = ()
    gives: ClassVar[tuple[type[Any], ...]] = ()


class Analysis(Pass):
    """A pass that finds out a fact and edits nothing."""

    @abstractmethod
    def run(self, program: Program, facts: Facts) -> Any:
        """Return the fact, of the type that `gives` names."""


class Rewrite(Pass):
    """A pass that edits the Program, through the Rewriter alone."""

    @abstractmethod
    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Edit the Program."""


@dataclass(frozen=True)
class Trace:
    """What a run of a pipeline did.

    Args:
        seconds: (pass name, wall time in seconds) in order.
        edits: how many edits the Rewriter counted.
        refusals: what rules refused.
    """

    seconds: tuple[tuple[str, float], ...]
    edits: int
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order.

    Args:
        passes: the passes.
    """

    passes: tuple[Pass, ...]

    def check(self, given: Iterable[type[Any]] = ()) -> None:
        """Check that every pass will find what it needs.

        Args:
            given: types of facts that are there from the start.

        Raises:
            PassError: names the pass and the fact that is missing.
        """
        there = set(given)
        for i, step in enumerate(self.passes):
            for kind in step.needs:
                if kind not in there:
                    before = ", ".join(p.name for p in self.passes[:i]) or "nothing"
                    raise PassError(
                        f"the pass {step.name!r} needs {kind.__name__}, which no pass before it "
                        f"gives (before it: {before})"
                    )
            there.update(step.gives)

    def run(
        self,
        program: Program,
        facts: Facts,
        *,
        on_pass: Callable[[str], None] | None = None,
    ) -> Trace:
        """Run the passes on a Program that no caller holds, and check it after each.

        Args:
            program: edited in place.
            facts: facts given from the start; the passes' facts are added.
            on_pass: called with each pass's name before it runs.

        Raises:
            PassError: a pass would not find what it needs, or gave another fact than it says.
            InvariantError: a pass left the Program broken.
        """
        self.check(facts.kinds)
        seconds: list[tuple[str, float]] = []
        edits, refusals = 0, list[Refusal]()
        for step in self.passes:
            if on_pass is not None:
                on_pass(step.name)
            start = time.perf_counter()
            if isinstance(step, Rewrite):
                rewriter = Rewriter(program, by=step.name)
                step.run(rewriter, facts)
                rewriter.finish()
                edits, refusals = edits + rewriter.edits, refusals + rewriter.refusals
                check_invariants(program, step.name)
            elif isinstance(step, Analysis):
                facts.put(_given(step, step.run(program, facts)))
            seconds.append((step.name, time.perf_counter() - start))
        return Trace(tuple(seconds), edits, tuple(refusals))


def _given(step: Analysis, fact: Any) -> Any:
    if type(fact) not in step.gives:
        says = ", ".join(kind.__name__ for kind in step.gives)
        raise PassError(f"the pass {step.name!r} gave {type(fact).__name__}, but says {says}")
    return fact
