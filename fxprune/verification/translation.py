"""Translation validation: checks each pass against its declared effect, and keeps the evidence.

What each check of a compile adds, for a finalize as an example:

- The Rewriter lints the graphs and compiles them: what follows can run.
- `check_invariants` after each pass: masks, aliases and products fit, with an auditor or without.
- `PromiseCheck` compares outputs where a pass promises them; finalize does not, as its effect
  says more.
- `faults_of` here: every tensor, key, name and node is as the effect says, also where no output
  shows it.
- Code that is compiled again is the same: what ran is what was checked.
- `stage` here: masks are right for their scores, which no output shows.
- `verify` in `compile`: outputs are equal, which does not rest on what effects say.
- `end` here: no tensor was written to past torch's count of writes, by which digests are kept.

`finalize` outside of a compile compares outputs itself, as no auditor is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod

from fxprune import tensors
from fxprune.announced import Effect, Fault
from fxprune.bits import same_bits
from fxprune.certificate import Certificate, Evidence
from fxprune.coupling import Coupling
from fxprune.digests import Digests, graphs_digest
from fxprune.errors import InvariantError
from fxprune.facts import Importance, NewMasks, Ranking, Scores, Selection
from fxprune.pipeline import Facts, Pass, Rewrite, Watch
from fxprune.program import Program
from fxprune.recipe import Rule
from fxprune.recounting import Masked, recount
from fxprune.recounting_units import recount_units
from fxprune.shrink_record import ShrinkRecord
from fxprune.snapshot import Snapshot, snapshot
from fxprune.transaction import fork
from fxprune.unit_scores import CoupledScores
from fxprune.validating import faults_of

__all__ = ["Auditor"]


class Auditor(Watch):
    """Checks each pass of a compile against its declared effect and records the evidence.

    Args:
        model: what was captured; None where its masks are irrelevant.
        program: captured of it.

    Attributes:
        checks: whether it checks passes.
        evidence: of each rewrite pass, in order.

    Raises:
        InvariantError: a mask of torch.nn.utils.prune's that the model had is missing, or another
            one.
    """

    checks = True

    def __init__(self, model: Any = None, program: Program | None = None) -> None:
        self.evidence: list[Evidence] = []
        self._digests = Digests()
        self._before: Snapshot | None = None
        self._hashes = ("", "")
        self._masks: dict[str, torch.Tensor] = {}
        self._shrinks = 0
        if program is not None and isinstance(model, nn.Module) and not isinstance(model, Program):
            _refuse("capture", list(_lost_masks(model, program)))

    # What a pipeline tells

    def begin(self, program: Program) -> None:
        """Remember the masks that are there before rules."""
        self._masks = dict(tensors.masks(program))

    def before(self, program: Program, step: Pass) -> None:
        """Remember the Program that a pass is about to change."""
        if isinstance(step, Rewrite):
            self._before = snapshot(program)
            self._shrinks = len(program.captured.shrinks)
            self._hashes = graphs_digest(program), self._digests.state(program)

    def after(self, program: Program, step: Pass, facts: Facts) -> None:
        """Check the Program against what a pass declared.

        Raises:
            InvariantError: names the pass and the first node or parameter that differs.
        """
        if self._before is None or not isinstance(step, Rewrite):
            return
        before, self._before = self._before, None
        effect = _declared(step, facts, program, program.captured.shrinks[self._shrinks :])
        faults = [*faults_of(before, snapshot(program), effect), *_stale(program)]
        if effect.kind == "anything":
            faults += [Fault(_PAST.format(key)) for key in self._digests.rewritten(program)]
        _refuse(step.name, faults)
        graph, weights = graphs_digest(program), self._digests.state(program)
        checks = [_CHECKED[effect.kind], "compiled code is that of the graphs"]
        self._add(step.name, _promise(step, effect), (graph, weights), checks)

    def stage(self, program: Program, rules: Iterable[Rule], facts: Facts) -> None:
        """Check the masks that rules made against their scores.

        Raises:
            InvariantError: names the rule and the parameter whose mask is not as ranked.
        """
        rules = list(rules)
        if not rules:
            return
        rule = rules[0]
        name = f"rule {rule.name!r}"
        if rule.coupled:
            _refuse(name, list(self._units_faults(program, rule, facts)))
            self._note("masks of coupled channels, found again from the scores and limits")
        elif {Scores, Ranking, Selection} <= facts.kinds and rule.score_name is not None:
            masked = {part.name: part for part in self._masked(program, facts)}
            found = recount(rule, facts[Selection], facts[Scores], facts[Ranking], masked)
            _refuse(name, list(found))
            self._note("count, threshold and ties of the masks, found again from the scores")
        else:
            _refuse(name, list(_not_given(program, facts)))
            self._note("masks are those that were given")
        self._note(rule="+".join(str(each.name) for each in rules), seed=rule.seed)
        self.begin(program)

    # What a compile tells

    def close(self, name: str, certificate: Certificate) -> None:
        """Record what runs in float64 found of a step that rounds."""
        if certificate.trials:
            runs = f"float64 outputs of {name} differ by {certificate.largest:g} at most"
            self._note(f"{runs} on {certificate.trials} inputs")
        else:
            self._note(f"{name} was not run: no drawn input runs on either side")

    def end(self, program: Program) -> None:
        """Hash the tensors once more: writes past torch's own count of them are found here.

        Raises:
            InvariantError: a tensor was written to behind torch's back.
        """
        if self.evidence and Digests().state(program) != self.evidence[-1].weights_after:
            raise InvariantError("a pass wrote to tensors past torch's count of writes")

    # Helpers

    def _add(self, name: str, promise: str, hashes: tuple[str, str], checks: Iterable[str]) -> None:
        (graph, weights), (new_graph, new_weights) = self._hashes, hashes
        found = Evidence(name, promise, graph, new_graph, weights, new_weights, tuple(checks))
        self.evidence.append(found)

    def _note(self, *checks: str, **found: Any) -> None:
        """Add to the evidence of the last pass."""
        if self.evidence:
            last = self.evidence[-1]
            self.evidence[-1] = replace(last, checks=(*last.checks, *checks), **found)

    def _units_faults(self, program: Program, rule: Rule, facts: Facts) -> Iterable[Fault]:
        coupling, masks, masked = facts[Coupling], tensors.masks(program), dict[str, Masked]()
        for name in coupling.by_parameter:
            stored, old = tensors.parameter(program, name).detach(), self._masks.get(name)
            value = stored if old is None else stored * old
            new = masks.get(name, torch.ones_like(stored))
            masked[name] = Masked(name, stored, value, old, new)
        plain = Importance not in facts.kinds or not facts[Importance].tensors
        given = coupling, facts[CoupledScores], facts[Ranking], masked
        return recount_units(rule, *given, plain=plain)

    def _masked(self, program: Program, facts: Facts) -> Iterable[Masked]:
        importance = facts[Importance] if Importance in facts.kinds else Importance()
        masks = tensors.masks(program)
        for site in facts[Selection].sites:
            given = [importance.tensors[n] for n in site.aliases if n in importance.tensors]
            stored, old = tensors.parameter(program, site.name).detach(), self._masks.get(site.name)
            tensor = given[0].detach() if given else stored
            value = tensor if given or old is None else stored * old
            yield Masked(site.name, tensor, value, old, masks[site.name])


_PAST = "the tensor {!r} was written to, past torch's count of writes"

_CHECKED = {
    "masks": "one product a masked parameter; no other node, tensor or key changed",
    "folds": "weights are tensor times mask, bit for bit; no other node, tensor or key changed",
    "unmasks": "weights are the stored tensors; no other node, tensor or key changed",
    "adopts": "products of masks alone went; every tensor is the same",
    "cuts": "tensors are those before, less the channels that go; operators differ by counts alone",
    "constants": "constants stand for branches; every tensor that is left is the same",
    "anything": "parameters are read as their masks ask",
}


def _declared(
    step: Rewrite, facts: Facts, program: Program, shrinks: tuple[ShrinkRecord, ...]
) -> Effect:
    """Return the effect that a pass declares, with what its options, facts and record tell."""
    if step.effect in ("cuts", "constants"):
        r = shrinks[-1] if shrinks else ShrinkRecord()
        return Effect(
            step.effect, cuts=r.maps, added=r.added, absorbed=r.absorbed, removed=r.removed
        )
    names: tuple[str, ...] = getattr(step, "names", ())
    if step.effect == "masks":
        # Without such facts it is a pass of its own, and may mask what it likes.
        names = _to_be_masked(facts) if _MASKING & facts.kinds else tuple(tensors.masks(program))
    zeros, ordered = getattr(step, "zeros", "keep"), getattr(step, "source_order", True)
    return Effect(step.effect, names, zeros, ordered)


_MASKING = {Selection, NewMasks}


def _to_be_masked(facts: Facts) -> tuple[str, ...]:
    if Coupling in facts.kinds:
        there = facts[Coupling].by_parameter
        return tuple(name for name in facts[NewMasks].names if name in there)
    if Selection in facts.kinds:
        return tuple(site.name for site in facts[Selection].sites)
    return facts[NewMasks].names


def _promise(step: Rewrite, effect: Effect) -> str:
    if effect.shrinks:
        return "close"
    if effect.kind in ("adopts", "folds") and effect.zeros == "keep":
        return "same"
    return effect.kind if step.promise == "changes" and effect.kind != "anything" else step.promise


def _refuse(name: str, faults: list[Fault]) -> None:
    if not faults:
        return
    shown = "; ".join(map(str, faults[:3]))
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    raise InvariantError(f"{name} broke its promise, nothing was changed: {shown}{more}")


def _stale(program: Program) -> Iterable[Fault]:
    """Yield the graphs whose compiled code is not what compiling them again gives."""
    again = fork(program)
    again.recompile()  # a copy takes the code as it is
    for mode in program.graphs:
        codes = [_code(getattr(type(p), f"_forward_{mode}")) for p in (program, again)]
        if codes[0] != codes[1]:
            yield Fault(f"the compiled code is not that of the {mode} graph")


def _code(function: Any) -> tuple[Any, ...]:
    # What guards a region of autocast holds the function itself in its closure.
    for cell in function.__closure__ or ():
        if callable(cell.cell_contents) and hasattr(cell.cell_contents, "__code__"):
            function = cell.cell_contents
    code = function.__code__
    return code.co_code, code.co_names, code.co_varnames, repr(code.co_consts)


def _not_given(program: Program, facts: Facts) -> Iterable[Fault]:
    """Yield the parameters whose masks are not those that the pass before gave."""
    masks = tensors.masks(program)
    for name, mask in facts[NewMasks].make():
        if name not in masks:
            yield Fault(f"{name!r} was given a mask, and has none")
        # A later run of the maker finds the new mask there, and multiplies it in again.
        elif not same_bits(mask.to(masks[name].dtype) * masks[name], masks[name] * masks[name]):
            yield Fault(f"the mask of {name!r} is not the one that was given")


def _lost_masks(model: nn.Module, program: Program) -> Iterable[Fault]:
    masks: Mapping[str, torch.Tensor] = tensors.masks(program)
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if not isinstance(hook, BasePruningMethod):
                continue
            attribute = str(hook._tensor_name)
            name = f"{path}.{attribute}" if path else attribute
            mask = module._buffers.get(f"{attribute}_mask")
            if name not in masks or mask is None:
                yield Fault(f"the mask of {name!r} was lost")
            elif not torch.equal(mask.to(masks[name].dtype).to(masks[name].device), masks[name]):
                yield Fault(f"the mask of {name!r} is not the model's")
