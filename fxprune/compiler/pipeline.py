"""Pipelines: passes that declare what they need and give, checked before any of them runs.

From a recipe's rules to pipelines: which passes run, with which options.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fxprune.channels import Coupling
from fxprune.errors import FxpruneError, InvariantError, PassError
from fxprune.program import Program, sites_of
from fxprune.recipe import LIMITS, PassCall, Recipe, Rule, choice_of, is_foreign
from fxprune.rewrite import Analysis, Facts, Pass, Refusal, Rewrite, Rewriter, Selection, create
from fxprune.verification import EFFECTS, PROMISES, Listener, PromiseCheck, check_invariants


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
        listeners: Iterable[Listener] = (),
        stage: str = "",
    ) -> Trace:
        """Run the passes on a Program that no caller holds, and check it after each.

        Args:
            program: edited in place.
            facts: facts given from the start; the passes' facts are added.
            listeners: see the Program before and after each pass.
            stage: what listeners are told that the passes are run for.

        Raises:
            PassError: a pass would not find what it needs, gave another fact than it says, or is
                another distribution's and raised something else than an FxpruneError.
            InvariantError: a pass left the Program broken, or broke its promise.
        """
        self.check(facts.kinds)
        listeners, steps = tuple(listeners), list[Step]()
        for step in self.passes:
            for each in listeners:
                each.before(program, step, stage)
            start = time.perf_counter()
            edits, refusals = 0, tuple[Refusal, ...]()
            with _blaming(step):
                if isinstance(step, Rewrite):
                    rewriter = _rewrite(program, step, facts)
                    edits, refusals = rewriter.edits, tuple(rewriter.refusals)
                elif isinstance(step, Analysis):
                    facts.put(_fact_of(step, step.run(program, facts)))
            steps.append(Step(step.name, time.perf_counter() - start, edits, refusals))
            for each in listeners:
                each.after(program, step, facts)
        return Trace(tuple(steps))


@contextmanager
def _blaming(step: Pass) -> Generator[None]:
    """Name the pass in errors that another distribution's pass raises."""
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:
        module = type(step).__module__
        if module.partition(".")[0] == "fxprune":
            raise
        raise PassError(
            f"the pass {step.name!r} of {module} raised {type(error).__name__}: {error}; nothing "
            "was changed"
        ) from error


def _rewrite(program: Program, step: Rewrite, facts: Facts) -> Rewriter:
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


def _fact_of(step: Analysis, fact: Any) -> Any:
    if type(fact) not in step.gives:
        says = ", ".join(kind.__name__ for kind in step.gives)
        raise PassError(f"the pass {step.name!r} gave {type(fact).__name__}, but says {says}")
    return fact


@dataclass(frozen=True)
class Stage:
    """One rule, or the rules of one group, and the pipeline that carries them out.

    Args:
        rules: the rules; more than one where they share a budget.
        pipeline: selection to masks; or the passes that a recipe names.
        calls: these passes, in the words of the recipe; then there are no rules.
    """

    rules: tuple[Rule, ...]
    pipeline: Pipeline
    calls: tuple[PassCall, ...] = ()

    @property
    def name(self) -> str:
        """The rules' names, joined."""
        if self.calls:
            return "passes"
        return "+".join(str(rule.name) for rule in self.rules)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stages of a recipe: rules in order, a group at the place of its first rule.

    The passes that it names are the last stage, and share their facts.
    """
    stages: list[Stage] = []
    grouped: set[str] = set()
    for rule in recipe.rules:
        if rule.group is None:
            stages.append(stage_of((rule,)))
        elif rule.group not in grouped:
            grouped.add(rule.group)
            stages.append(stage_of([r for r in recipe.rules if r.group == rule.group]))
    calls = recipe.passes
    passes = Pipeline(tuple(create(call.name, **call.args) for call in calls))
    return (*stages, Stage((), passes, calls)) if calls else tuple(stages)


def stage_of(rules: Sequence[Rule], *, names: tuple[str, ...] = (), rejoin: bool = False) -> Stage:
    """Return the stage of rules that are carried out together.

    Args:
        rules: of equal method, amount and ties.
        names: parameters to take, in this order, in the place of the rules' selections.
        rejoin: see `fxprune.passes.mask`.
    """
    rule = rules[0]
    select = create(
        "select",
        rule="+".join(str(r.name) for r in rules),
        selects=tuple(choice_of(r) for r in rules),
        names=names,
        optional=all(r.optional for r in rules),
    )
    passes = (select, *_mask_passes(rule), create("mask", rejoin=rejoin))
    return Stage(tuple(rules), Pipeline(passes))


def _mask_passes(rule: Rule) -> tuple[Any, ...]:
    if rule.coupled:
        return _coupled_passes(rule)
    if rule.method in ("identity", "custom_from_mask"):
        return (create("given", file=rule.mask, ones=rule.method == "identity"),)
    if rule.score_name is None:
        options = {"rule": rule.name, "method": rule.method, "args": dict(rule.args or {})}
        return (create("method", **options, amount=rule.amount, scope=rule.scope),)
    rank = create("rank", amount=rule.amount, scope=rule.scope, ties=rule.ties)
    score = create(rule.score_name, **_score_options(rule))
    if is_foreign(rule.score_name):
        return score, create("check", score=rule.score_name, dim=rule.dim), rank, create("cut")
    return score, rank, create("cut")


def _coupled_passes(rule: Rule) -> tuple[Any, ...]:
    couple = create("couple", rule=rule.name, optional=rule.optional)
    limits = {limit: getattr(rule, limit) for limit in LIMITS}
    rank = create("rank_units", amount=rule.amount, scope=rule.scope, **limits)
    end = (rank, create("cut_coupled"))
    if rule.score_name == "norm":
        return (couple, create("unit_norm", n=rule.n, normalize=rule.normalize), *end)
    if rule.score_name == "random":
        return (couple, create("unit_random", seed=rule.seed), *end)
    score = create(str(rule.score_name), **_score_options(rule))
    check = create("check", score=rule.score_name, dim=rule.dim)
    return (couple, score, check, create("unit_mean"), *end)


def _score_options(rule: Rule) -> Mapping[str, Any]:
    dim = {"dim": rule.dim} if rule.granularity_name == "channel" else {}
    if rule.score_name == "norm":
        return {"n": rule.n, **dim}
    if rule.score_name == "random":
        return {"amount": rule.amount, "scope": rule.scope, "seed": rule.seed, **dim}
    return {**rule.args, **dim}


def find_coupling(program: Program) -> Coupling:
    """Return the coupled channels of all parameters of a Program, which is not changed."""
    facts = Facts([Selection(sites_of(program))])
    Pipeline((create("couple", optional=True),)).run(program, facts)
    return facts[Coupling]
