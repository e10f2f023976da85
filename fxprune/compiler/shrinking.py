"""Shrink: cut dead channels out of a Program, and hold what is left to what there was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fxprune.channels import footprint_of
from fxprune.compiler.pipeline import Pipeline
from fxprune.errors import InvariantError, PassError
from fxprune.program import (
    EVAL,
    Program,
    ShrinkRecord,
    check_program,
    commit,
    fork,
    joined_record,
    parameters,
)
from fxprune.rewrite import Facts, create
from fxprune.verification import UNCHECKED, Certificate, Watch, verify, widen

OnPass = Callable[[str], None]
Given = tuple[Any, Any]


def shrink(
    program: Program,
    *,
    inplace: bool = False,
    round_to: int = 1,
    certify: bool = True,
    on_pass: OnPass | None = None,
) -> Program:
    """Cut out the channels that change no output: zeros become a smaller, faster model.

    A channel goes only where that is proven: what reads it has zero weights, or it is the same
    number everywhere, which a bias then takes over. All else stays; `captured.shrinks` of the
    result says what, and why. Masks, where there are any, are cut with their parameters.

    The result is held to the given Program: both are taken to float64 and run in eval mode, at two
    batch sizes. In train mode batch norm may see other constants, as the record's notes tell.

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
    watch = None if certify else Watch()
    how: Any = {"inplace": inplace, "round_to": round_to, "on_pass": on_pass, "watch": watch}
    return shrink_certified(program, **how)[0]


def shrink_certified(
    program: Program,
    *,
    held_to: Program | None = None,
    given: Given = (None, None),
    inplace: bool = False,
    round_to: int = 1,
    on_pass: OnPass | None = None,
    watch: Watch | None = None,
) -> tuple[Program, Certificate]:
    """Shrink a Program; return it with the certificate of its promise.

    Args:
        program: see `shrink`.
        held_to: the Program that the result is held to; `program` itself when None.
        given: args and kwargs to compare on beside the drawn ones.
        inplace: see `shrink`.
        round_to: see `shrink`.
        on_pass: see `shrink`.
        watch: sees the Program before and after each pass, and the certificate; where it is blind,
            nothing is checked.

    Raises:
        InvariantError: see `shrink`.
        PassError: see `shrink`.
    """
    _check_request(program, round_to)
    work = fork(program)
    cut_channels(work, round_to, on_pass, watch)
    certificate = UNCHECKED
    if watch is None or watch.checks:
        certificate = _certified(program, work, held_to or program, round_to, given)
    if watch is not None:
        watch.close("shrink", certificate)
    sizes = {"before": footprint_of(program), "after": footprint_of(work)}
    _let_tell(work, checked=_told(certificate), **sizes)
    if inplace:
        commit(program, work)
        return program, certificate
    work.captured.replaced = []
    # The fork shares what was not cut with the Program that it was made of.
    return copy.deepcopy(work), certificate


def cut_channels(
    work: Program, round_to: int, on_pass: OnPass | None = None, watch: Watch | None = None
) -> None:
    """Find and cut the channels that can go, without a check of outputs.

    Args:
        work: edited in place; see `fxprune.program.forks.fork`.
        round_to: see `shrink`.
        on_pass: see `shrink`.
        watch: see `shrink_certified`.
    """
    find = Pipeline((create("channels", round_to=round_to), create("fold-branches")))
    before = work.captured.shrinks
    records: list[ShrinkRecord] = []
    again = True
    while again:
        facts, known = Facts(), len(work.captured.shrinks)
        found = find.run(work, facts, on_pass=on_pass, watch=watch)
        seconds = dict(found.seconds)
        again = len(work.captured.shrinks) > known  # a branch was folded: find the channels anew
        if not again:
            cut = Pipeline((create("shrink"),))
            seconds |= dict(cut.run(work, facts, on_pass=on_pass, watch=watch).seconds)
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


def _certified(
    program: Program, work: Program, held_to: Program, round_to: int, given: Given
) -> Certificate:
    """Shrink a copy in float64 as well, and run it beside what it is held to.

    Raises:
        InvariantError: outputs differ, or other channels went than in the Program's own dtype.
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
    """Check that what was cut holds what is run in its place in float64, rounded.

    Raises:
        InvariantError: names the first parameter that does not.
    """
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


def _told(certificate: Certificate) -> str:
    if certificate is UNCHECKED:
        return "not checked"
    if certificate.trials:
        runs = "; ".join(certificate.inputs)
        return f"float64, {runs}: largest difference {certificate.largest:g}"
    why = certificate.skipped[0] if certificate.skipped else "no input fits"
    return f"not checked by running it, since no drawn input runs on either side ({why})"


def _let_tell(work: Program, **more: Any) -> None:
    *others, last = work.captured.shrinks
    work.captured.shrinks = (*others, replace(last, **more))
