"""Compile: all that a recipe declares, from the model to certified files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fxprune.compiler.run import RecipeLike, capture, finalize, prune, unmask
from fxprune.compiler.shrinking import shrink_certified
from fxprune.errors import InvariantError
from fxprune.files import check_format, check_writable, export
from fxprune.program import EVAL, TRAIN, Program, parameters
from fxprune.recipe import Recipe
from fxprune.reports import Plan, Report, recipe_of, report
from fxprune.support import PathLike, check_folder, replacing_folder, write_text
from fxprune.verification import UNCHECKED, Auditor, Certificate, listeners_of, verify


@dataclass(frozen=True)
class Result:
    """What `compile` made.

    Args:
        program: masked, or with plain weights where the recipe finalizes.
        report: what was pruned.
        certificate: what was checked, and that it holds.
        files: what was written.
    """

    program: Program
    report: Report
    certificate: Certificate
    files: tuple[Path, ...] = ()


def compile(
    model: nn.Module | ExportedProgram,
    recipe: RecipeLike,
    args: tuple[Any, ...] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    batch: Any = 0,
    out: PathLike | None = None,
    allow_imports: bool = False,
    on_pass: Callable[[str], None] | None = None,
    certify: bool = True,
) -> Result:
    """Do all that a recipe declares: capture, prune, finalize, verify, report, export.

    The certificate says that the result is bit-equal, in train and in eval mode, to

    - the masked program, where the recipe has `[finalize]`; with `zeros = "clean"`, to the masked
      program whose pruned entries are +0.0, as the point of "clean" is to differ where they are
      -0.0 or NaN;
    - the program captured from the model with the masked values written into its weights, where
      the recipe only masks.

    Where the recipe has `[shrink]`, that is checked before channels are cut, and the certificate
    says that in float64 and in eval mode the result is close to the masked program (with `zeros =
    "clean"`, to that with +0.0 for its pruned entries).

    After each pass, graphs, tensors and keys are checked against its declared effect, and masks
    against the scores that ranked them; the certificate has hashes and evidence by pass.

    A pass that the recipe names and that promises equal outputs is checked when it runs. Where one
    promises nothing, the result of a recipe that only masks is compared with its masks folded in.

    Args:
        model: a module, or a Program.
        recipe: a Recipe, a dict, or the path of a .toml or .json file; or a Plan, whose recipe is
            run and must do what was planned.
        args: example positional inputs, to capture and to verify with.
        kwargs: example keyword inputs.
        batch: see `fxprune.capture`.
        out: a folder for the formats of `[export]`, as `model.pt2`, and for report.json and
            certificate.json. None: nothing is written. All is made before any file is moved there.
        allow_imports: let the recipe import pruning methods by "package.module:Class".
        on_pass: called with the name of each step before it runs.
        certify: whether to check. False takes about half the time, and gives a certificate that
            says so and does not hold.

    Raises:
        RecipeError: the recipe is at fault.
        PassError: a plan was made for another model, or the outcome is not what was planned.
        FormatError: `out` is a file or cannot be written, or a format cannot be.
        InvariantError: the certificate does not hold; nothing is written.

    Example:
        >>> rule = {"select": "weight", "method": "l1_unstructured", "amount": 0.5}
        >>> recipe = {"rule": [rule], "finalize": {}}
        >>> result = compile(nn.Linear(4, 2), recipe, (torch.zeros(2, 4),))
        >>> int((result.program.weight == 0).sum()), bool(result.certificate)
        (4, True)
    """
    rules = recipe_of(recipe, allow_imports=allow_imports)
    formats = rules.export.formats if rules.export is not None and out is not None else ()
    for name in formats:
        check_format(f".{name}")
    if out is not None:
        check_folder(out)
    tell = on_pass or (lambda step: None)
    tell("capture")
    dense = capture(model, args, kwargs, batch=batch)
    for name in formats:
        check_writable(dense, Path(f"model.{name}"))
    auditor = Auditor(model, dense) if certify else None
    what = recipe if isinstance(recipe, Plan) else rules
    masked = prune(dense, what, on_pass=tell, watch=auditor)
    nothing = isinstance(args, tuple) and not args and not kwargs
    inputs: Any = (None, None) if nothing else (args, kwargs)
    program, certificate = _finish(rules, dense, masked, inputs, auditor, tell)
    tell("report")
    result = Result(program, replace(report(program), certificate=certificate), certificate)
    return result if out is None else _write(result, Path(out), formats, tell)


def _finish(
    rules: Recipe,
    dense: Program,
    masked: Program,
    inputs: tuple[Any, Any],
    auditor: Auditor | None,
    tell: Callable[[str], None],
) -> tuple[Program, Certificate]:
    """Finalize, verify and shrink, as the recipe says; raise InvariantError where a check fails."""
    program, certificate = masked, UNCHECKED
    if rules.finalize is not None:
        zeros = rules.finalize.zeros
        program = finalize(masked, zeros=zeros, certify=False, on_pass=tell, watch=auditor)
    oracle = masked
    if auditor is not None:
        tell("verify")
        if rules.passes and rules.finalize is not None and _all_same(dense, masked):
            _certify(masked, _with_values(dense, masked), inputs)
        oracle = _oracle(rules, dense, masked)
        certificate = _certify(program, oracle, inputs)
    if rules.shrink is not None:
        tell("shrink")
        program, certificate = shrink_certified(
            program,
            # Pruned entries that are infinite are NaN while masked, and +0.0 with zeros = "clean".
            held_to=oracle if rules.finalize is not None else masked,
            given=inputs,
            round_to=rules.shrink.round_to,
            certify=auditor is not None,
            listeners=listeners_of(tell, auditor),
        )
        if auditor is not None:
            auditor.record_runs("shrink", certificate)
    if auditor is None:
        return program, certificate
    auditor.check_writes(program)
    return program, replace(certificate, passes=tuple(auditor.evidence), recipe=rules.to_dict())


# Above this many parameters one input is drawn in each mode, in train mode where none is given:
# the cost of a run grows with them, that of the rest of a compile hardly does.
_LARGE = 4_000_000


def _certify(program: Program, oracle: Program, inputs: tuple[Any, Any]) -> Certificate:
    """Compare the result with its oracle bit for bit; a difference raises InvariantError."""
    large = sum(p.numel() for p in program.parameters()) > _LARGE
    few = {EVAL: 1, TRAIN: int(all(each is None for each in inputs))}
    certificate = verify(program, oracle, *inputs, trials=few if large else 3)
    if not certificate:
        raise InvariantError(
            f"the compiled program breaks its promise and was not written: {certificate}"
        )
    return certificate


def _oracle(plan: Recipe, dense: Program, masked: Program) -> Program:
    """Return the Program that the result must equal bit for bit."""
    if plan.finalize is None:
        same = _all_same(dense, masked)
        return _with_values(dense, masked) if same else finalize(masked)
    return masked if plan.finalize.zeros == "keep" else _with_clean_zeros(masked)


def _all_same(dense: Program, masked: Program) -> bool:
    """Tell whether all passes that the recipe named promise equal outputs."""
    done = masked.captured.passes[len(dense.captured.passes) :]
    return all(each.promise == "same" for each in done)


def _with_values(dense: Program, masked: Program) -> Program:
    """Return the dense Program with the masked values written into its weights."""
    oracle = unmask(dense) if dense.masks else copy.deepcopy(dense)
    with torch.no_grad():
        for name in parameters.masks(masked):
            parameters.parameter(oracle, name).copy_(parameters.value(masked, name))
    return oracle


def _with_clean_zeros(masked: Program) -> Program:
    """Return the masked Program with +0.0 wherever the mask is 0."""
    oracle = copy.deepcopy(masked)
    with torch.no_grad():
        for name, mask in parameters.masks(oracle).items():
            parameters.parameter(oracle, name).masked_fill_(mask == 0, 0.0)
    return oracle


def _write(
    result: Result, out: Path, formats: tuple[str, ...], tell: Callable[[str], None]
) -> Result:
    names = [f"model.{name}" for name in formats]
    with replacing_folder(out) as folder:
        for name in names:
            tell(f"export: {name}")
            export(result.program, folder / name)
        write_text(folder / "report.json", result.report.to_json())
        write_text(folder / "certificate.json", result.certificate.to_json())
    files = (out / name for name in (*names, "report.json", "certificate.json"))
    return replace(result, files=tuple(files))
