"""The command inspect: what fxprune sees of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fxprune.channels import footprint_of
from fxprune.cli.models import capture_model
from fxprune.cli.output import Page, Progress
from fxprune.cli.request import Request
from fxprune.compiler import find_coupling, prune
from fxprune.program import BOTH, Program, alias_groups, parameters, sites_of
from fxprune.recipe import Recipe
from fxprune.reports import draw_channels, report
from fxprune.words import dtype_name


def inspect_model(
    page: Page, request: Request, rules: Recipe | None, masked_by: Path | None, picture: Path | None
) -> None:
    """Print what fxprune sees of a model, and what a recipe masks of it."""
    masked: Program | None = None
    with Progress() as progress:
        program = capture_model(request, progress)
        if rules is not None:
            masked = prune(program, rules, allow_imports=request.allow_imports, on_pass=progress)
        if picture is not None:
            progress("picture")
            drawn = masked or program
            draw_channels(drawn, find_coupling(drawn), picture)
    if request.as_json:
        page.json(_as_json(program, masked))
        return
    _print_program(page, program)
    _print_report(page, program, masked, masked_by)
    if picture is not None:
        page.files([picture])


def _print_report(
    page: Page, program: Program, masked: Program | None, recipe: Path | None
) -> None:
    if masked is not None:
        page.heading(f"{recipe}, masked but not written")
        page.report(report(masked))
        for name, reason in report(masked).refused:
            page.text(f"left {name}: {reason}")
    elif program.captured.shrinks:
        page.report(report(program))


def _as_json(program: Program, masked: Program | None) -> str:
    parameters: list[dict[str, Any]] = [
        {
            "name": site.name,
            "aliases": site.aliases,
            "modules": site.modules,
            "shape": tuple(site.shape),
            "dtype": dtype_name(site.dtype),
            "uses": [{"op": op, "role": role} for op, role in site.uses],
        }
        for site in sites_of(program)
    ]
    data = {
        "kind": program.captured.kind,
        "inputs": [str(spec) for spec in program.captured.inputs.inputs],
        "graphs": _operators(program),
        "deciders": program.captured.deciders,
        "parameters": parameters,
        "notes": program.captured.notes,
        "costs": _costs(program),
        "report": None if masked is None else json.loads(report(masked).to_json()),
    }
    return json.dumps(data, indent=2, allow_nan=False)


def _costs(program: Program) -> dict[str, Any] | None:
    """Return the cost of a forward of one example; None where shapes are not known."""
    if not program.captured.inputs.drawable:
        return None
    found = footprint_of(program)
    return {
        "flops": found.flops,
        "activations": found.activations,
        "unknown": found.unknown,
    }


def _operators(program: Program) -> dict[str, int]:
    """Return how many operators each graph calls, by mode."""
    return {
        "train and eval" if mode == BOTH else mode: sum(
            node.op == "call_function" for node in graph.nodes
        )
        for mode, graph in program.graphs.items()
    }


def _print_program(page: Page, program: Program) -> None:
    sites = sites_of(program)
    entries = sum(site.numel for site in sites)
    page.text(f"{program.captured.kind}: {len(sites)} parameters with {entries:,} entries")
    page.heading("inputs")
    for spec in program.captured.inputs.inputs:
        page.text(f"  {spec}")
    page.heading("graphs")
    for mode, calls in _operators(program).items():
        page.text(f"  {mode}: {calls} operators")
    if program.captured.deciders:
        page.text(
            f"  chosen by the training flags of {parameters.quote(program.captured.deciders)}"
        )
    page.heading("parameters")
    header = ("name", "shape", "dtype", "uses")
    rows = [
        (
            site.name,
            "x".join(map(str, site.shape)) or "scalar",
            dtype_name(site.dtype),
            ", ".join(f"{role} of {op}" for op, role in site.uses) or "nothing",
        )
        for site in sites
    ]
    page.table(header, rows)
    costs = _costs(program)
    if costs is not None:
        counts = f"{costs['flops']:,} FLOPs, {costs['activations']:,} activations"
        page.text(f"one example costs {counts}; see fxprune.channels for what is counted")
    for names in alias_groups(program):
        page.text(f"tied: {' = '.join(names)}")
    for note in program.captured.notes:
        page.text(f"note: {note}")
