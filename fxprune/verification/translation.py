"""Translation validation: compares what each pass did with the effect that it declares.

What each check of a compile adds, for a finalize as an example:

- The Rewriter lints the graphs and compiles them: what follows can run.
- `check_invariants` after each pass: masks, aliases and products fit, with an auditor or without.
- `PromiseCheck` compares outputs where a pass promises them; finalize's effect says more.
- `faults_of`: tensors, keys, names and nodes are as the effect says, though no output shows it.
- `_stale`: code that is compiled again is the same, so that what ran is what was checked.
- `Auditor.stage`: masks are right for their scores, which no output shows.
- `verify` in `compile`: outputs are equal, which does not rest on what effects say.
- `Auditor.check_writes`: no tensor was written to past torch's count, by which digests are kept.

This shares no code with passes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.utils import _pytree as pytree

from fxprune.channels import COUNTS, CoupledScores, Coupling
from fxprune.errors import InvariantError
from fxprune.program import Program, ShrinkRecord, canonical_name, fork, parameters
from fxprune.recipe import Rule
from fxprune.rewrite import Facts, Importance, NewMasks, Pass, Ranking, Rewrite, Scores, Selection
from fxprune.support import same_bits
from fxprune.verification.certificate import Certificate, Digests, Evidence, graphs_digest
from fxprune.verification.edits import Expected, is_constant
from fxprune.verification.listener import Listener
from fxprune.verification.recount import Masked, recount, recount_units
from fxprune.verification.snapshot import (
    Effect,
    Fault,
    Line,
    NodeRef,
    ParameterRef,
    Snapshot,
    View,
    snapshot,
)


class Auditor(Listener):
    """Checks each pass of a compile against its declared effect and records the evidence.

    A check that fails raises InvariantError, here where a mask of torch.nn.utils.prune's that the
    captured model had is missing or another one.
    """

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
        self._masks = dict(parameters.masks(program))

    def before(self, program: Program, step: Pass, stage: str) -> None:
        """Remember the Program that a pass is about to change."""
        if isinstance(step, Rewrite):
            self._before = snapshot(program)
            self._shrinks = len(program.captured.shrinks)
            self._hashes = graphs_digest(program), self._digests.state(program)

    def after(self, program: Program, step: Pass, facts: Facts) -> None:
        """Check the Program against the effect; name the first node or parameter that differs."""
        if self._before is None or not isinstance(step, Rewrite):
            return
        before, self._before = self._before, None
        effect = _effect_of(step, facts, program, program.captured.shrinks[self._shrinks :])
        faults = [*faults_of(before, snapshot(program), effect), *_stale(program)]
        if effect.kind == "anything":
            faults += [Fault(_PAST.format(key)) for key in self._digests.hidden_writes(program)]
        _refuse(step.name, faults)
        (graph, weights), promise = self._hashes, _promise(step, effect)
        after = graphs_digest(program), self._digests.state(program)
        checks = (_CHECKED[effect.kind], "compiled code is that of the graphs")
        hashes = (graph, after[0], weights, after[1])
        self.evidence.append(Evidence(step.name, promise, *hashes, checks))

    def stage(self, program: Program, rules: Sequence[Rule], facts: Facts) -> None:
        """Check the masks that rules made against their scores."""
        if not rules:
            return
        rule = rules[0]
        if rule.coupled:
            coupling = facts[Coupling]
            masked = self._before_and_after(program, facts, coupling.by_parameter)
            plain = Importance not in facts.kinds or not facts[Importance].tensors
            scores = facts[CoupledScores], facts[Ranking]
            faults = recount_units(rule, coupling, *scores, masked, plain=plain)
            check = "masks of coupled channels, found again from the scores and limits"
        elif {Scores, Ranking, Selection} <= facts.kinds and rule.score_name is not None:
            names = [site.name for site in facts[Selection].sites]
            masked = self._before_and_after(program, facts, names)
            faults = recount(rule, names, facts[Scores], facts[Ranking], masked)
            check = "count, threshold and ties of the masks, found again from the scores"
        else:
            faults, check = _given_mask_faults(program, facts), "masks are those that were given"
        _refuse(f"rule {rule.name!r}", list(faults))
        self._note(check, rule="+".join(str(each.name) for each in rules), seed=rule.seed)
        self.begin(program)

    # What a compile tells

    def record_runs(self, name: str, certificate: Certificate) -> None:
        """Record what runs in float64 found of a step that rounds."""
        if certificate.trials:
            runs = f"float64 outputs of {name} differ by {certificate.largest:g} at most"
            self._note(f"{runs} on {certificate.trials} inputs")
        else:
            self._note(f"{name} was not run: no drawn input runs on either side")

    def check_writes(self, program: Program) -> None:
        """Hash the tensors once more, to find writes past torch's own count of them."""
        if self.evidence and Digests().state(program) != self.evidence[-1].weights_after:
            raise InvariantError("a pass wrote to tensors past torch's count of writes")

    # Helpers

    def _note(self, *checks: str, **found: Any) -> None:
        """Add to the evidence of the last pass."""
        if self.evidence:
            last = self.evidence[-1]
            self.evidence[-1] = replace(last, checks=(*last.checks, *checks), **found)

    def _before_and_after(
        self, program: Program, facts: Facts, names: Iterable[str]
    ) -> dict[str, Masked]:
        """Return parameters before and after rules, with what was scored in their place."""
        scored = facts[Importance].tensors if Importance in facts.kinds else {}
        masks, aliases = parameters.masks(program), parameters.aliases(program)
        found: dict[str, Masked] = {}
        for name in names:
            stored, old = parameters.parameter(program, name).detach(), self._masks.get(name)
            given = next((scored[alias] for alias in aliases[name] if alias in scored), None)
            tensor = stored if given is None else given.detach()
            value = tensor if given is not None or old is None else stored * old
            new = masks.get(name, torch.ones_like(stored))
            found[name] = Masked(name, tensor, value, old, new)
        return found


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


