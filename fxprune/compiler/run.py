"""Capture, prune, finalize, unmask, and the run of passes, all or nothing, that they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.utils.prune import BasePruningMethod

from fxprune.channels import CoupledScores, Coupling
from fxprune.compiler.listening import PlanCheck
from fxprune.compiler.pipeline import Pipeline, Stage, Trace, stage_of, stages_of
from fxprune.frontends import adoption_notes, enter, joined_masks
from fxprune.program import (
    ParamRecord,
    PassRecord,
    Program,
    RuleRecord,
    check_program,
    commit,
    copied,
    fork,
    is_spread,
    masking_everywhere,
    parameters,
    refuse_sharded,
    spread,
)
from fxprune.ranking import Peers, prepare_peers, together
from fxprune.recipe import Finalize, Recipe, Rule
from fxprune.reports import Plan, recipe_of
from fxprune.rewrite import (
    Facts,
    GivenMasks,
    Importance,
    Methods,
    NewMasks,
    Ranking,
    Rewrite,
    Scores,
    Selection,
    create,
    living_channels,
)
from fxprune.support import exclusive
from fxprune.verification import Listener, check_outputs, check_values, listeners_of

RecipeLike = Plan | Recipe | Mapping[str, Any] | str | os.PathLike[str]


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    batch: Any = 0,
) -> Program:
    """Capture a model as a Program; the model is not changed.

    A model that torch.nn.utils.prune has masked is adopted: its masks become the Program's. A model
    that torch.export cannot take whole is captured by regions, see `RegionalProgram`.

    Args:
        model: a module; a graph of torch.fx.symbolic_trace, also without args; or a
            torch.export.ExportedProgram, which has an example and dynamic dimensions.
        args: example positional inputs.
        kwargs: example keyword inputs.
        batch: the batch dimension of every tensor, None for fixed shapes, or a pytree of
            dimensions: a mapping by argument name or a tuple beside `args`.

    Raises:
        CaptureError: the model cannot be captured, or the batch became a constant.

    Example:
        >>> program = capture(nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> print(program.inputs)
        input: float32[batch, 3]
    """
    if isinstance(model, Program):
        return copied(model)
    with exclusive():
        program, hooked = enter(model, args, kwargs, batch)
    if hooked:
        masks = joined_masks(program, hooked)
        names, given = tuple(masks), GivenMasks(masks)
        rule = Rule(name="torch.nn.utils.prune", select="*", method="custom_from_mask")
        program.captured.notes += adoption_notes(program, hooked)
        # Its own Python code reads the masks that the model came with as well.
        with masking_everywhere(program):
            run_stages(program, [stage_of((rule,), names=names)], [given], inplace=True)
    Pipeline((create("adopt"),)).run(program, Facts())
    return program


def prune(
    model: nn.Module | ExportedProgram,
    recipe: RecipeLike,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    batch: Any = 0,
    inplace: bool = False,
    importance_scores: Mapping[str, torch.Tensor] | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
    allow_imports: bool = False,
    process_group: Any = None,
    on_pass: Callable[[str], None] | None = None,
    watch: Listener | None = None,
) -> Program:
    """Mask a Program by a recipe's rules, then run the passes that it names.

    Args:
        model: a Program, or a module, which is captured with `args`, `kwargs` and `batch`.
        recipe: a Recipe, a dict, or the path of a .toml or .json file; or a Plan, whose recipe is
            run and must do what was planned.
        args: example positional inputs.
        kwargs: example keyword inputs.
        batch: see `capture`.
        inplace: edit the given Program; its Parameter objects stay the same ones.
        importance_scores: tensors to score in the place of parameters, by parameter name.
        masks: masks for rules with the method custom_from_mask, by parameter name.
        allow_imports: let the recipe import pruning methods by "package.module:Class".
        process_group: a torch.distributed group, as `torch.distributed.group.WORLD`, all of whose
            processes make this call: they rank parameters that are spread over them (DTensor,
            FSDP2) as one process would that had all of them.
        on_pass: called with the rule's and the pass's name before each pass.
        watch: sees the Program before and after each pass.

    Returns:
        The masked Program.

    Raises:
        RecipeError: the recipe is at fault.
        SelectError: a rule selects nothing.
        AmountError: an amount is more than is alive.
        PassError: a plan was made for another model, or the outcome is not what was planned.
        PeerError: another process of the group failed or does not answer; nothing was changed.

    Example:
        >>> program = capture(nn.Linear(4, 2), (torch.zeros(2, 4),))
        >>> rule = {"select": {"op": "linear", "param": "weight"}, "method": "l1_unstructured"}
        >>> masked = prune(program, {"rule": [{**rule, "amount": 0.5}]})
        >>> int((masked.weight == 0).sum())
        4
    """
    with together(process_group) as peers:
        rules = recipe_of(recipe, allow_imports=allow_imports)
        stages = stages_of(rules)
        program = program_of(model, args, kwargs, batch)
        given = facts_given(importance_scores, masks)
        if peers is not None:
            called = repr([(stage.rules, stage.calls) for stage in stages])
            tensors = {**(importance_scores or {}), **(masks or {})}
            given.append(prepare_peers(peers, program, called, tensors))
        listeners = listeners_of(
            on_pass, watch, PlanCheck(recipe) if isinstance(recipe, Plan) else None
        )
        # What was captured here is nobody else's.
        inplace = inplace or program is not model
        run = Run(program, inplace=inplace, listeners=listeners)
        run.stages(stages, given)
    return run.result()


def program_of(model: nn.Module | ExportedProgram, args: Any, kwargs: Any, batch: Any) -> Program:
    """Return a model that is a Program as it is, and capture another one."""
    return model if isinstance(model, Program) else capture(model, args, kwargs, batch=batch)


def facts_given(
    importance_scores: Mapping[str, torch.Tensor] | None, masks: Mapping[str, torch.Tensor] | None
) -> list[Any]:
    """Return what a caller gives as facts, copied from mappings that others may change."""
    return [Importance(dict(importance_scores or {})), GivenMasks(dict(masks or {}))]


def run_stages(
    program: Program,
    stages: Iterable[Stage],
    given: Iterable[Any] = (),
    *,
    inplace: bool,
    listeners: Iterable[Listener] = (),
) -> Program:
    """Run stages, all or nothing, each from the same given facts."""
    run = Run(program, inplace=inplace, listeners=listeners)
    run.stages(stages, given)
    return run.result()


def finalize(
    program: Program,
    *,
    inplace: bool = False,
    zeros: str = "keep",
    certify: bool = True,
    on_pass: Callable[[str], None] | None = None,
    watch: Listener | None = None,
) -> Program:
    """Fold every mask into its parameter; keys go back to the source's names and order.

    After that nothing keeps the zeros: an optimizer step makes them grow again.

    Args:
        program: a masked Program.
        inplace: edit the given Program; its Parameter objects stay the same ones.
        zeros: "keep" what multiplication gives (-1 * 0 is -0.0), or "clean" for +0.0.
        certify: run both and compare; with zeros="clean" outputs are not compared.
        on_pass: called with each pass's name before it runs.
        watch: sees the Program before and after the pass, and holds outputs to each other itself.

    Returns:
        A Program with plain weights and equal outputs.

    Raises:
        InvariantError: outputs differ; the Program is as it was.
    """
    options = Finalize(zeros=zeros)  # pyright: ignore[reportArgumentType]
    step = create("finalize", zeros=options.zeros)
    same = certify and options.zeros == "keep" and watch is None
    return edit(program, step, inplace=inplace, same=same, on_pass=on_pass, watch=watch)


def unmask(program: Program, *names: str, inplace: bool = False) -> Program:
    """Drop masks; the original weights, as training left them, act again.

    Args:
        program: a masked Program.
        names: parameters; all masked ones when none is named.
        inplace: edit the given Program.

    Raises:
        NotPrunedError: a named parameter has no mask.

    Example:
        >>> program = capture(nn.Linear(4, 2), (torch.zeros(2, 4),))
        >>> rule = {"select": "weight", "method": "l1_unstructured", "amount": 0.5}
        >>> masked = prune(program, {"rule": [rule]})
        >>> bool((unmask(masked, "weight").weight == program.weight).all())
        True
    """
    return edit(program, create("unmask", names=names), inplace=inplace)


def is_pruned(module: nn.Module) -> bool:
    """Tell whether a Program has masks, or a module hooks of torch.nn.utils.prune."""
    if isinstance(module, Program):
        return len(parameters.masks(module)) > 0
    hooks = (hook for part in module.modules() for hook in part._forward_pre_hooks.values())
    return any(isinstance(hook, BasePruningMethod) for hook in hooks)


def edit(
    program: Program,
    step: Rewrite,
    *,
    inplace: bool,
    same: bool = False,
    on_pass: Callable[[str], None] | None = None,
    watch: Listener | None = None,
) -> Program:
    """Run one rewrite pass, all or nothing.

    Args:
        program: what to edit.
        step: the pass.
        inplace: edit `program` itself.
        same: whether the pass promises outputs that are equal bit for bit.
        on_pass: called with the pass's name before it runs.
        watch: sees the Program before and after the pass.

    Raises:
        InvariantError: the promise is broken; `program` is as it was.
        PassTypeError: it is no Program.
    """
    check_program(program, step.name)
    run = Run(program, inplace=inplace, listeners=listeners_of(on_pass, watch))
    run.passes(Pipeline((step,)))
    run.end()
    if same and is_spread(program):
        check_values(program, run.work, step.name)
    elif same:
        check_outputs(program, run.work, step.name)
    return run.result()


class Run:
    """Passes over a fork or a copy of a Program, which then takes its place: all or nothing."""

    def __init__(
        self, program: Program, *, inplace: bool, listeners: Iterable[Listener] = ()
    ) -> None:
        self.program, self.inplace, self.listeners = program, inplace, tuple(listeners)

    @cached_property
    def work(self) -> Program:
        """The fork or copy, made when the first pass needs it."""
        work = fork(self.program) if self.inplace else copied(self.program)
        for each in self.listeners:
            each.begin(work)
        return work

    def passes(self, pipeline: Pipeline, facts: Facts | None = None, stage: str = "") -> Trace:
        """Run passes before the listeners."""
        return pipeline.run(self.work, facts or Facts(), self.listeners, stage)

    def stages(self, stages: Iterable[Stage], given: Iterable[Any] = ()) -> None:
        """Run stages, checked before any of them runs, each from the same given facts."""
        stages, empty = list(stages), (Importance(), GivenMasks(), Methods())
        there: dict[type[Any], Any] = {type(fact): fact for fact in (*empty, *given)}
        for stage in stages:
            stage.pipeline.check(there)
        if Peers not in there:
            refuse_sharded(self.program)
        for stage in stages:
            facts = Facts(there.values())
            trace = self.passes(stage.pipeline, facts, stage.name)
            if stage.calls:
                self.work.captured.passes += pass_records(stage, trace)
            else:
                self.work.captured.records += (record_of(self.work, stage, facts, trace),)
            for each in self.listeners:
                each.stage(self.work, stage.rules, facts)
        self.end()

    def end(self) -> None:
        """Let the listeners see what all passes did."""
        for each in self.listeners:
            each.end(self.work)

    def result(self) -> Program:
        """Let the Program become what was worked on, where the run is in place; return it."""
        if self.inplace:
            commit(self.program, self.work)
            return self.program
        self.work.captured.replaced = []
        return self.work


def record_of(program: Program, stage: Stage, facts: Facts, trace: Trace) -> RuleRecord:
    """Return the record of a stage that has run, from the facts of its passes."""
    rule = stage.rules[0]
    selection = facts[Selection]
    method = rule.method or f"{rule.score_name}/{rule.granularity_name}"
    refused = selection.refused
    if rule.coupled:
        layers = tuple(_layer_records(facts))
        parameters = tuple(_coupled_records(facts, layers))
        masked = {record.name for record in parameters}
        others = tuple((name, why) for name, why in refused if name not in masked)
        refused = (*others, *facts[Coupling].refused)
    else:
        layers = ()
        parameters = tuple(_records(program, facts))
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
    """Return the records of passes that a recipe named, after they have run."""
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


def _records(program: Program, facts: Facts) -> Iterator[ParamRecord]:
    sites = facts[Selection].sites
    if Ranking not in facts.kinds:
        yield from (ParamRecord(site.name) for site in sites)
        return
    scores, ranking = facts[Scores], facts[Ranking]
    replayed = {name for group in ranking.groups if ranking.is_replayed(group) for name in group}
    for site in sites:
        name, source, cut = site.name, scores.sources[site.name], ranking.cuts[site.name]
        units, alive = ranking.sizes.get(name, (source.units, source.alive))
        # Which parameters' ties torch took, the masks alone say; an empty one says nothing.
        by_masks = name in replayed and site.numel > 0
        gone = alive - _alive(program, name, scores.dim) if by_masks else cut.count
        quota = cut.quota + gone - cut.count
        level = None if cut.threshold is None else float(cut.threshold)
        yield ParamRecord(name, units, alive, gone, level, cut.tied, quota)


def _alive(program: Program, name: str, dim: int | None) -> int:
    mask = parameters.masks(program)[name]
    return spread.count_true(mask == 1 if dim is None else living_channels(mask, dim))


def _layer_records(facts: Facts) -> Iterator[ParamRecord]:
    sources, cuts = facts[CoupledScores].sources, facts[Ranking].cuts
    for layer in facts[Coupling].layers:
        alive, cut = sources[layer.name].alive, cuts[layer.name]
        counts = (layer.units, alive, cut.count, cut.threshold, cut.tied, cut.quota)
        yield ParamRecord(layer.name, *counts, makers=layer.makers)


def _coupled_records(facts: Facts, layers: tuple[ParamRecord, ...]) -> Iterator[ParamRecord]:
    """Yield what happened to the channels that parameters make, or else to all that they have."""
    coupling = facts[Coupling]
    made_by: dict[str, list[ParamRecord]] = {}
    for layer in layers:
        for name in layer.makers:
            made_by.setdefault(name, []).append(layer)
    for name in facts[NewMasks].names:
        made = made_by.get(name) or [layers[at] for at in coupling.layers_in(name)]
        yield ParamRecord(
            name,
            sum(layer.units or 0 for layer in made),
            sum(layer.alive or 0 for layer in made),
            sum(layer.pruned or 0 for layer in made),
            max((layer.threshold for layer in made if layer.threshold is not None), default=None),
        )
