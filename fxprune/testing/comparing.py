"""Assertions on what models, Programs and values give: equal bit for bit, or close."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fxprune.certificate import Certificate
from fxprune.differences import Holder
from fxprune.program import Program
from fxprune.testing.comparing import DifferenceError, difference, entry_difference
from fxprune.trials import Side, Trial, run, trials_of
from fxprune.verify import BOUND, verify

__all__ = ["assert_close", "assert_same"]


def assert_same(
    after: Any,
    before: Any,
    args: tuple[Any, ...] | Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    trials: int = 3,
    seed: int = 0,
) -> None:
    """Assert that two models give equal outputs in both modes, or that two values are equal.

    Args:
        after: a Program, any module, or a nest of tensors.
        before: what it is held to.
        args: positional inputs for models; some are drawn as well where one is a Program.
        kwargs: keyword inputs for models.
        trials: how many inputs to draw for each mode.
        seed: of what is drawn.

    Raises:
        DifferenceError: an AssertionError that names the first output, node, parameter or entry
            that differs, and its values.
        InputError: there is no input to compare models on.

    Example:
        >>> import torch
        >>> assert_same({"y": torch.ones(2)}, {"y": torch.tensor([1.0, 2.0])})
        Traceback (most recent call last):
        fxprune.testing.comparing.DifferenceError: at ['y'], entry (1,): 1.0 and 2.0; 1 of 2
        entries differ (after first)
    """
    if isinstance(after, nn.Module) and isinstance(before, nn.Module):
        found = verify(after, before, args, kwargs, trials=trials, seed=seed)
        _hold(found, after, before, _given(args, kwargs), wide=False)
        return
    told = difference(after, before)
    if told is not None:
        raise DifferenceError(f"{told} (after first)")


def assert_close(
    after: Any,
    before: Any,
    args: tuple[Any, ...] | Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    bound: float = BOUND,
    trials: int = 3,
    seed: int = 0,
) -> None:
    """Assert that two models, in float64, give close outputs in eval mode, or two values are close.

    Args:
        after: a Program, any module, or a nest of tensors.
        before: what it is held to.
        args: positional inputs for models; some are drawn as well where one is a Program.
        kwargs: keyword inputs for models.
        bound: the largest difference, times the largest number compared where that is above 1.
        trials: how many inputs to draw.
        seed: of what is drawn.

    Raises:
        DifferenceError: an AssertionError that names the first output, node, parameter or entry
            that differs by more, and its values.
        InputError: there is no input to compare models on.

    Example:
        >>> import torch
        >>> assert_close(torch.tensor(1.0), torch.tensor(1.0 + 1e-6), bound=1e-5)
    """
    if isinstance(after, nn.Module) and isinstance(before, nn.Module):
        found = verify(
            after,
            before,
            args,
            kwargs,
            promise="close",
            bound=bound,
            trials=trials,
            seed=seed,
            modes=("eval",),
        )
        _hold(found, after, before, _given(args, kwargs), wide=True)
        return
    differing = [d for d in Holder(bound).nests("value", after, before) if d.text]
    if differing:
        entry = difference(after, before)
        raise DifferenceError(f"{differing[0].where} {differing[0].text}: {entry} (after first)")


def _given(args: Any, kwargs: Any) -> Any:
    if args is None and kwargs is None:
        return None
    positional = (args,) if isinstance(args, Tensor) else tuple(args or ())
    return positional, dict(kwargs or {})


def _hold(
    found: Certificate, after: nn.Module, before: nn.Module, given: Any, *, wide: bool
) -> None:
    """Raise what a certificate says, with the first entries and parameters that differ."""
    if found:
        return
    first = found.failures[0]
    spec = next((side for side in (before, after) if isinstance(side, Program)), None)
    trials = trials_of(first.mode, given, spec, found.trials + len(found.skipped), found.seed)
    trial = next((each for each in trials if each.label == first.input), None)
    told = "" if trial is None else _entries(after, before, trial, found.seed, wide=wide)
    more = len(found.failures) - 1
    others = f"\nand {more} more" if more else ""
    raise DifferenceError(f"{first}{told}{_first_parameter(after, before)}{others}")


def _entries(after: nn.Module, before: nn.Module, trial: Trial, seed: int, *, wide: bool) -> str:
    a, b = (run(Side(side, wide=wide), trial, seed=seed) for side in (after, before))
    if a.error or b.error:
        return ""
    told = difference(a.output, b.output)
    return "" if told is None else f"\noutput {told} (after first)"


def _first_parameter(after: nn.Module, before: nn.Module) -> str:
    ours, theirs = _values(after), _values(before)
    for name, value in theirs.items():
        if name in ours and difference(ours[name], value) is not None:
            told = entry_difference(ours[name], value)
            return f"\nthe first parameter that differs is {name!r}{told} (after first)"
    return ""


def _values(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, Program):
        return {name: model.value(name) for name in model.aliases}
    return {name: p.detach() for name, p in model.named_parameters()}
