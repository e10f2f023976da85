"""What a rule did, taken from the facts of its passes before these are dropped."""

from __future__ import annotations

from fxprune.facts import ParamRecord, Ranking, RuleRecord, Scores, Selection
from fxprune.pipeline import Facts, Trace
from fxprune.stages import Stage

__all__ = ["record_of"]


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


def _parameter(name: str, facts: Facts) -> ParamRecord:
    if Ranking not in facts.kinds:
        return ParamRecord(name)
    source, ranking = facts[Scores].sources[name], facts[Ranking]
    cut = ranking.cuts[name]
    units, alive = ranking.sizes.get(name, (source.units, source.alive))
    return ParamRecord(name, units, alive, cut.count, cut.threshold, cut.tied, cut.quota)
