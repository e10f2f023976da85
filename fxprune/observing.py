"""Watching a run of rules: what each one does, figure by figure, as the rows of a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fxprune import tensors
from fxprune.certainty import Certainty, Known, known_after, total_is_exact
from fxprune.errors import PassError
from fxprune.facts import ParamRecord, RuleRecord
from fxprune.plan_rows import PlannedCut, PlannedParameter, PlannedRule
from fxprune.plans import Plan
from fxprune.program import Program
from fxprune.randomness import generator_states
from fxprune.recipe import Recipe, Rule
from fxprune.stages import Stage
from fxprune.wording import dtype_name

__all__ = ["Holder", "Observer"]


class Observer:
    """What a run of rules does to a Program; call it with each stage that has run.

    Args:
        program: as it is before the run.

    Raises:
        PassError: parameters are on the meta device, where they have no values.
    """

    def __init__(self, program: Program) -> None:
        self.rows = {name: _row(program, name) for name in tensors.aliases(program)}
        self.rules: list[PlannedRule] = []
        self._known = dict.fromkeys(self.rows, Known.ALL)
        self._masks = dict(tensors.masks(program))
        self._states = generator_states(program)

    def stage(self, work: Program, stage: Stage) -> None:
        """Take down what a stage did to the Program."""
        masks, states = dict(tensors.masks(work)), generator_states(work)
        drawn = not all(map(torch.equal, states, self._states))
        if stage.calls:
            self._passes(drawn=drawn)
        else:
            self._rules(work.captured.records[-1], stage.rules[0], masks, drawn=drawn)
        self._masks, self._states = masks, states

    def _rules(
        self, record: RuleRecord, rule: Rule, masks: Mapping[str, torch.Tensor], *, drawn: bool
    ) -> None:
        before = {row.name: self._known[row.name] for row in record.parameters}
        after = known_after(rule, before, drawn=drawn, masked=frozenset(self._masks))
        cuts = tuple(
            _cut(row, self._masks.get(row.name), masks[row.name], after[row.name])
            for row in record.parameters
        )
        exact = total_is_exact(rule, before, after)
        self._known |= {name: certainty.known for name, certainty in after.items()}
        self.rules.append(_rule(record, cuts, drawn=drawn, exact=exact))

    def _passes(self, *, drawn: bool) -> None:
        """Passes that a recipe names may do anything to masks."""
        for name, known in self._known.items():
            self._known[name] = Known.NOTHING if drawn else _SETTLED[known]

    def end(self, work: Program) -> None:
        """Look at what all stages did."""

    def plan(self, work: Program, recipe: Recipe) -> Plan:
        """Return the whole as a plan.

        Args:
            work: the Program after all stages.
            recipe: what was run.
        """
        parameters = tuple(self._outcome(work, row) for row in self.rows.values())
        kind, notes = work.captured.kind, work.captured.notes
        return Plan(recipe, kind, tuple(self.rules), parameters, notes)

    def _outcome(self, work: Program, row: PlannedParameter) -> PlannedParameter:
        name, known = row.name, self._known[row.name]
        mask, raw = self._masks.get(name), tensors.parameter(work, name)
        exact = known is Known.ALL or (known is Known.COUNT and not bool((raw == 0).any()))
        return PlannedParameter(
            **{key: getattr(row, key) for key in _ORIGIN},
            zeros=int((tensors.value(work, name) == 0).sum()),
            mask_bytes=0 if mask is None else _bytes(mask),
            rules=tuple(r.name for r in self.rules if any(c.name == name for c in r.parameters)),
            exact=exact,
            mask=None if mask is None or known is not Known.ALL else _digest(mask),
        )


class Holder(Observer):
    """An observer that holds a run to a plan.

    Args:
        plan: what was planned.
        program: as it is before the run.

    Raises:
        PassError: the plan was made for another model.
    """

    def __init__(self, plan: Plan, program: Program) -> None:
        super().__init__(program)
        plan.check_model(self.rows)
        self._plan = plan

    def end(self, work: Program) -> None:
        """Hold what all stages did to the plan.

        Raises:
            PassError: they did something else.
        """
        self._plan.check_outcome(self.plan(work, self._plan.recipe))


_SETTLED = {Known.ALL: Known.ALL, Known.COUNT: Known.NOTHING, Known.NOTHING: Known.NOTHING}
_ORIGIN = ("name", "aliases", "shape", "dtype", "numel", "bytes", "final_bytes", "weights")


def _row(program: Program, name: str) -> PlannedParameter:
    parameter, mask = tensors.parameter(program, name), tensors.masks(program).get(name)
    if parameter.is_meta:
        raise PassError(f"{name!r} is on the meta device, which holds no values to plan with")
    return PlannedParameter(
        name=name,
        aliases=tensors.aliases(program)[name],
        shape=tuple(parameter.shape),
        dtype=dtype_name(parameter.dtype),
        numel=parameter.numel(),
        zeros=0,
        bytes=_bytes(parameter),
        mask_bytes=0,
        final_bytes=_bytes(parameter),
        rules=(),
        exact=True,
        weights=_digest(parameter) if mask is None else _digest(parameter, mask),
    )


def _rule(
    record: RuleRecord, cuts: tuple[PlannedCut, ...], *, drawn: bool, exact: bool
) -> PlannedRule:
    return PlannedRule(
        name=record.rule,
        method=record.method,
        amount=record.amount,
        scope=record.scope,
        parameters=tuple(replace(cut, threshold=None) for cut in cuts) if drawn else cuts,
        drawn=drawn,
        exact=exact,
    )


def _cut(
    did: ParamRecord, before: torch.Tensor | None, after: torch.Tensor, certainty: Certainty
) -> PlannedCut:
    zeros = _dead(after) - _dead(before)
    alive = after.numel() if before is None else int((before == 1).sum())
    return PlannedCut(
        name=did.name,
        units=after.numel() if did.units is None else did.units,
        alive=alive if did.alive is None else did.alive,
        pruned=zeros if did.pruned is None else did.pruned,
        zeros=zeros,
        threshold=did.threshold,
        exact=certainty.counts,
        zeros_exact=certainty.zeros,
    )


def _dead(mask: torch.Tensor | None) -> int:
    return 0 if mask is None else int((mask == 0).sum())


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.nbytes


def _digest(*parts: torch.Tensor) -> str:
    """Return the SHA-256 of the values of tensors, wherever and however they are stored."""
    found = hashlib.sha256()
    for part in parts:
        flat: Any = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found.update(flat)
    return found.hexdigest()
