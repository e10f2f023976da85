"""Compare two models on given and on drawn inputs, in train and in eval mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxprune.errors import InputError, PassError, PassTypeError
from fxprune.program import EVAL, TRAIN, Program, RegionalProgram, mode_of
from fxprune.rewrite import BOUND
from fxprune.verification.certificate import Certificate, Failure
from fxprune.verification.differences import (
    Difference,
    Holder,
    describe,
    first_change,
    first_difference,
    minimise,
    record_values,
)
from fxprune.verification.proof import prove_same
from fxprune.verification.trials import Side, Trial, TrialRun, reproducible, run, trials_of


def verify(
    after: nn.Module,
    before: nn.Module,
    args: tuple[Any, ...] | torch.Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    promise: str = "same",
    trials: int | Mapping[str, int] = 3,
    seed: int = 0,
    bound: float = BOUND,
    modes: tuple[str, ...] = (EVAL, TRAIN),
) -> Certificate:
    """Compare two models in train and in eval mode; a difference raises nothing.

    Each run is of private copies from one seed, so that dropout draws alike and neither model,
    nor the global generator, changes. Gradients are on, since torch takes other kernels without.
    For Programs of a trace without an example nothing can be drawn: without args, two such are held
    to each other by their graphs and tensors, and what is equal there is equal for every input.

    Args:
        after: a Program or any module.
        before: what it is compared with; another one.
        args: positional inputs, compared before the drawn ones.
        kwargs: keyword inputs.
        promise: "same": outputs equal bit for bit, and where a Program takes part its persistent
            buffers after a step in train mode (batch statistics) and inputs that were written to
            as well. "close": outputs of float64 copies of both within `bound`.
        trials: how many inputs to draw for each mode from the input spec of `before`, or of
            `after` where only that is a Program: batches 1, 3, 5, ... in eval mode and 2, 4, 6, ...
            in train mode, where batch norm refuses a single row. A mapping says it for each mode.
        seed: seed of the drawn inputs and of each run.
        bound: the largest difference that is close, times the largest number of the output where
            that is above 1.
        modes: where to compare: "eval", "train" or both.

    Returns:
        A Certificate: true where the promise is kept. A drawn input that neither side takes is
        skipped; a mode in which nothing could be compared is a failure.

    Raises:
        InputError: there is nothing to compare on: no args, and no Program to draw for.
        PassError: an option is out of range.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> verify(nn.Linear(3, 2), model, (torch.ones(4, 3),)).ok
        False
    """
    counts = trials if isinstance(trials, Mapping) else dict.fromkeys(modes, trials)
    _check_request(after, before, promise, bound)
    _check_modes(modes, counts)
    given = None
    if args is not None or kwargs is not None:
        inputs = () if args is None else args
        given = (
            (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs),
            dict(kwargs or {}),
        )
    programs = [side for side in (before, after) if isinstance(side, Program)]
    spec = next((side for side in programs if side.captured.inputs.drawable), None)
    if given is None and spec is None and len(programs) == 2 and promise == "same":
        return prove_same(programs[1], programs[0], seed)
    if given is None and (spec is None or not any(counts.values())):
        raise InputError(
            "verify has no input to compare on: give args= and kwargs=, or hold a Program, for "
            "which inputs can be drawn, with trials= of 1 or more"
        )
    comparison = _Comparison(after, before, promise, seed, bound)
    for mode in modes:
        for trial in trials_of(mode, given, spec, counts.get(mode, 0), seed):
            comparison.compare(trial)
        comparison.close(mode)
    return comparison.certificate()


def _check_request(after: Any, before: Any, promise: str, bound: float) -> None:
    for name, side in (("after", after), ("before", before)):
        if not isinstance(side, nn.Module):
            raise PassTypeError(f"verify: {name} is a {type(side).__name__}, not an nn.Module")
    if promise not in ("same", "close"):
        raise PassError(f"verify: promise={promise!r} is unknown; give 'same' or 'close'")
    if not (isinstance(bound, (int, float)) and bound >= 0):  # pyright: ignore
        raise PassError(f"verify: bound={bound} is no bound; give 0 or more")


def _check_modes(modes: Any, trials: Mapping[str, Any]) -> None:
    if isinstance(modes, str) or not modes:
        raise PassError(f"verify: modes={modes!r} are no modes; give a tuple, as ({EVAL!r},)")
    for mode in (*modes, *trials):
        if mode not in (EVAL, TRAIN):
            raise PassError(f"verify: {mode!r} is no mode; there are {EVAL!r} and {TRAIN!r}")
    for mode, count in trials.items():
        if type(count) is not int:
            raise PassError(f"verify: trials={count!r} is no count in {mode} mode; give an int")
        if count < 0:
            raise PassError(f"verify: trials={count} is negative in {mode} mode; give 0 or more")


@dataclass
class _Comparison:
    """Compares two models trial by trial, and gathers what it finds."""

    after: nn.Module
    before: nn.Module
    promise: str
    seed: int
    bound: float
    inputs: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])
    failures: list[Failure] = field(default_factory=list[Failure])
    largest: float = 0.0

    def __post_init__(self) -> None:
        self.wide = self.promise == "close"
        self.holder = Holder(self.bound if self.wide else None)
        self._sides = [Side(model, wide=self.wide) for model in (self.after, self.before)]

    def compare(self, trial: Trial) -> None:
        """Run both sides on one input and keep what differs."""
        after, before = (run(side, trial, seed=self.seed) for side in self._sides)
        if trial.drawn and after.error and before.error:
            self.skipped.append(f"{trial.mode}: {trial.label}: {before.error}")
            return
        self.inputs.append(f"{trial.mode}: {trial.label}")
        if after.error or before.error:
            message = f"after {_outcome(after)}; before {_outcome(before)}"
            self.failures.append(Failure(trial.mode, trial.label, None, None, message))
            return
        found = self._differences(trial, after, before)
        sizes = [difference.size for difference in found if difference.where.startswith("output")]
        self.largest = max(self.largest, *sizes, 0.0)
        self._report(trial, [difference for difference in found if difference.text])

    def close(self, mode: str) -> None:
        """Fail a mode in which no input could be compared."""
        if any(label.startswith(f"{mode}: ") for label in self.inputs):
            return
        why = next((text for text in self.skipped if text.startswith(f"{mode}: ")), "")
        message = f"neither side takes any input that was drawn; give args=. {why}"
        self.failures.append(Failure(mode, "every input", None, None, message))

    def certificate(self) -> Certificate:
        return Certificate(
            promise=self.promise,
            bound=self.bound if self.wide else 0.0,
            seed=self.seed,
            trials=len(self.inputs),
            inputs=tuple(self.inputs),
            largest=self.largest,
            failures=tuple(self.failures),
            skipped=tuple(self.skipped),
        )

    def _differences(self, trial: Trial, after: TrialRun, before: TrialRun) -> list[Difference]:
        """Compare outputs, what was written to inputs, and batch statistics after training."""
        leaves, found = self.holder.leaves, self.holder.nests("output", after.output, before.output)
        if self.wide or not any(isinstance(side, Program) for side in (self.after, self.before)):
            return found
        pairs = zip(after.inputs, before.inputs, strict=True)
        written = [leaves(f"input {i} afterwards", a, b) for i, (a, b) in enumerate(pairs)]
        found += [difference for difference in written if difference.text]
        if trial.mode == TRAIN:
            both = [name for name in after.buffers if name in before.buffers]
            buffers = ((name, after.buffers[name], before.buffers[name]) for name in both)
            found += [leaves(f"buffer {name!r}", a, b) for name, a, b in buffers]
        return found

    def _differs(self, trial: Trial) -> bool:
        """Tell whether both sides run on an input, and differ."""
        after, before = (run(side, trial, seed=self.seed) for side in self._sides)
        if after.error or before.error:
            return False
        return any(difference.text for difference in self._differences(trial, after, before))

    def _example(self, trial: Trial) -> str | None:
        """Return a small input on which the two differ, once a certificate."""
        if self.failures:
            return None
        spec = next((s for s in (self.before, self.after) if isinstance(s, Program)), None)
        return minimise(trial, self._differs, None if spec is None else spec.captured.inputs)

    def _report(self, trial: Trial, differences: list[Difference]) -> None:
        if not differences:
            return
        node, suffix = self._first_node(trial)
        example = self._example(trial)
        for found in differences:
            message = f"{found.where} {found.text}{suffix}"
            self.failures.append(
                Failure(trial.mode, trial.label, found.where, found.size, message, node, example)
            )
            example = None

    def _first_node(self, trial: Trial) -> tuple[str | None, str]:
        """Return the first node that differs, and a sentence about it; nothing for modules."""
        if not (isinstance(self.after, Program) and isinstance(self.before, Program)):
            return None, ""
        # Regions run in an order that the source's own code decides.
        if isinstance(self.after, RegionalProgram) or isinstance(self.before, RegionalProgram):
            return None, ""
        steps: list[Any] = []
        mode = trial.mode
        for side in self._sides:
            program, args, kwargs = side.prepare(trial)
            with reproducible(self.seed):
                steps.append(record_values(program, args, kwargs))
            mode = mode_of(program)
        node = first_difference(steps[0], steps[1], self.holder)
        if node is not None:
            return node.name, f"; the first node that differs is {describe(self.after, node)}"
        # Nodes that give equal values may pick others of them for an output, or write others.
        changed = first_change(self.after, self.before, mode)
        if changed is None:
            return None, ""
        what = describe(self.after, changed)
        return changed.name, f"; the first node that is another one is {what}"


def _outcome(run: TrialRun) -> str:
    return f"raises {run.error}" if run.error else "runs"
