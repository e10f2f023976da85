"""Pipelines: passes that declare what they need and give, checked before any of them runs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from fxprune.announced import EFFECTS
from fxprune.certificate import Certificate
from fxprune.checker import check_invariants
from fxprune.errors import InvariantError, PassError
from fxprune.pattern import Refusal
from fxprune.program import Program
from fxprune.promising import PROMISES, PromiseCheck
from fxprune.rewriter import Rewriter
from fxprune.verify import BOUND

__all__ = ["Analysis", "Facts", "Pass", "Pipeline", "Rewrite", "Step", "Trace", "Watch"]

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
        promise: "same": a rewrite leaves every output as it is, bit for bit, the keys, and what
            is trained; "close": outputs of float64 copies differ by `bound` at most; it is held to
            that. "changes": outputs may differ.
        bound: of "close", as `fxprune.verify` takes it.
    """

    name: ClassVar[str]
    promise: ClassVar[str] = "changes"
    bound: ClassVar[float] = BOUND
    needs: ClassVar[tuple[type[Any], ...]] = ()
    gives: ClassVar[tuple[type[Any], ...]] = ()


class Analysis(Pass):
    """A pass that finds out a fact and edits nothing."""

    @abstractmethod
    def run(self, program: Program, facts: Facts) -> Any:
        """Return the fact, of the type that `gives` names."""


class Rewrite(Pass):
    """A pass that edits the Program, through the Rewriter alone.

    Attributes:
        effect: what it does, which a compile checks: "masks", "folds", "unmasks", "adopts",
            "cuts", "constants" (see `fxprune.announced.Effect`), or "anything".
    """

    effect: ClassVar[str] = "anything"

    @abstractmethod
    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Edit the Program."""


class Watch:
    """Sees a Program before and after each pass; what it raises stops the run. This one is blind.

    Attributes:
        checks: whether it holds passes to anything; where not, a step needs no check of its own.
    """

    checks: bool = False

    def begin(self, program: Program) -> None:
        """See the Program before the first pass."""

    def before(self, program: Program, step: Pass) -> None:
        """See the Program before a pass."""

    def after(self, program: Program, step: Pass, facts: Facts) -> None:
        """See the Program after a pass, with the facts that are there."""

    def stage(self, program: Program, rules: Iterable[Any], facts: Facts) -> None:
        """See the Program after all passes of rules that were carried out together."""

    def close(self, name: str, certificate: Certificate) -> None:
        """See what was found of a step whose outputs are close in float64."""


@dataclass(frozen=True)
class Step:
    """What one pass did.

    Args:
        name: the pass's name.
        seconds: wall time.
        edits: how many edits the Rewriter counted.
        refusals: what its rules refused.
    """

    name: str
    seconds: float
    edits: int = 0
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class Trace:
    """What a run of a pipeline did.

    Args:
        steps: one a pass, in order.
    """

    steps: tuple[Step, ...]

    @property
    def seconds(self) -> tuple[tuple[str, float], ...]:
        """(pass name, wall time in seconds) in order."""
        return tuple((step.name, step.seconds) for step in self.steps)

    @property
    def edits(self) -> int:
        """How many edits the passes made together."""
        return sum(step.edits for step in self.steps)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What the rules of all passes refused."""
        return tuple(refusal for step in self.steps for refusal in step.refusals)


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
            PassError: names the pass and the fact that is missing, or what it says that is no
                promise.
        """
        there = set(given)
        for i, step in enumerate(self.passes):
            _check_words(step)
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
        watch: Watch | None = None,
    ) -> Trace:
        """Run the passes on a Program that no caller holds, and check it after each.

        Args:
            program: edited in place.
            facts: facts given from the start; the passes' facts are added.
            on_pass: called with each pass's name before it runs.
            watch: sees the Program before and after each pass.

        Raises:
            PassError: a pass would not find what it needs, or gave another fact than it says.
            InvariantError: a pass left the Program broken, or broke its promise.
        """
        self.check(facts.kinds)
        done: list[Step] = []
        for step in self.passes:
            if on_pass is not None:
                on_pass(step.name)
            if watch is not None:
                watch.before(program, step)
            start = time.perf_counter()
            edits, refusals = 0, tuple[Refusal, ...]()
            if isinstance(step, Rewrite):
                rewriter = _rewritten(program, step, facts)
                edits, refusals = rewriter.edits, tuple(rewriter.refusals)
            elif isinstance(step, Analysis):
                facts.put(_given(step, step.run(program, facts)))
            done.append(Step(step.name, time.perf_counter() - start, edits, refusals))
            if watch is not None:
                watch.after(program, step, facts)
        return Trace(tuple(done))


def _rewritten(program: Program, step: Rewrite, facts: Facts) -> Rewriter:
    """Run a rewrite, and hold the Program to its invariants and the rewrite to its promise."""
    held = PromiseCheck.of(program, step.promise) if step.promise != "changes" else None
    rewriter = Rewriter(program, by=step.name)
    step.run(rewriter, facts)
    if rewriter.edits:
        rewriter.finish()
    check_invariants(program, step.name)
    broken = None if held is None else held.violation(program, bound=step.bound)
    if broken is not None:
        raise InvariantError(f"nothing was changed: the pass {step.name!r} {broken}")
    return rewriter


def _check_words(step: Pass) -> None:
    """Check what a pass says of itself, which it would be held to."""
    if step.promise not in PROMISES:
        known = ", ".join(map(repr, PROMISES))
        raise PassError(f"the pass {step.name!r} promises {step.promise!r}; there are {known}")
    if isinstance(step, Rewrite) and step.effect not in EFFECTS:
        known = ", ".join(map(repr, EFFECTS))
        raise PassError(f"the pass {step.name!r} declares {step.effect!r}; there are {known}")


def _given(step: Analysis, fact: Any) -> Any:
    if type(fact) not in step.gives:
        says = ", ".join(kind.__name__ for kind in step.gives)
        raise PassError(f"the pass {step.name!r} gave {type(fact).__name__}, but says {says}")
    return fact
