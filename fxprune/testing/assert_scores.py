"""Assertions on scores: their contract, and the masks that they lead to."""

from __future__ import annotations

import torch

from fxprune.compiler import Pipeline, Stage, run_stages
from fxprune.program import Program
from fxprune.recipe import Rule, choice_of
from fxprune.rewrite import Analysis, Pass, Scores, ScoreSource, create
from fxprune.testing.assert_pass import GivenFacts, copy_and_run, facts_for
from fxprune.testing.calls import Call
from fxprune.testing.comparing import DifferenceError, difference
from fxprune.testing.drawing import prunable
from fxprune.testing.oracle import Oracle


def assert_scores(
    program: Program,
    step: Pass,
    *,
    given: GivenFacts = (),
    torch_method: str | None = None,
    amount: float = 0.5,
) -> None:
    """Assert that a score keeps the contract of a `ScoreSource`, and prunes as torch does.

    Every parameter that is selected has a source with one score for each living unit; parts of it
    are the same as the whole; and the ranks and masks made of them are as many as was asked for.

    Args:
        program: what to score; not changed.
        step: an Analysis that gives Scores.
        given: facts that it needs, or a function that finds them of a Program.
        torch_method: the method of torch.nn.utils.prune whose masks it leads to.
        amount: the share to prune.

    Raises:
        DifferenceError: names the parameter and what is wrong with its scores or its mask.
    """
    scores = copy_and_run(program, step, given).facts[Scores]
    names = [site.name for site in prunable(program)]
    if not given and list(scores.sources) != names:
        raise DifferenceError(f"scores are of {list(scores.sources)}, and selected are {names}")
    for name, source in scores.sources.items():
        _check_source(name, source)
    if scores.dim is not None or not isinstance(step, Analysis):
        return
    masked = _mask_by_scores(program, step, given, amount)
    for name, source in scores.sources.items():
        wanted = round(amount * source.alive)
        gone = source.alive - int((masked.masks[name] == 1).sum())
        if gone != wanted:
            raise DifferenceError(f"{gone} of {source.alive} go of {name!r}, and not {wanted}")
    if torch_method is not None and not program.masks:
        _check_torch_masks(program, masked, torch_method, list(scores.sources), amount)


def _check_source(name: str, source: ScoreSource) -> None:
    whole = source.chunk(0, source.units)
    if whole.dim() != 1 or len(whole) != source.alive:
        shape = tuple(whole.shape)
        raise DifferenceError(f"{name!r}: scores of shape {shape} for {source.alive} living units")
    if whole.dtype != source.dtype:
        raise DifferenceError(f"{name!r}: scores are {whole.dtype}, and said are {source.dtype}")
    middle = source.units // 2
    parts = torch.cat([source.chunk(0, middle), source.chunk(middle, source.units)])
    if fault := difference(parts, whole):
        raise DifferenceError(f"{name!r}: scores in two parts differ from the whole: {fault}")
    living = source.living(0, source.units)
    if living is not None and int(living.sum()) != source.alive:
        raise DifferenceError(
            f"{name!r}: {int(living.sum())} living units, and said {source.alive}"
        )


def _mask_by_scores(program: Program, step: Analysis, given: GivenFacts, amount: float) -> Program:
    names = tuple(site.name for site in prunable(program))
    rule = Rule(name=step.name, select="*", method="l1_unstructured", amount=amount)
    select = create("select", rule=step.name, selects=(choice_of(rule),), names=names)
    rank = create("rank", amount=amount, scope="local", ties="torch")
    passes = (select, step, rank, create("cut"), create("mask"))
    facts = facts_for(program, step, given)
    there = [facts[kind] for kind in facts.kinds]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return run_stages(program, [Stage((rule,), Pipeline(passes))], there, inplace=False)


def _check_torch_masks(
    program: Program, masked: Program, method: str, names: list[str], amount: float
) -> None:
    tree = torch.nn.Module()
    for name in names:
        tree.register_parameter(name.replace(".", "/"), torch.nn.Parameter(program.value(name)))
    oracle = Oracle(tree)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in names:
            oracle.apply(Call(method, (name.replace(".", "/"),), amount=amount, seed=None))
    theirs = oracle.masks()
    for name in names:
        if fault := difference(masked.masks[name], theirs[name.replace(".", "/")]):
            raise DifferenceError(f"the mask of {name!r} is not that of {method}: {fault}")
