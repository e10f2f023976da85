"""The facade: capture, prune, finalize, unmask. Each copies the Program unless `inplace=True`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.utils.prune import BasePruningMethod

from fxprune import tensors
from fxprune.adoption import adoption_notes, joined_masks
from fxprune.checker import check_values
from fxprune.facts import GivenMasks, Importance
from fxprune.observing import Holder, Observer
from fxprune.pipeline import Facts, Pipeline, Rewrite, Watch
from fxprune.plans import Plan, recipe_of
from fxprune.program import Program, check_program
from fxprune.proving import check_outputs
from fxprune.quiet import alone
from fxprune.ranks import ready, together
from fxprune.recipe import Finalize, Recipe, Rule
from fxprune.regional import masking_everywhere
from fxprune.registry import create
from fxprune.running import OnPass, done, run_stage, worked
from fxprune.shards import is_spread
from fxprune.shrinking import shrink
from fxprune.stages import Stage, stage_of, stages_of
from fxprune.transaction import copied, fork
from fxprune.ways_in import enter

__all__ = [
    "OnPass",
    "RecipeLike",
    "capture",
    "edit",
    "finalize",
    "is_pruned",
    "prune",
    "run_stages",
    "shrink",
    "unmask",
]

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
    with alone():
        program, hooked = enter(model, args, kwargs, batch)
    if hooked:
        masks = joined_masks(program, hooked)
        names, given = tuple(masks), GivenMasks(masks)
        rule = Rule(name="torch.nn.utils.prune", select="*", method="custom_from_mask")
        program.captured.notes += adoption_notes(program, hooked)
        # Its own Python code reads the masks that the model came with as well.
        with masking_everywhere(program):
            run_stage(program, stage_of((rule,), names=names), [given], None)
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
    on_pass: OnPass | None = None,
    watch: Watch | None = None,
) -> Program:
    """Mask a Program by a recipe's rules, then run the passes that it names.

    Args:
        model: a Program, or a module, which is captured with `args`, `kwargs` and `batch`.
        recipe: a Recipe, a dict, or the path of a .toml or .json file; or a Plan, whose recipe is
            run and held to what was planned.
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
        stages = stages_of(recipe_of(recipe, allow_imports=allow_imports))
        if isinstance(model, Program):
            program = model
        else:
            program, inplace = capture(model, args, kwargs, batch=batch), True
        scores, masks = dict(importance_scores or {}), dict(masks or {})
        given: list[Any] = [Importance(scores), GivenMasks(masks)]
        if peers is not None:
            rules = repr([(stage.rules, stage.calls) for stage in stages])
            given.append(ready(peers, program, rules, {**scores, **masks}))
        observer = Holder(recipe, program) if isinstance(recipe, Plan) else None
        how: Any = {"inplace": inplace, "on_pass": on_pass, "observer": observer, "watch": watch}
        work = worked(program, stages, given, **how)
    return done(program, work, inplace=inplace)


def run_stages(
    program: Program,
    stages: Iterable[Stage],
    given: Iterable[Any] = (),
    *,
    inplace: bool,
    on_pass: OnPass | None = None,
    observer: Observer | None = None,
    watch: Watch | None = None,
) -> Program:
    """Run the pipelines of some rules, all or nothing.

    Args:
        program: what to mask.
        stages: checked before any of them runs.
        given: facts given from the start, to each stage.
        inplace: edit `program` itself.
        on_pass: see `prune`.
        observer: sees what each stage did, and may refuse what all did by raising.
        watch: sees the Program before and after each pass.
    """
    work = worked(
        program, stages, given, inplace=inplace, on_pass=on_pass, observer=observer, watch=watch
    )
    return done(program, work, inplace=inplace)


def finalize(
    program: Program,
    *,
    inplace: bool = False,
    zeros: str = "keep",
    certify: bool = True,
    on_pass: OnPass | None = None,
    watch: Watch | None = None,
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
        return len(tensors.masks(module)) > 0
    hooks = (hook for part in module.modules() for hook in part._forward_pre_hooks.values())
    return any(isinstance(hook, BasePruningMethod) for hook in hooks)


def edit(
    program: Program,
    step: Rewrite,
    *,
    inplace: bool,
    same: bool = False,
    on_pass: OnPass | None = None,
    watch: Watch | None = None,
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
    work = fork(program) if inplace else copied(program)
    Pipeline((step,)).run(work, Facts(), on_pass=on_pass, watch=watch)
    if same and is_spread(program):
        check_values(program, work, step.name)
    elif same:
        check_outputs(program, work, step.name)
    return done(program, work, inplace=inplace)
