"""What a rule did, taken from the facts of its passes before these are dropped."""

from __future__ import annotations

from fxprune.facts import ParamRecord, PassRecord, Ranking, RuleRecord, Scores, Selection
from fxprune.pipeline import Facts, Trace
from fxprune.stages import Stage

__all__ = ["pass_records", "record_of"]


def record_of(stage: Stage, facts: Facts, trace: Trace) -> RuleRecord:
    """Return the record of a stage that has run.

    Args:
        stage: the rules.
        facts: with the facts of all its passes.
        trace: what the pipeline counted.
    """
    rule = stage.rules[0]
    selection = facts[Selection]
    method = rule.method or f"{rule.score_name}/{rule.granularity_name}"
    return RuleRecord(
        rule=stage.name,
        method=method,
        amount=rule.amount,
        scope=rule.scope,
        parameters=tuple(_parameter(site.name, facts) for site in selection.sites),
        refused=tuple((name, refusal.reason) for name, refusal in selection.refused),
        seconds=dict(trace.seconds),
        edits=trace.edits,
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


def _parameter(name: str, facts: Facts) -> ParamRecord:
    if Ranking not in facts.kinds:
        return ParamRecord(name)
    source, ranking = facts[Scores].sources[name], facts[Ranking]
    cut = ranking.cuts[name]
    units, alive = ranking.sizes.get(name, (source.units, source.alive))
    return ParamRecord(name, units, alive, cut.count, cut.threshold, cut.tied, cut.quota)
