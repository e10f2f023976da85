"""What each rule of a run does, as rows of a plan, and which figures hold for every run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import Any, NamedTuple

import torch

from fxprune.program import ParamRecord, Program, RuleRecord, parameters
from fxprune.recipe import Recipe, Rule
from fxprune.reports import ParameterRow, Plan, PlannedParameter, rows_of
from fxprune.rewrite import Facts
from fxprune.support import generator_states
from fxprune.verification import Listener


class Observer(Listener):
    """Notes what rules do to a Program, as rows of a plan; a later run goes on from there.

    A Program whose parameters are on the meta device, without values, raises PassError.
    """

    def __init__(self) -> None:
        self.rules: list[RuleRecord] = []
        self.rows: dict[str, PlannedParameter] = {}

    def begin(self, program: Program) -> None:
        """Note masks, generators and digests of what the rules find."""
        if self.rows:
            return
        self._masks = dict(parameters.masks(program))
        self._states = generator_states(program.parameters())
        rows: dict[str, PlannedParameter] = {}
        for row in rows_of(program, ()):
            weights = _digest(parameters.parameter(program, row.name), self._masks.get(row.name))
            rows[row.name] = PlannedParameter(
                **vars(row), final_bytes=row.bytes, exact=True, weights=weights
            )
        self.rows = rows
        self._known = dict.fromkeys(self.rows, Reproducible.MASK)

    def stage(self, program: Program, rules: Sequence[Rule], facts: Facts) -> None:
        """Note what a stage did to the Program."""
        masks = dict(parameters.masks(program))
        states = generator_states(program.parameters())
        drawn = not all(map(torch.equal, states, self._states))
        if rules:
            self._rules(program.captured.records[-1], rules[0], masks, drawn=drawn)
        else:
            # Passes that a recipe names may do anything to masks.
            for name, known in self._known.items():
                if drawn or known is not Reproducible.MASK:
                    self._known[name] = Reproducible.NOTHING
        self._masks, self._states = masks, states

    def _rules(
        self, record: RuleRecord, rule: Rule, masks: dict[str, torch.Tensor], *, drawn: bool
    ) -> None:
        before = {row.name: self._known[row.name] for row in record.parameters}
        after = reproducible_after(rule, before, drawn=drawn, masked=frozenset(self._masks))
        rows = [
            _planned_record(row, self._masks.get(row.name), masks[row.name], after[row.name])
            for row in record.parameters
        ]
        if drawn:
            rows = [replace(row, threshold=None) for row in rows]
        exact = total_is_reproducible(rule, before, after)
        self._known |= {name: figures.mask for name, figures in after.items()}
        self.rules.append(replace(record, parameters=tuple(rows), drawn=drawn, exact=exact))

    def plan(self, work: Program, recipe: Recipe) -> Plan:
        """Return as a plan what a recipe did to a Program."""
        # A plan has no times, and not what rules left and why.
        rules = [replace(r, refused=(), seconds={}, edits=0, layers=()) for r in self.rules]
        parameters = tuple(self._outcome(work, row) for row in rows_of(work, rules))
        captured = work.captured
        return Plan(parameters, recipe, captured.kind, tuple(rules), captured.notes)

    def _outcome(self, work: Program, row: ParameterRow) -> PlannedParameter:
        known, mask = self._known[row.name], self._masks.get(row.name)
        raw = parameters.parameter(work, row.name)
        is_drawn = known is not Reproducible.MASK
        return PlannedParameter(
            **vars(row),
            final_bytes=row.bytes,
            exact=not is_drawn or (known is Reproducible.COUNT and bool((raw != 0).all())),
            weights=self.rows[row.name].weights,
            mask=None if mask is None or is_drawn else _digest(mask),
        )


class PlanCheck(Observer):
    """Raises PassError where a run has another model or outcome than was planned."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def begin(self, program: Program) -> None:
        """Check the model."""
        super().begin(program)
        self._plan.check_model(self.rows)

    def end(self, program: Program) -> None:
        """Check what all stages did."""
        self._plan.check_outcome(self.plan(program, self._plan.recipe))


def _planned_record(
    did: ParamRecord, before: torch.Tensor | None, after: torch.Tensor, figures: Figures
) -> ParamRecord:
    zeros = _dead(after) - _dead(before)
    alive = after.numel() if before is None else int((before == 1).sum())
    return ParamRecord(
        did.name,
        after.numel() if did.units is None else did.units,
        alive if did.alive is None else did.alive,
        zeros if did.pruned is None else did.pruned,
        did.threshold,
        zeros=zeros,
        exact=figures.counts,
        zeros_exact=figures.zeros,
    )


def _dead(mask: torch.Tensor | None) -> int:
    return 0 if mask is None else int((mask == 0).sum())


def _digest(*parts: torch.Tensor | None) -> str:
    """Return the SHA-256 of the values of tensors, wherever and however they are stored."""
    found = hashlib.sha256()
    for part in parts:
        if part is None:
            continue
        flat: Any = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found.update(flat)
    return found.hexdigest()


class Reproducible(IntEnum):
    """What of a parameter's mask is the same in every run."""

    MASK = 0  # which entries are alive
    COUNT = 1  # how many entries are alive, but not which
    NOTHING = 2


class Figures(NamedTuple):
    """Which of a parameter's mask, unit counts and count of zeros are the same in every run."""

    mask: Reproducible
    counts: bool
    zeros: bool


_NO_FIGURES = Figures(Reproducible.NOTHING, counts=False, zeros=False)


def reproducible_after(
    rule: Rule, before: Mapping[str, Reproducible], *, drawn: bool, masked: frozenset[str]
) -> dict[str, Figures]:
    """Return what holds for every run after a rule, for each parameter that it selects.

    `before` has what held of each before it, `drawn` is whether it drew from a global generator,
    and `masked` names the parameters that had a mask.
    """
    if (rule.scope == "local" and not rule.coupled) or len(before) == 1:
        return {
            name: _figures_alone(rule, known, drawn=drawn, masked=name in masked)
            for name, known in before.items()
        }
    if drawn or any(before.values()):
        return dict.fromkeys(before, _NO_FIGURES)
    return dict.fromkeys(before, Figures(Reproducible.MASK, counts=True, zeros=True))


def total_is_reproducible(
    rule: Rule, before: Mapping[str, Reproducible], after: Mapping[str, Figures]
) -> bool:
    """Tell whether the number that a rule prunes in all of its parameters is exact."""
    # One budget over entries is as large as what is alive says, wherever it is spent.
    ranked = rule.score_name is not None and rule.granularity_name == "element"
    counted = all(known is not Reproducible.NOTHING for known in before.values())
    return all(figures.counts for figures in after.values()) or (ranked and counted)


def _figures_alone(rule: Rule, known: Reproducible, *, drawn: bool, masked: bool) -> Figures:
    """Tell what holds of a parameter that is pruned on its own."""
    if known is Reproducible.MASK and not drawn:
        return Figures(Reproducible.MASK, counts=True, zeros=True)
    if rule.method == "identity":
        return Figures(known, counts=known is not Reproducible.NOTHING, zeros=True)
    if rule.score_name is None or known is Reproducible.NOTHING:
        return _NO_FIGURES
    if rule.granularity_name == "element":
        return Figures(Reproducible.COUNT, counts=True, zeros=True)
    if known is Reproducible.COUNT:
        return _NO_FIGURES
    # Channels of a parameter with a mask may hold different numbers of living entries.
    left = Reproducible.NOTHING if masked else Reproducible.COUNT
    return Figures(left, counts=True, zeros=not masked)
