"""What a rule did, taken from the facts of its passes before these are dropped."""

from __future__ import annotations

from collections.abc import Iterator

from fxprune import shards, tensors
from fxprune.coupling import Coupling
from fxprune.facts import (
    NewMasks,
    ParamRecord,
    PassRecord,
    Ranking,
    RuleRecord,
    Scores,
    Selection,
)
from fxprune.pipeline import Facts, Trace
from fxprune.program import Program
from fxprune.stages import Stage
from fxprune.unit_scores import CoupledScores
from fxprune.units import living_channels

__all__ = ["pass_records", "record_of"]


def record_of(program: Program, stage: Stage, facts: Facts, trace: Trace) -> RuleRecord:
    """Return the record of a stage that has run.

    Args:
        program: with the masks that the stage made.
        stage: the rules.
        facts: with the facts of all its passes.
        trace: what the pipeline counted.
    """
    rule = stage.rules[0]
    selection = facts[Selection]
    method = rule.method or f"{rule.score_name}/{rule.granularity_name}"
    refused = selection.refused
    if rule.coupled:
        layers = tuple(_layers(facts))
        parameters = tuple(_coupled(name, facts, layers) for name in facts[NewMasks].names)
        masked = {record.name for record in parameters}
        others = tuple((name, why) for name, why in refused if name not in masked)
        refused = (*others, *facts[Coupling].refused)
    else:
        layers = ()
        parameters = tuple(_parameters(program, facts))
    return RuleRecord(
        rule=stage.name,
        method=method,
        amount=rule.amount,
        scope=rule.scope,
        parameters=parameters,
        refused=tuple((name, refusal.reason) for name, refusal in refused),
        seconds=dict(trace.seconds),
        edits=trace.edits,
        layers=layers,
    )


def pass_records(stage: Stage, trace: Trace) -> tuple[PassRecord, ...]:
    """Return the records of passes that a recipe named, after they have run.

    Args:
        stage: the passes.
        trace: what the pipeline counted.
    """
    ran = zip(stage.calls, stage.pipeline.passes, trace.steps, strict=True)
    return tuple(
        PassRecord(
            name=call.name,
            args=call.args,
            promise=made.promise,
            edits=step.edits,
            refused=tuple(map(str, step.refusals)),
            seconds=step.seconds,
        )
        for call, made, step in ran
    )


def _parameters(program: Program, facts: Facts) -> Iterator[ParamRecord]:
    sites = facts[Selection].sites
    if Ranking not in facts.kinds:
        yield from (ParamRecord(site.name) for site in sites)
        return
    scores, ranking = facts[Scores], facts[Ranking]
    replayed = {name for group in ranking.groups if ranking.is_replayed(group) for name in group}
    for site in sites:
        name, source, cut = site.name, scores.sources[site.name], ranking.cuts[site.name]
        units, alive = ranking.sizes.get(name, (source.units, source.alive))
        # Which parameters' ties torch took is told by the masks alone; an empty one tells nothing.
        told = name in replayed and site.numel > 0
        gone = alive - _alive(program, name, scores.dim) if told else cut.count
        quota = cut.quota + gone - cut.count
        level = None if cut.threshold is None else float(cut.threshold)
        yield ParamRecord(name, units, alive, gone, level, cut.tied, quota)


def _alive(program: Program, name: str, dim: int | None) -> int:
    mask = tensors.masks(program)[name]
    return shards.count_of(mask == 1 if dim is None else living_channels(mask, dim))


def _layers(facts: Facts) -> Iterator[ParamRecord]:
    sources, cuts = facts[CoupledScores].sources, facts[Ranking].cuts
    for layer in facts[Coupling].layers:
        alive, cut = sources[layer.name].alive, cuts[layer.name]
        counts = (layer.units, alive, cut.count, cut.threshold, cut.tied, cut.quota)
        yield ParamRecord(layer.name, *counts, makers=layer.makers)


def _coupled(name: str, facts: Facts, layers: tuple[ParamRecord, ...]) -> ParamRecord:
    """Return what happened to the channels that a parameter makes, or else to all that it has."""
    coupling = facts[Coupling]
    made = [layer for layer in layers if name in layer.makers]
    if not made:
        there = coupling.layers_in(name)
        made = [record for at, record in enumerate(layers) if at in there]
    return ParamRecord(
        name,
        sum(layer.units or 0 for layer in made),
        sum(layer.alive or 0 for layer in made),
        sum(layer.pruned or 0 for layer in made),
        max((layer.threshold for layer in made if layer.threshold is not None), default=None),
    )
