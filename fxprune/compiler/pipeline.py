"""Pipelines: passes that declare what they need and give, and those that a recipe's rules run."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from fxprune.channels import Coupling
from fxprune.errors import FxpruneError, InvariantError, PassError
from fxprune.program import Program, sites_of
from fxprune.recipe import LIMITS, PassCall, Recipe, Rule, choice_of, is_foreign
from fxprune.rewrite import Analysis, Facts, Pass, Refusal, Rewrite, Rewriter, Selection, create
from fxprune.verification import EFFECTS, PROMISES, Listener, PromiseCheck, check_invariants


@dataclass(frozen=True)
class StepTrace:
    """What one pass did: wall time in seconds, edits counted, what its rules refused."""

    name: str
    seconds: float
    edits: int = 0
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class Trace:
    """What a run of a pipeline did, a step a pass."""

    steps: tuple[StepTrace, ...]

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
    """Passes in order."""

    passes: tuple[Pass, ...]

    def check(self, given: Iterable[type[Any]] = ()) -> None:
        """Check that each pass makes a known promise and finds its facts; else raise PassError."""
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
        self, program: Program, facts: Facts, listeners: Iterable[Listener] = (), stage: str = ""
    ) -> Trace:
        """Run the passes on a Program that no caller holds, and check it after each.

        Missing facts, facts of another type and, in a stage, errors of other distributions' passes
        raise PassError; a broken Program or promise raises InvariantError.
        """
        self.check(facts.kinds)
        listeners, steps = tuple(listeners), list[StepTrace]()
        for step in self.passes:
            for each in listeners:
                each.before(program, step, stage)
            start = time.perf_counter()
            edits, refusals = 0, tuple[Refusal, ...]()
            with _blaming(step) if stage else nullcontext():
                if isinstance(step, Rewrite):
                    rewriter = _rewrite(program, step, facts)
                    edits, refusals = rewriter.edits, tuple(rewriter.refusals)
                elif isinstance(step, Analysis):
                    fact = step.run(program, facts)
                    if type(fact) not in step.gives:
                        says = ", ".join(kind.__name__ for kind in step.gives)
                        gave = f"gave {type(fact).__name__}, but says {says}"
                        raise PassError(f"the pass {step.name!r} {gave}")
                    facts.put(fact)
            steps.append(StepTrace(step.name, time.perf_counter() - start, edits, refusals))
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
    """Run a rewrite, and check the Program's invariants and the rewrite's promise."""
    promise = PromiseCheck.of(program, step.promise) if step.promise != "changes" else None
    rewriter = Rewriter(program, by=step.name)
    step.run(rewriter, facts)
    if rewriter.edits:
        rewriter.finish()
    check_invariants(program, step.name)
    broken = None if promise is None else promise.violation(program, bound=step.bound)
    if broken is not None:
        raise InvariantError(f"nothing was changed: the pass {step.name!r} {broken}")
    return rewriter


def _check_words(step: Pass) -> None:
    """Check that a pass declares a promise and an effect that are known."""
    if step.promise not in PROMISES:
        known = ", ".join(map(repr, PROMISES))
        raise PassError(f"the pass {step.name!r} promises {step.promise!r}; there are {known}")
    if isinstance(step, Rewrite) and step.effect not in EFFECTS:
        known = ", ".join(map(repr, EFFECTS))
        raise PassError(f"the pass {step.name!r} declares {step.effect!r}; there are {known}")


@dataclass(frozen=True)
class Stage:
    """Rules that share a budget, and the passes that mask by them; or `[[pass]]` calls alone."""

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
    grouped: dict[str | int, list[Rule]] = {}
    for at, rule in enumerate(recipe.rules):
        grouped.setdefault(at if rule.group is None else rule.group, []).append(rule)
    stages = tuple(map(stage_of, grouped.values()))
    if not recipe.passes:
        return stages
    passes = Pipeline(tuple(create(call.name, **call.args) for call in recipe.passes))
    return (*stages, Stage((), passes, recipe.passes))


def stage_of(rules: Sequence[Rule], *, names: tuple[str, ...] = (), rejoin: bool = False) -> Stage:
    """Return the stage of rules of equal method, amount and ties.

    `names` are parameters to take, in this order, in the place of the rules' selections; `rejoin`
    is that of the pass `mask`.
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
