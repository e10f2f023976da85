"""Shrink: cut dead channels out of a Program, and compare the result with what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from fxprune.channels import footprint_of
from fxprune.compiler.pipeline import Pipeline
from fxprune.compiler.run import Run
from fxprune.errors import InvariantError, PassError
from fxprune.program import (
    EVAL,
    Program,
    ShrinkRecord,
    check_program,
    copied,
    joined_record,
    parameters,
)
from fxprune.rewrite import Facts, create
from fxprune.verification import UNCHECKED, Certificate, Listener, listeners_of, verify, widen


def shrink(
    program: Program,
    *,
    inplace: bool = False,
    round_to: int = 1,
    certify: bool = True,
    on_pass: Callable[[str], None] | None = None,
) -> Program:
    """Cut out the channels that change no output: zeros become a smaller, faster model.

    A channel goes only where that is proven: what reads it has zero weights, or it is the same
    number everywhere, which a bias then takes over. All else stays; `captured.shrinks` of the
    result says what, and why. Masks, where there are any, are cut with their parameters.

    The result is compared with the given Program: copies of both in float64 run in eval mode, at
    two batch sizes. In train mode batch norm may see other constants, as the record's notes say.

    Args:
        program: a Program, masked or finalized.
        inplace: edit the given Program; its Parameter objects stay the same ones.
        round_to: leave a multiple of so many channels where some go.
        certify: run both and compare; what can go is proven on the graph either way.
        on_pass: called with each pass's name before it runs.

    Raises:
        InvariantError: outputs differ; the Program is as it was.
        PassError: the shapes in the Program are not known.
        PassTypeError: it is no Program.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxprune.compiler.run import capture
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[1:3].zero_()
        >>> program = capture(model, (torch.zeros(2, 3),))
        >>> small = shrink(program)
        >>> small.get_submodule("0").weight.shape, small.captured.shrinks[0].maps[0].kept
        (torch.Size([2, 3]), (0, 3))
    """
    listeners = listeners_of(on_pass)
    return shrink_certified(
        program, inplace=inplace, round_to=round_to, certify=certify, listeners=listeners
    )[0]


def shrink_certified(
    program: Program,
    *,
    held_to: Program | None = None,
    given: tuple[Any, Any] = (None, None),
    inplace: bool = False,
    round_to: int = 1,
    certify: bool = True,
    listeners: Iterable[Listener] = (),
) -> tuple[Program, Certificate]:
    """Shrink a Program and compare it with `held_to`, or itself before, on given and drawn inputs.

    Returns the Program and the certificate that outputs are close in float64.
    """
    _check_request(program, round_to)
    run = Run(program, inplace=True, listeners=listeners)
    cut_channels(run.work, round_to, run.listeners)
    run.end()
    certificate = UNCHECKED
    if certify:
        certificate = _certify(program, run.work, held_to or program, round_to, given)
    sizes = {"before": footprint_of(program), "after": footprint_of(run.work)}
    *others, last = run.work.captured.shrinks
    last = replace(last, checked=_evidence(certificate), **sizes)
    run.work.captured.shrinks = (*others, last)
    # The fork shares what was not cut with the Program that it was made of.
    return run.result() if inplace else copied(run.work), certificate


def cut_channels(work: Program, round_to: int, listeners: Iterable[Listener] = ()) -> None:
    """Find and cut the channels of a Program that can go, without a check of outputs."""
    find = Pipeline((create("channels", round_to=round_to), create("fold-branches")))
    before = work.captured.shrinks
    records: list[ShrinkRecord] = []
    again = True
    while again:
        facts, known = Facts(), len(work.captured.shrinks)
        found = find.run(work, facts, listeners)
        seconds = dict(found.seconds)
        again = len(work.captured.shrinks) > known  # a branch was folded: find the channels anew
        if not again:
            cut = Pipeline((create("shrink"),))
            seconds |= dict(cut.run(work, facts, listeners).seconds)
        record = work.captured.shrinks[-1]
        records.append(replace(record, seconds=seconds))
        again = again or (record.again and bool(record.maps))
    work.captured.shrinks = (*before, joined_record(records))


def _check_request(program: Program, round_to: int) -> None:
    check_program(program, "shrink")
    if type(round_to) is not int or round_to < 1:
        raise PassError(f"shrink: round_to={round_to!r} is no count; give 1 or more")
    if not program.captured.inputs.drawable:
        raise PassError(
            "shrink needs shapes, and this program was traced without an example; capture the "
            "traced graph with args="
        )


def _certify(
    program: Program, work: Program, held_to: Program, round_to: int, given: tuple[Any, Any]
) -> Certificate:
    """Shrink a copy in float64 as well, and compare its outputs with those of `held_to`.

    Other outputs, or other channels that went than in the Program's own dtype, raise
    InvariantError.
    """
    after, before = copy.deepcopy(program), copy.deepcopy(held_to)
    widen(after)
    widen(before)
    cut_channels(after, round_to)
    if after.captured.shrinks[-1].maps != work.captured.shrinks[-1].maps:
        raise InvariantError(
            "shrink: in float64 other channels can go than in the program's own dtype; nothing was "
            "changed"
        )
    _check_narrow(work, after)
    certificate = verify(after, before, *given, promise="close", trials=2, modes=(EVAL,))
    if certificate.trials and not certificate:
        raise InvariantError(
            f"shrink promised outputs that are close in float64, but they differ; nothing was "
            f"changed: {certificate}"
        )
    return certificate


def _check_narrow(work: Program, wide: Program) -> None:
    """Check that what was cut holds, rounded, what is run in its place in float64."""
    for name in parameters.aliases(work):
        own, other = parameters.value(work, name), parameters.value(wide, name)
        if own.shape == other.shape:
            rounded = other.to(own.dtype)
            # A constant that a bias takes over is a sum, which float64 may round in another way.
            loose = 8 * torch.finfo(own.dtype).eps if own.dtype.is_floating_point else 0
            size = rounded.abs().nan_to_num(0, 0, 0).amax() if rounded.numel() else 0
            near = (own - rounded).abs() <= loose * size
            if bool((near | (own == rounded) | (own != own)).all()):
                continue
        raise InvariantError(f"shrink: {name!r} is another one than in float64; nothing changed")


def _evidence(certificate: Certificate) -> str:
    if certificate is UNCHECKED:
        return "not checked"
    if certificate.trials:
        runs = "; ".join(certificate.inputs)
        return f"float64, {runs}: largest difference {certificate.largest:g}"
    why = certificate.skipped[0] if certificate.skipped else "no input fits"
    return f"not checked by running it, since no drawn input runs on either side ({why})"