def _effect_of(
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
        # Without facts of rules a pass may mask what it likes.
        ruled = {Selection, NewMasks} & facts.kinds
        names = _names_to_mask(facts) if ruled else tuple(parameters.masks(program))
    zeros, ordered = getattr(step, "zeros", "keep"), getattr(step, "source_order", True)
    return Effect(step.effect, names, zeros, ordered)


def _names_to_mask(facts: Facts) -> tuple[str, ...]:
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


def _given_mask_faults(program: Program, facts: Facts) -> Iterable[Fault]:
    """Yield the parameters whose masks are not those that the pass before gave."""
    masks = parameters.masks(program)
    for name, mask in facts[NewMasks].make():
        if name not in masks:
            yield Fault(f"{name!r} was given a mask, and has none")
        # A later run of the maker finds the new mask there, and multiplies it in again.
        elif not same_bits(mask.to(masks[name].dtype) * masks[name], masks[name] * masks[name]):
            yield Fault(f"the mask of {name!r} is not the one that was given")


def _lost_masks(model: nn.Module, program: Program) -> Iterable[Fault]:
    masks: Mapping[str, torch.Tensor] = parameters.masks(program)
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


_aten = torch.ops.aten
# A cut puts the second kind of operator in the place of the first.
_REPLACED = ("chunk", "split", "split_with_sizes", "tensor_split", "slice", "squeeze")
_REPLACING = (
    operator.floordiv,
    operator.mul,
    _aten.split_with_sizes.default,
    _aten.index_select.default,
    _aten.squeeze.dims,
)


def faults_of(before: Snapshot, after: Snapshot, effect: Effect) -> Iterator[Fault]:
    """Yield what a pass did that its effect does not declare, graphs first, in their order."""
    for mode, view in after.views.items():
        if view.fault is not None:
            yield Fault(f"{view.fault.text} in the {mode} graph", view.fault.node)
    if effect.kind == "anything":
        yield from _write_faults(before)
        return
    if before.views.keys() != after.views.keys():
        yield Fault(f"the graphs are {sorted(after.views)}, and were {sorted(before.views)}")
        return
    for mode, view in after.views.items():
        yield from _Lines(mode, before.views[mode], view, effect).differences()
        if effect.kind != "adopts":  # whose products were there
            yield from _product_faults(mode, before.views[mode], view)
    yield from _write_faults(before)
    yield from Expected(before, after, effect).differences()


def _product_faults(mode: str, was: View, now: View) -> Iterator[Fault]:
    """Yield new products of regions without gradients: what reads them elsewhere would lose its."""
    for name, (product, *_) in now.products.items():
        old = was.products.get(name, [product])[0].node
        if product.node != old:
            text = f"is another product of {name!r} than before, in the {mode} graph"
            yield Fault(text, product.node)
        elif name not in was.products and not product.has_gradient:
            text = f"multiplies {name!r} in a region without gradients, {mode} graph"
            yield Fault(text, product.node)


def _write_faults(before: Snapshot) -> Iterator[Fault]:
    """Yield tensors that were written to since: callers hold them too."""
    for path, place in before.tree.items():
        for key, tensor in (*place.parameters.items(), *place.buffers.items()):
            if not tensor.is_inference() and tensor._version != before.versions[id(tensor)]:
                yield Fault(f"the tensor {(f'{path}.{key}' if path else key)!r} was written to")


class _Lines:
    """The lines of one graph before and after a pass, reads of parameters looked through."""

    def __init__(self, mode: str, was: View, now: View, effect: Effect) -> None:
        self.mode, self.effect = mode, effect
        self.was = {line.name: line for line in was.lines}
        self.now = {line.name: line for line in now.lines}
        reads = [line for line in now.lines if effect.shrinks and line.op == "get_attr"]
        self.constants = {line.name for line in reads if is_constant(str(line.target))}

    def differences(self) -> Iterator[Fault]:
        """Yield the nodes that went, came or changed in a way the effect does not allow."""
        where = f"in the {self.mode} graph"
        for name, line in self.was.items():
            if name not in self.now and not self._may_go(line):
                yield Fault(f"went {where}", name)
        for name, line in self.now.items():
            if name not in self.was and not self._may_come(line):
                yield Fault(f"came {where}", name)
        kept = [line for name, line in self.was.items() if name in self.now]
        left = [line for name, line in self.now.items() if name in self.was]
        for old, new in zip(kept, left, strict=True):
            if old.name != new.name:
                yield Fault(f"stands where {old.name} stood {where}", new.name)
                return
            if (old.op, old.target) != (new.op, new.target):
                text = f"is {new.op} {new.target}, and was {old.op} {old.target}, {where}"
                yield Fault(text, new.name)
            elif not self._alike((old.args, old.kwargs), (new.args, new.kwargs)):
                yield Fault(
                    f"takes {_call_text(new)}, and took {_call_text(old)}, {where}", new.name
                )

    def _may_go(self, line: Line) -> bool:
        if self.effect.kind == "adopts":  # a product of a mask, its cast and its reads
            return line.op == "get_attr" or _aten_name(line) in ("mul", "to", "_to_copy")
        if self.effect.kind == "cuts":
            replaced = line.target is operator.getitem or _aten_name(line) in _REPLACED
            return replaced or self._is_index(line)
        return self.effect.kind == "constants"

    def _may_come(self, line: Line) -> bool:
        replacing = self.effect.kind == "cuts" and line.target in _REPLACING
        return replacing or line.name in self.constants

    def _is_index(self, line: Line) -> bool:
        """Tell whether a node computes indices of constants alone; a cut writes these anew."""
        if line.op == "get_attr":
            return True
        if line.op != "call_function" or canonical_name(line.target) not in COUNTS:
            return False
        reads = pytree.tree_leaves(
            (line.args, line.kwargs), lambda x: isinstance(x, NodeRef | ParameterRef)
        )
        nodes = [self.was[part.node] for part in reads if isinstance(part, NodeRef)]
        return not any(isinstance(part, ParameterRef) for part in reads) and all(
            map(self._is_index, nodes)
        )

    def _alike(self, old: Any, new: Any) -> bool:
        """Tell whether an argument is what it was, but for what the effect may change in it."""
        if isinstance(new, NodeRef) and new.node in self.constants:
            return True
        if isinstance(old, NodeRef) and old.node not in self.now:
            return isinstance(new, NodeRef | ParameterRef)
        if isinstance(new, NodeRef) and new.node not in self.was:
            return isinstance(old, NodeRef)
        if old is None and isinstance(new, ParameterRef):
            return new.parameter in self.effect.added
        if isinstance(old, dict) and isinstance(new, dict):
            same = all(self._alike(old.get(key), part) for key, part in new.items())
            return same and old.keys() <= new.keys()
        if isinstance(old, list | tuple) and type(old) is type(new) and len(old) == len(new):
            return all(map(self._alike, old, new))
        if isinstance(old, slice) and isinstance(new, slice):
            parts = ((each.start, each.stop, each.step) for each in (old, new))
            return self._alike(*parts)
        if self.effect.kind == "cuts" and _is_count(new) and (old is None or _is_count(old)):
            return True
        # As text: 1, 1.0 and True are equal, and NaN is not.
        return repr(old) == repr(new)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _aten_name(line: Line) -> str:
    return getattr(getattr(line.target, "_schema", None), "name", "").removeprefix("aten::")


def _call_text(line: Line) -> str:
    args = [str(arg) for arg in line.args]
    return f"({', '.join([*args, *(f'{k}={v}' for k, v in line.kwargs.items())])})"
